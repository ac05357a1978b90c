"""A worker process as a long-lived one runs it: for a round, or for the watch over its student."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any

from tiekd_ros.distillation.plan import RoundPlan
from tiekd_ros.distillation.round_log import RoundLog, RoundRecord
from tiekd_ros.distillation.worker_process import (
    FollowedWorker,
    result_of,
    spawn_worker,
    worker_log,
)
from tiekd_ros.errors import TiekdError
from tiekd_ros.frames import FrameStore
from tiekd_ros.state import StateFolder
from tiekd_ros.student import StudentRegistry

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
