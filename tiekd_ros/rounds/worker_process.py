"""The parent's end of a worker: starting it, its events, pausing it, ending it.

`worker` is the other end, and has the kinds of messages.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.state import StateFolder
from tiekd_ros.framelog import FrameStore
from tiekd_ros.rounds import Emit, WorkerEvent
from tiekd_ros.rounds.plan import RoundPlan
from tiekd_ros.rounds.round_log import RoundLog, RoundRecord
from tiekd_ros.rounds.worker import WorkerCommand
from tiekd_ros.student.registry import StudentRegistry

UNDECODABLE = "undecodable"
"""Why a frame is rejected that a worker could not read."""

_LOG = logging.getLogger(__name__)
_KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
"""glibc gives large blocks back at once, and the kernel clears them again for the next step: an
eighth of a training step. So it is told to keep them; other C libraries do not mind."""


def worker_log(state: StateFolder) -> Path:
    """Return the file of a worker's standard error."""
    return state.logs / "worker.log"


def spawn_worker(
    state: StateFolder, plan: RoundPlan, number: int, *options: str
) -> subprocess.Popen[str]:
    """Start the worker of a round; it ends when its standard input closes.

    Args:
        state: the state folder.
        plan: all settings.
        number: of the round.
        options: of the worker's command line beside these.

    Raises:
        OSError: it, or its log, cannot be opened.
    """
    command = [sys.executable, "-m", "tiekd_ros.rounds.worker", "--with-parent"]
    command += ["--state", str(state.root), "--round", str(number)]
    command += ["--plan", json.dumps(plan.as_dict()), *options]
    with worker_log(state).open("a") as errors:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
            env={**_KEEP_MEMORY, **os.environ},  # the user's own settings win
            # Ctrl-C is meant for the parent, which ends its worker; and a session of its own
            # can be niced as a whole (see lower_priority)
            start_new_session=True,
        )


def read_events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the events among a worker's lines; a kill cuts one short, a library may print one."""
    for line in lines:
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(event, dict) and "event" in event:
            yield event


class WorkerSupervisor:
    """Has workers work on a state folder, at most one at a time, each for one round.

    A thread of its own (`_thread`, made by the subclasses) runs the worker and writes `record`;
    any other thread may pause, resume and stop it.

    Args:
        state: the state folder.
        store: the open frame log; used for counting, for marking frames as used, and for
            rejecting damaged ones.
        plan: settings; `set_plan` changes them for what begins next.
        on_change: called with the round's record at every change, from that thread; an exception
            in it is logged and does no harm.
    """

    def __init__(
        self,
        state: StateFolder,
        store: FrameStore,
        plan: RoundPlan,
        on_change: Callable[[RoundRecord], None],
    ) -> None:
        self._state = state
        self._store = store
        self._plan = plan
        self._on_change = on_change
        self._registry = StudentRegistry(state.students)
        self._log = RoundLog(state.rounds)
        self._process: subprocess.Popen[str] | None = None
        self._stopping = False  # whether the worker was asked to end
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()  # guards `_busy` and `record` at a start and an end
        self._busy = False
        self.record: RoundRecord | None = None

    @property
    def busy(self) -> bool:
        """Whether something is under way here."""
        return self._busy

    def set_plan(self, plan: RoundPlan) -> None:
        """Use these settings for what begins next."""
        self._plan = plan

    def pause(self) -> None:
        """Pause the worker, if any, between two steps until `resume`."""
        self._send(WorkerCommand.PAUSE)

    def resume(self) -> None:
        """End the worker's pause, if any."""
        self._send(WorkerCommand.RESUME)

    def wait(self) -> None:
        """Wait until what is under way, if anything, is over and announced."""
        if self._thread is not None:
            self._thread.join()

    def stop(self, *, timeout_s: float = 5.0) -> None:
        """End the worker, if any, so that another process can go on with its work.

        Args:
            timeout_s: how long it may take to end before it is killed.
        """
        self._stopping = True
        if (process := self._process) is not None:
            process.terminate()
        if self._thread is not None:
            self._thread.join(timeout_s)
            # again, since it may have been made meanwhile
            if self._thread.is_alive() and (process := self._process) is not None:
                process.kill()
                self._thread.join(timeout_s)

    def _send(self, command: WorkerCommand) -> None:
        if (process := self._process) is not None:
            assert process.stdin is not None
            with contextlib.suppress(OSError, ValueError):  # a broken pipe, a closed one
                process.stdin.write(f"{command}\n")
                process.stdin.flush()

    def _run_worker(self, number: int, on_event: Emit, *options: str) -> dict[str, Any]:
        """Have a worker do its work for a round, and return its result event.

        Args:
            number: of the round.
            on_event: gets the events on the way to it.
            options: of the worker's command line.

        Raises:
            TiekdError: it came to no result.
            OSError: it cannot be started.
        """
        result: dict[str, Any] = {}
        error = ""
        try:
            with spawn_worker(self._state, self._plan, number, *options) as process:
                self._process = process
                if self._stopping:  # asked while the process was being made
                    process.terminate()
                assert process.stdout is not None
                for event in read_events(process.stdout):
                    kind = event["event"]
                    if kind == WorkerEvent.RESULT:
                        result = event
                    elif kind == WorkerEvent.ERROR:
                        error = event["message"]
                    elif kind == WorkerEvent.UNDECODABLE:
                        self._reject(event["ids"])
                    else:
                        on_event(event)
        finally:
            self._process = None
        if not result:
            raise TiekdError(error or cause_of_death(process.returncode, worker_log(self._state)))
        return result

    def _reject(self, ids: list[int]) -> None:
        for frame_id in ids:  # else the next worker could draw them again
            with contextlib.suppress(TiekdError):
                self._store.reject(frame_id, UNDECODABLE)

    def _change(self, record: RoundRecord) -> None:
        self.record = record
        self._announce(record)

    def _announce(self, record: RoundRecord) -> None:
        try:
            self._on_change(record)
        except Exception:  # a subscriber's fault must not break what is under way
            _LOG.exception("round %d: %s cannot be announced", record.number, record.stage)


def cause_of_death(code: int, log: Path) -> str:
    """Return how a worker ended that came to no verdict, from its exit status and log."""
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return f"the worker {how}; nothing is lost, and it can be tried again (its log: {log})"
