"""The monitor of a promoted student: wait for frames, have it judged, roll back or not.

All of its state lies on the disk: the round's record says which student is evaluated and since
when, the registry what is live, the frame log what came since. So the process that follows a
killed one goes on with its evaluation.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from dataclasses import replace
from itertools import islice, takewhile
from typing import IO, Any

from tiekd_ros.core.errors import RoundRefusedError, TiekdError
from tiekd_ros.rounds import WorkerEvent
from tiekd_ros.rounds.round_log import CanaryRecord, CanaryState, RoundRecord
from tiekd_ros.rounds.worker_process import WorkerSupervisor
from tiekd_ros.student.checkpoint import StudentStatus
from tiekd_ros.student.registry import LiveChangedError

_LOG = logging.getLogger(__name__)
_RETRY_S, _LONGEST_RETRY_S = 5.0, 600.0
_SETTLED_NS, _UNKNOWN_NS = 1_000_000_000, -1
_SEVERAL = 3
"""Promotions rolled back in a row that show that rounds do not judge by what the robot sees."""


class CanaryMonitor(WorkerSupervisor):
    """Monitors the student that the newest promotion of a round made live, while it still is.

    Judges in a worker process, while no round runs on the state folder; rolls back at most once a
    promotion, and only from the student that was judged to the one that it was compared with.

    Its `record` is that of the newest promotion. Arguments as for `WorkerSupervisor`. `check` and
    the properties belong to one thread; while `busy`, `record` is written by the evaluation's.
    """

    teacher_name = ""
    """Of the teacher that answers: what it said before a rollback, it is asked again."""
    # The values before the first `check`; each monitor sets its own.
    labels_since = 0
    """Frames that came and got their label since that promotion."""
    rolled_back_in_a_row = 0
    live: str | None = None
    """What was live at the last `check`."""
    _known_ns = _UNKNOWN_NS  # of the round log, when `record` was read
    _missing = 0  # frames that were there and could not be compared
    _obstacle = _failure = ""
    _retry_s, _retry_at_s = _RETRY_S, -math.inf

    @property
    def trouble(self) -> str:
        """Why the last try failed; empty where it did not."""
        return self._obstacle or self._failure

    @property
    def distrusts_rounds(self) -> bool:
        """Whether the last promotions were all rolled back, so that more of them prove nothing."""
        return self.enabled and self.rolled_back_in_a_row >= _SEVERAL

    @property
    def labels_needed(self) -> int:
        """How many such frames an evaluation waits for."""
        return self._plan.canary.frames + self._missing

    @property
    def enabled(self) -> bool:
        """Whether the settings switch it on."""
        return self._plan.canary.enabled

    def check(self) -> None:
        """Begin what is due; call it about once a second.

        Takes some milliseconds; the work is done in a thread and a worker process.
        """
        if self._busy or self._stopping:
            return
        obstacle = ""
        try:
            self.live = self._registry.live()
            self._read_log()
            record = self.record
            if record is None or not self._is_due(record):
                return
            lock = self._log.lock(f"the canary evaluation of student {record.version} is judging")
        except RoundRefusedError:  # a round runs: it comes first
            return
        except TiekdError as error:
            obstacle = str(error)
            return
        finally:
            self._obstacle = obstacle
        self._busy = True
        arguments = (record.number, lock)
        self._thread = threading.Thread(target=self._run, args=arguments, name="canary")
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
        canary = record.canary
        if canary is None or not canary.is_open or not self.enabled:
            return False
        if time.monotonic() < self._retry_at_s:
            return False
        if canary.state == CanaryState.ROLLING_BACK or self.live != record.version:
            return True
        self._count(canary)
        return self.labels_since >= self.labels_needed

    def _count(self, canary: CanaryRecord) -> None:
        self.labels_since = len(self._store.labelled_ids(after_id=canary.after_id))

    def _run(self, number: int, lock: IO[str]) -> None:
        done = None
        with lock:
            try:
                done = self._advance(number)
                self._forget_failures()
            except TiekdError as error:
                self._fail(str(error))
            except Exception as error:  # a thread that dies leaves a monitor that is busy for ever
                _LOG.exception("canary evaluation of round %d", number)
                self._fail(f"{type(error).__name__}: {error}")
            record = done or self._log.record(number)
        if record is not None and not self._stopping:
            self._change(record)
        self._known_ns = _UNKNOWN_NS
        self._busy = False

    def _forget_failures(self) -> None:
        self._failure, self._retry_s, self._retry_at_s = "", _RETRY_S, -math.inf

    def _fail(self, reason: str) -> None:
        if self._stopping:
            return
        self._failure = reason
        self._retry_at_s = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, _LONGEST_RETRY_S)

    def _advance(self, number: int) -> RoundRecord | None:
        """Judge and roll back, or go on with what a killed process left; None while it waits."""
        record = self._log.record(number)
        if record is None or record.canary is None or not record.canary.is_open:
            return None
        was_killed = record.canary.state == CanaryState.ROLLING_BACK
        if not was_killed:
            if (end := self._superseded(record)) is not None:
                return end
            judged = self._judge(record, record.canary)
            if judged is None:
                return None
            if judged.state == CanaryState.KEPT:
                return self._superseded(record) or self._save(replace(record, canary=judged))
            record = self._save(replace(record, canary=judged))
        return self._roll_back(record, was_killed)

    def _superseded(self, record: RoundRecord) -> RoundRecord | None:
        """End it where another student is live, by hand; None where none is."""
        live = self._registry.live()
        if live == record.version:
            return None
        return self._end(
            record, CanaryState.SUPERSEDED, f"student {live or 'none'} is live meanwhile"
        )

    def _roll_back(self, record: RoundRecord, was_killed: bool) -> RoundRecord:
        canary, version = record.canary, record.version
        assert canary is not None
        assert version is not None
        try:
            self._registry.rollback(expected=(version, canary.predecessor))
        except LiveChangedError as error:
            # The process that was killed may have been so just after its rollback.
            if not (was_killed and self._registry.live() == canary.predecessor):
                return self._end(
                    record, CanaryState.SUPERSEDED, f"{error} (the verdict: {canary.reason})"
                )
        card = self._registry.card(version)
        if card.status != StudentStatus.ROLLED_BACK:
            reason = f"rolled back by the canary evaluation: {canary.reason}"
            at_the_gate = f" (at the gate: {card.reason})" if card.reason else ""
            self._registry.mark(version, StudentStatus.ROLLED_BACK, reason + at_the_gate)
        asked = self._quarantine(canary)
        more = (
            f"; the teacher is asked again for {asked} labels that were new to it" if asked else ""
        )
        return self._end(record, CanaryState.ROLLED_BACK, canary.reason + more)

    def _quarantine(self, canary: CanaryRecord) -> int:
        """Have the labels that came between two students, which may be at fault, asked for anew."""
        known = self._registry.card(canary.predecessor).training.get("frame_ids", ())
        since = self._store.labelled_ids(after_id=max(known, default=0))
        return self._store.ask_again([i for i in since if i <= canary.after_id], self.teacher_name)

    def _end(self, record: RoundRecord, state: CanaryState, reason: str) -> RoundRecord:
        return self._save(record.with_canary(state, reason))

    def _save(self, record: RoundRecord) -> RoundRecord:
        self._log.save(record)
        return record

    def _judge(self, record: RoundRecord, canary: CanaryRecord) -> CanaryRecord | None:
        """Have the student judged; None where too few frames could be compared."""
        judging = replace(record, canary=replace(canary, state=CanaryState.JUDGING))
        self._change(judging)

        def on_event(event: dict[str, Any]) -> None:
            nonlocal judging
            if event["event"] == WorkerEvent.PAUSED:
                judging = judging.followed_by(event)
                self._change(judging)

        result = self._run_worker(record.number, on_event, "--canary")
        if "worse" not in result:
            self._count(canary)
            self._missing = max(self.labels_since - result["frames"], 0)
            return None
        state = CanaryState.ROLLING_BACK if result["worse"] else CanaryState.KEPT
        values = {name: result[name] for name in ("reason", "frames", "before", "after")}
        return replace(canary, state=state, **values)


def _was_rolled_back(record: RoundRecord) -> bool:
    return record.canary is not None and record.canary.state == CanaryState.ROLLED_BACK
