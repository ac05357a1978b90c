"""A runner of rounds on an open frame log, real workers, and ones that print given lines."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from helpers.children import PATIENCE_S, start_python
from helpers.frames import small_plan
from tiekd_ros.core.state import StateFolder
from tiekd_ros.framelog import FrameStore
from tiekd_ros.rounds.plan import RoundPlan
from tiekd_ros.rounds.round_log import RoundLog, RoundRecord
from tiekd_ros.rounds.runner import RoundRunner
from tiekd_ros.student.registry import StudentRegistry

ENDLESS_RUN = {"iterations": 10**6, "threads": 1, "device": "cpu"}
ENDLESS = small_plan(train=ENDLESS_RUN)
SHORT = small_plan(train={"iterations": 1}, gate={"first_margin": 0.05})  # trains, is refused


class OpenState:
    """A state folder's frame log, registry and round log, and the records that were announced."""

    def __init__(self, state: StateFolder) -> None:
        self.seen: list[RoundRecord] = []
        self.state = state
        self.store = FrameStore(state.frames)
        self.registry = StudentRegistry(state.students)
        self.log = RoundLog(state.rounds)


class OpenRounds(OpenState):
    """A runner of rounds on an open state."""

    def __init__(self, state: StateFolder, plan: RoundPlan) -> None:
        super().__init__(state)
        self.runner = RoundRunner(state, self.store, plan, self.seen.append)

    def run(self) -> RoundRecord:
        """Run a round to its end; return its record."""
        self.runner.start()
        self.runner.wait()
        assert self.runner.record is not None
        return self.runner.record

    def in_training(self) -> bool:
        return any(record.step > 0 for record in self.seen)

    def states(self) -> list[str]:
        return [record.state for record in self.log.records()]

    def worker_pid(self) -> int:
        """Return the process id of the round's worker."""
        (pid,) = worker_pids(self.state)
        return pid


def worker_pids(state: StateFolder) -> list[int]:
    """Return the process ids of the workers on a state folder."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # ended meanwhile
            continue
        if "tiekd_ros.rounds.worker" in words and str(state.root) in words:
            pids.append(int(path.parent.name))
    return pids


def said(*events: dict[str, Any] | str) -> Callable[..., subprocess.Popen[str]]:
    """Return a stand-in for `spawn_worker`: a process that prints these lines and ends."""
    lines = [e if isinstance(e, str) else json.dumps(e) for e in events]

    def spawn(*_: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", f"print({chr(10).join(lines)!r})"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    return spawn


def verdict(version: str, parent: str | None, ids: Sequence[int], **more: Any) -> dict[str, Any]:
    """Return the result event of a worker whose candidate was accepted."""
    scores = {"rmse": 1.0, "abs_rel": 0.1}
    return {
        "event": "result", "version": version, "parent": parent, "accepted": True,
        "reason": "much better", "baseline": "incumbent", "before": scores, "after": scores,
        "train_frames": len(ids), "held_out_frames": 1, "train_ids": list(ids),
        "train_seconds": 1.0, **more,
    }  # fmt: skip


def start_worker(
    state: StateFolder, plan: dict[str, Any] | str, *options: str
) -> subprocess.Popen[str]:
    """Start the worker of round 3."""
    text = plan if isinstance(plan, str) else json.dumps(plan)
    arguments = ["--state", str(state.root), "--round", "3", "--plan", text, *options]
    worker = ["-m", "tiekd_ros.rounds.worker", *arguments]
    return start_python(*worker, stdin=subprocess.PIPE)


def events_of(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """Return all that is left of a worker's events, at its end."""
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert errors == ""
    return [json.loads(line) for line in output.splitlines()]


def wait_for_event(process: subprocess.Popen[str], kind: str) -> dict[str, Any]:
    """Return a worker's next event of a kind."""
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == kind:
            return event
    raise AssertionError(f"the worker ended: {process.stderr.read()}")


def tell_worker(process: subprocess.Popen[str], text: str) -> None:
    """Write to a worker's standard input."""
    process.stdin.write(text)
    process.stdin.flush()
