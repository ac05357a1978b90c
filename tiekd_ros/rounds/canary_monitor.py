"""Watching a promoted student from a long-lived process: wait, have it judged, go back or not.

What a watch needs lies on the disk: the round's record says what is watched and since when, the
registry what is live, the frame log what came since. So a process that was killed leaves a watch
that the next one goes on with.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice, takewhile
from typing import IO, Any

from tiekd_ros.core.errors import RoundRefusedError, TiekdError
from tiekd_ros.core.state import StateFolder
from tiekd_ros.framelog import FrameStore
from tiekd_ros.rounds.plan import RoundPlan
from tiekd_ros.rounds.round_log import (
    ENDED,
    JUDGING,
    KEPT,
    ROLLED_BACK,
    ROLLING_BACK,
    RoundRecord,
    WatchRecord,
)
from tiekd_ros.rounds.worker_process import Follower
from tiekd_ros.student import ROLLED_BACK as CARD_ROLLED_BACK
from tiekd_ros.student import LiveChangedError

_LOG = logging.getLogger(__name__)
_RETRY_S, _LONGEST_RETRY_S = 5.0, 600.0
_SETTLED_NS, _UNKNOWN_NS = 1_000_000_000, -1
_SEVERAL = 3
"""Promotions in a row that were rolled back: what rounds go by is not what the robot sees."""


class StudentWatch(Follower):
    """Watches the student that the newest promotion of a round made live, if it still is.

    Judges in a worker process, while no round runs on the state folder; goes back at most once a
    promotion, and only from the student that was judged to the one that it was compared with.

    Its `record` is the newest promotion, whose student is or was watched. Arguments as for
    `Follower`.
    """

    def __init__(
        self,
        state: StateFolder,
        store: FrameStore,
        plan: RoundPlan,
        on_change: Callable[[RoundRecord], None],
    ) -> None:
        super().__init__(state, store, plan, on_change)
        self._known_ns = _UNKNOWN_NS  # of the round log, when `record` was read
        self._missing = 0  # frames that were there and could not be compared
        self._forget_failures()
        self._obstacle = ""
        self.labels_since = 0
        """Frames that came, and got their label, since that promotion."""
        self.rolled_back_in_a_row = 0
        self.live: str | None = None
        """What was live at the last `check`."""

    @property
    def trouble(self) -> str:
        """Why it could not go on when it last tried; empty where it could."""
        return self._obstacle or self._failure

    @property
    def distrusts_rounds(self) -> bool:
        """Whether the last promotions were all rolled back, so that more of them prove nothing."""
        return self.enabled and self.rolled_back_in_a_row >= _SEVERAL

    @property
    def labels_needed(self) -> int:
        """How many such frames there have to be."""
        return self._plan.watch.frames + self._missing

    @property
    def enabled(self) -> bool:
        """Whether the settings have it judge at all."""
        return self._plan.watch.enabled

    def check(self) -> None:
        """See whether there is something to do, and begin it; call it about once a second.

        Takes some milliseconds; the work is done in a thread and a worker process.
        """
        if self._busy or self._worker.stopping:
            return
        obstacle = ""
        try:
            self.live = self._registry.live()
            self._read_log()
            record = self.record
            if record is None or not self._is_due(record):
                return
            lock = self._log.lock(f"the watch over student {record.version} is judging")
        except RoundRefusedError:  # a round runs: it comes first
            return
        except TiekdError as error:
            obstacle = str(error)
            return
        finally:
            self._obstacle = obstacle
        self._busy = True
        arguments = (record.number, lock)
        self._thread = threading.Thread(target=self._run, args=arguments, name="watch")
        self._thread.start()

    def _read_log(self) -> None:
        changed_ns = self._log.changed_ns()
        if changed_ns == self._known_ns:
            return
        newest = list(islice(self._log.promoted(), _SEVERAL))
        before, self.record = self.record, newest[0] if newest else None
        if before is None or self.record is None or before.number != self.record.number:
            self._missing = 0
            self._forget_failures()
        self.rolled_back_in_a_row = len(list(takewhile(_was_rolled_back, newest)))
        # Two changes within a tick of the file system's clock leave the same time.
        is_settled = time.time_ns() - changed_ns > _SETTLED_NS
        self._known_ns = changed_ns if is_settled else _UNKNOWN_NS

    def _is_due(self, record: RoundRecord) -> bool:
        watch = record.watch
        if watch is None or not watch.is_open or not self.enabled:
            return False
        if time.monotonic() < self._retry_at_s:
            return False
        if watch.state == ROLLING_BACK or self.live != record.version:
            return True
        self._count(watch)
        return self.labels_since >= self.labels_needed

    def _count(self, watch: WatchRecord) -> None:
        self.labels_since = len(self._store.labelled_ids(after_id=watch.after_id))

    def _run(self, number: int, lock: IO[str]) -> None:
        done = None
        with lock:
            try:
                done = self._bring_forward(number)
                self._forget_failures()
            except TiekdError as error:
                self._fail(str(error))
            except Exception as error:  # a thread that dies leaves a watch that is busy for ever
                _LOG.exception("the watch of round %d", number)
                self._fail(f"{type(error).__name__}: {error}")
            record = done or self._log.record(number)
        if record is not None and not self._worker.stopping:
            self._change(record)
        self._known_ns = _UNKNOWN_NS
        self._busy = False

    def _forget_failures(self) -> None:
        self._failure, self._retry_s, self._retry_at_s = "", _RETRY_S, -math.inf

    def _fail(self, reason: str) -> None:
        if self._worker.stopping:
            return
        self._failure = reason
        self._retry_at_s = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, _LONGEST_RETRY_S)

    def _bring_forward(self, number: int) -> RoundRecord | None:
        """Judge and go back, or take up what a killed process left; None while it waits on."""
        record = self._log.record(number)
        if record is None or record.watch is None or not record.watch.is_open:
            return None
        was_killed = record.watch.state == ROLLING_BACK
        if not was_killed:
            if (end := self._end_of_another(record)) is not None:
                return end
            judged = self._judge(record, record.watch)
            if judged is None:
                return None
            if judged.state == KEPT:
                return self._end_of_another(record) or self._save(replace(record, watch=judged))
            record = self._save(replace(record, watch=judged))
        return self._go_back(record, was_killed)

    def _end_of_another(self, record: RoundRecord) -> RoundRecord | None:
        """End the watch where another student is live: someone's wish; None where it is not."""
        live = self._registry.live()
        if live == record.version:
            return None
        return self._end(record, ENDED, f"student {live or 'none'} is live meanwhile")

    def _go_back(self, record: RoundRecord, was_killed: bool) -> RoundRecord:
        watch, version = record.watch, record.version
        assert watch is not None
        assert version is not None
        try:
            self._registry.rollback(expected=(version, watch.predecessor))
        except LiveChangedError as error:
            # The process that was killed may have been so just after it went back.
            if not (was_killed and self._registry.live() == watch.predecessor):
                return self._end(record, ENDED, f"{error} (the verdict: {watch.reason})")
        card = self._registry.card(version)
        if card.status != CARD_ROLLED_BACK:
            reason = f"rolled back by the watch: {watch.reason}"
            at_the_gate = f" (at the gate: {card.reason})" if card.reason else ""
            self._registry.mark(version, CARD_ROLLED_BACK, reason + at_the_gate)
        return self._end(record, ROLLED_BACK, watch.reason)

    def _end(self, record: RoundRecord, state: str, reason: str) -> RoundRecord:
        assert record.watch is not None
        return self._save(replace(record, watch=replace(record.watch, state=state, reason=reason)))

    def _save(self, record: RoundRecord) -> RoundRecord:
        self._log.save(record)
        return record

    def _judge(self, record: RoundRecord, watch: WatchRecord) -> WatchRecord | None:
        """Have the student judged; None where too few frames could be compared."""
        told = replace(record, watch=replace(watch, state=JUDGING))
        self._change(told)

        def hear(event: dict[str, Any]) -> None:
            nonlocal told
            if event["event"] == "resting":
                told = told.followed_by(event)
                self._change(told)

        result = self._follow(record.number, hear, "--watch")
        if "worse" not in result:
            self._count(watch)
            self._missing = max(self.labels_since - result["frames"], 0)
            return None
        state = ROLLING_BACK if result["worse"] else KEPT
        values = {name: result[name] for name in ("reason", "frames", "before", "after")}
        return replace(watch, state=state, **values)


def _was_rolled_back(record: RoundRecord) -> bool:
    return record.watch is not None and record.watch.state == ROLLED_BACK
