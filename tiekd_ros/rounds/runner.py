"""Rounds of a long-lived process: start, supervise, promote, record.

A round's record is written before its worker starts and after its verdict, so the process that
comes after a crash knows what was going on.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from dataclasses import replace
from typing import IO, Any

from tiekd_ros.core.errors import RoundRefusedError, TiekdError
from tiekd_ros.rounds import WorkerEvent
from tiekd_ros.rounds.plan import check_calibration, check_enough
from tiekd_ros.rounds.round_log import (
    CanaryRecord,
    CanaryState,
    RoundKind,
    RoundRecord,
    RoundState,
)
from tiekd_ros.rounds.triggers import CALLED
from tiekd_ros.rounds.worker_process import WorkerSupervisor
from tiekd_ros.student.checkpoint import StudentStatus
from tiekd_ros.student.registry import LiveChangedError

_LOG = logging.getLogger(__name__)
_TRIES = 3
"""A round interrupted this often in a row is not started again by itself."""


class RoundRunner(WorkerSupervisor):
    """Runs at most one round at a time in a worker; it is not busy when a round's end is told.

    Arguments as for `WorkerSupervisor`.
    """

    _resumable = True

    def newest(self) -> RoundRecord | None:
        """Return the last round's record, of this or an earlier process."""
        return max(self._log.records(), key=lambda record: record.number, default=None)

    def last_calibration(self) -> RoundRecord | None:
        """Return the record of the last calibration that was not interrupted, if any."""
        return self._log.last_calibration()

    def refused_in_a_row(self, most: int) -> int:
        """Return how many of the last rounds that trained were refused, `most` at most."""
        return self._log.refused_in_a_row(most)

    def start(self, trigger: str = CALLED, kind: RoundKind = RoundKind.TRAINING) -> RoundRecord:
        """Start a round and return its record at once.

        Args:
            trigger: why, for the record.
            kind: what it does.

        Raises:
            RoundRefusedError: one is running, there are too few labelled frames, or nothing is
                there to be calibrated.
            TiekdError: the frame log cannot be read, or the record not be written.
        """
        with self._starting:
            if self._busy and self.record is not None:
                raise RoundRefusedError(
                    f"busy: round {self.record.number} is {self.record.stage} "
                    f"(step {self.record.step} of {self.record.steps}); call again when it is over"
                )
            train = len(self._store.labelled_ids("train"))
            held_out = len(self._store.labelled_ids("held_out"))
            if kind is RoundKind.CALIBRATION:
                check_calibration(train + held_out, self._registry.live(), self._plan.student)
            else:
                check_enough(train, held_out, self._plan.distill)
            lock = self._log.lock()
            try:
                record = RoundRecord(
                    max(self._log.numbers(), default=0) + 1,
                    trigger,
                    kind,
                    labels=train + held_out,
                    train_frames=train,
                    held_out_frames=held_out,
                )
                if kind is RoundKind.TRAINING:  # else no label is learnt from
                    self._store.mark_round_started()
                self._log.save(record)
            except TiekdError:
                lock.close()
                raise
            self._stopping = False
            self._busy = True
            self.record = record
            arguments = (record, lock, self._thread)
            self._thread = threading.Thread(target=self._run, args=arguments, name="round")
            self._thread.start()
            return record

    def resume_interrupted(self) -> RoundRecord | None:
        """Bring to an end what a killed process left: adopt its verdict, or start anew.

        A calibration is not started anew: its trigger will see to that.

        Returns:
            The record of the round that was adopted or started; None where nothing was left.

        Raises:
            TiekdError: as `start`.
        """
        self._registry.clean()
        with self._log.lock():  # else another process is still at it
            records = list(self._log.records())
            left = [r for r in records if r.state == RoundState.RUNNING]
            for record in left:
                reason = "the process that ran this round was stopped"
                self._log.save(replace(record, state=RoundState.INTERRUPTED, reason=reason))
            if not left:
                return None
            stored = self._version_of_round(left[-1].number)
            if stored is not None:
                return self._adopt(left[-1], stored)
        if left[-1].kind is RoundKind.CALIBRATION:
            return None
        trained = [r for r in records if r.kind is RoundKind.TRAINING]
        before = [r.state for r in trained if r.state != RoundState.RUNNING][-_TRIES + 1 :]
        if before == [RoundState.INTERRUPTED] * (_TRIES - 1):
            return None
        return self.start(f"resumed: round {left[-1].number} was interrupted")

    def stop(self, *, resumable: bool = True, timeout_s: float = 5.0) -> None:
        """End the running round, if any.

        Args:
            resumable: `resume_interrupted` takes it up again; else it is recorded as interrupted.
            timeout_s: how long the worker may take to end before it is killed.
        """
        self._resumable = resumable
        super().stop(timeout_s=timeout_s)

    def _run(self, record: RoundRecord, lock: IO[str], before: threading.Thread | None) -> None:
        if before is not None:
            before.join()  # that round's last record is announced before this one's first
        start = time.monotonic()
        done = None
        with lock:
            record = self._outcome(record)
            stopped = self._stopping
            if stopped and not self._resumable and record.state == RoundState.FAILED:
                record = replace(record, state=RoundState.INTERRUPTED, reason="stopped by hand")
            # Else `resume_interrupted` takes it up.
            if not stopped or record.state != RoundState.FAILED:
                seconds = round(time.monotonic() - start, 2)
                done = replace(record, stage="done", paused=False, seconds=seconds)
                with contextlib.suppress(TiekdError):
                    self._log.save(done)
        with self._starting:
            self.record = done or self.record
            self._busy = False
        if done is not None:  # on it, the next round may be started at once
            self._announce(done)

    def _outcome(self, record: RoundRecord) -> RoundRecord:
        try:
            return self._conclude(record)
        except TiekdError as error:
            reason = str(error)
        except Exception as error:  # a thread that dies leaves a round that runs for ever
            _LOG.exception("round %d", record.number)
            reason = f"{type(error).__name__}: {error}"
        return replace(self.record or record, state=RoundState.FAILED, reason=reason)

    def _conclude(self, record: RoundRecord) -> RoundRecord:
        """Have a worker do the round, and return the record with its verdict."""
        self._change(record)

        def on_event(event: dict[str, Any]) -> None:
            nonlocal record
            if event["event"] == WorkerEvent.WARNING:
                _LOG.warning("round %d: %s", record.number, event["message"])
            else:
                record = record.followed_by(event)
                self._change(record)

        options = ["--calibrate"] if record.kind is RoundKind.CALIBRATION else []
        result = self._run_worker(record.number, on_event, *options)
        names = ["version", "reason", "baseline", "before", "after"]
        names += ["train_frames", "held_out_frames", "train_seconds"]
        record = replace(record, state=RoundState.REFUSED, **{name: result[name] for name in names})
        if result["accepted"]:
            record = self._promote(record, result["version"], result["parent"])
        self._mark_used(result["train_ids"], record)
        return record

    def _adopt(self, record: RoundRecord, version: str) -> RoundRecord:
        card = self._registry.card(version)
        adopted = replace(
            record, state=RoundState.REFUSED, stage="done", version=version, reason=card.reason
        )
        if card.status == StudentStatus.ACCEPTED:
            adopted = self._promote(adopted, version, card.parent)
        self._mark_used(card.training.get("frame_ids", []), record)
        self._log.save(adopted)
        self._change(adopted)
        return adopted

    def _promote(self, record: RoundRecord, version: str, parent: str | None) -> RoundRecord:
        """Promote a candidate that was judged better than `parent`; return the record of it."""
        before = next(self._log.promoted(), None)
        try:
            self._registry.promote(version, expected_live=parent)
        except LiveChangedError as error:  # by hand, which outweighs a verdict
            return replace(record, reason=f"{error} (its verdict: {record.reason})")
        with contextlib.suppress(TiekdError):  # bookkeeping must not undo a verdict
            self._end_canary(before, version)
        return replace(record, state=RoundState.PROMOTED, canary=self._begin_canary(parent))

    def _begin_canary(self, predecessor: str | None) -> CanaryRecord | None:
        if predecessor is None:
            return None
        try:
            # What has no label by now was neither trained on nor judged, by any round.
            return CanaryRecord(predecessor, max(self._store.labelled_ids(), default=0))
        except TiekdError as error:
            _LOG.warning("student promoted without a canary evaluation: %s", error)
            return None

    def _end_canary(self, before: RoundRecord | None, version: str) -> None:
        """End the evaluation of the promotion before: only the newest one is evaluated."""
        if before is not None and before.canary is not None and before.canary.is_open:
            reason = f"student {version} was promoted in its place"
            self._log.save(before.with_canary(CanaryState.SUPERSEDED, reason))

    def _mark_used(self, ids: list[int], record: RoundRecord) -> None:
        if record.kind is RoundKind.CALIBRATION:
            return  # what it was fitted to is still new to a round that trains
        with contextlib.suppress(TiekdError):  # bookkeeping must not undo a verdict
            self._store.mark_round_finished(ids, record.number)

    def _version_of_round(self, number: int) -> str | None:
        for version in reversed(self._registry.versions()):
            with contextlib.suppress(TiekdError):
                if self._registry.card(version).round == number:
                    return version
        return None
