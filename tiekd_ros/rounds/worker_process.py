"""A worker process as a long-lived one runs it: for a round, or for the watch over its student."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.state import StateFolder
from tiekd_ros.framelog import FrameStore
from tiekd_ros.rounds.plan import RoundPlan
from tiekd_ros.rounds.round_log import RoundLog, RoundRecord
from tiekd_ros.rounds.worker import PAUSE, RESUME
from tiekd_ros.student import StudentRegistry


def worker_log(state: StateFolder) -> Path:
    """Return where workers write what they have to say beside their events."""
    return state.logs / "worker.log"


_KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
"""glibc gives large blocks back at once, and the kernel clears them again for the next step: an
eighth of a training step. So it is told to keep them; other C libraries do not mind."""


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


class FollowedWorker:
    """At most one worker at a time: one thread follows it, any other may tell it something."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._stopping = False

    @property
    def stopping(self) -> bool:
        """Whether it was asked to end since `allow`."""
        return self._stopping

    def allow(self) -> None:
        """Forget that an earlier worker was asked to end."""
        self._stopping = False

    def follow(
        self,
        spawn: Callable[[], subprocess.Popen[str]],
        hear: Callable[[dict[str, Any]], None],
    ) -> int:
        """Start a worker, hear its events to its end, and return its exit status.

        Raises:
            OSError: it cannot be started.
        """
        try:
            with spawn() as process:
                self._process = process
                if self._stopping:  # asked while the process was being made
                    process.terminate()
                assert process.stdout is not None
                for event in read_events(process.stdout):
                    hear(event)
        finally:
            self._process = None
        return process.returncode

    def rest(self) -> None:
        """Have it rest between two steps until `go_on`; where there is none, no effect."""
        self._tell(PAUSE)

    def go_on(self) -> None:
        """End its rest, if any."""
        self._tell(RESUME)

    def stop(self, thread: threading.Thread | None, timeout_s: float) -> None:
        """End it, and the `thread` that follows it; kill it where it takes longer than this."""
        self._stopping = True
        if (process := self._process) is not None:
            process.terminate()
        if thread is not None:
            thread.join(timeout_s)
            # again, since it may have been made meanwhile
            if thread.is_alive() and (process := self._process) is not None:
                process.kill()
                thread.join(timeout_s)

    def _tell(self, word: str) -> None:
        """Say it; one that is dead does not hear it, and that is fine."""
        if (process := self._process) is not None:
            assert process.stdin is not None
            with contextlib.suppress(OSError, ValueError):  # a broken pipe, a closed one
                process.stdin.write(word + "\n")
                process.stdin.flush()


def read_events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the events among a worker's lines; a kill cuts one short, a library may print one."""
    for line in lines:
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(event, dict) and "event" in event:
            yield event


def result_of(last: Mapping[str, dict[str, Any]], code: int, log: Path) -> dict[str, Any]:
    """Return a worker's result event.

    Args:
        last: its last event of each kind that ends it: `result`, `error`.
        code: its exit status.
        log: where it wrote what else it had to say.

    Raises:
        TiekdError: there is none; says why.
    """
    if "result" in last:
        return last["result"]
    raise TiekdError(last["error"]["message"] if "error" in last else cause_of_death(code, log))


def cause_of_death(code: int, log: Path) -> str:
    """Say how a worker ended that came to no verdict."""
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return f"the worker {how}; nothing is lost, and it can be tried again (its log: {log})"


UNDECODABLE = "undecodable"
"""Why a frame is rejected that a worker could not read."""

_LOG = logging.getLogger(__name__)


class Follower:
    """Runs at most one worker at a time: a thread follows it, any other may tell it something.

    Args:
        state: the state folder.
        store: the open frame log; used for counting, for marking frames as used, and for
            rejecting damaged ones.
        plan: settings; `set_plan` changes them for what begins next.
        on_change: called with the round's record at every change, from the following thread;
            what it raises is logged and does no harm.
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
        self._worker = FollowedWorker()
        self._thread: threading.Thread | None = None
        self._busy = False
        self.record: RoundRecord | None = None

    @property
    def busy(self) -> bool:
        """Whether something is under way here."""
        return self._busy

    def set_plan(self, plan: RoundPlan) -> None:
        """Use these settings for what begins next."""
        self._plan = plan

    def rest(self) -> None:
        """Have the worker rest between two steps until `go_on`; where there is none, no effect."""
        self._worker.rest()

    def go_on(self) -> None:
        """End the worker's rest, if any."""
        self._worker.go_on()

    def wait(self) -> None:
        """Wait until what is under way, if anything, is over and announced."""
        if self._thread is not None:
            self._thread.join()

    def stop(self, *, timeout_s: float = 5.0) -> None:
        """End the worker, if any, so that another process can go on with it.

        Args:
            timeout_s: how long it may take to end before it is killed.
        """
        self._worker.stop(self._thread, timeout_s)

    def _follow(
        self, number: int, hear: Callable[[dict[str, Any]], None], *options: str
    ) -> dict[str, Any]:
        """Have a worker do its work for a round, and return its result event.

        Args:
            number: of the round.
            hear: gets the events on the way to it.
            options: of the worker's command line.

        Raises:
            TiekdError: it came to no result.
            OSError: it cannot be started.
        """
        last: dict[str, Any] = {}
        plan = self._plan

        def sort(event: dict[str, Any]) -> None:
            if event["event"] in ("result", "error"):
                last[event["event"]] = event
            elif event["event"] == "undecodable":
                self._reject(event["ids"])
            else:
                hear(event)

        code = self._worker.follow(lambda: spawn_worker(self._state, plan, number, *options), sort)
        return result_of(last, code, worker_log(self._state))

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
        except Exception:  # whoever listens must not break what is under way
            _LOG.exception("round %d: %s cannot be announced", record.number, record.stage)
