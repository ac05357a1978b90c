"""Running rounds from a long-lived process: start, follow, promote, remember.

A round's record is written before its worker starts and after its verdict, so whoever comes
after a crash knows what was going on.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import IO, Any

from tiekd_ros.distillation.parent import PAUSE, RESUME
from tiekd_ros.distillation.plan import RoundPlan
from tiekd_ros.distillation.replay import RoundRefusedError, check_enough
from tiekd_ros.distillation.round_log import (
    FAILED,
    INTERRUPTED,
    PROMOTED,
    REFUSED,
    RUNNING,
    RoundLog,
    RoundRecord,
)
from tiekd_ros.distillation.worker_process import (
    cause_of_death,
    read_events,
    spawn_worker,
    tell,
    worker_log,
)
from tiekd_ros.errors import TiekdError
from tiekd_ros.frames import FrameStore
from tiekd_ros.state import StateFolder
from tiekd_ros.student import ACCEPTED, LiveChangedError, StudentRegistry

UNDECODABLE = "undecodable"
"""Why a frame is rejected that a worker could not read."""

_LOG = logging.getLogger(__name__)
_TRIES = 3
"""A round interrupted this often in a row is not started again by itself."""


class RoundRunner:
    """Runs at most one round at a time in a worker process.

    Args:
        state: the state folder.
        store: the open frame log; used for counting and for marking frames as used.
        plan: settings; `set_plan` changes them for the next round.
        on_change: called with the record at every change, from the runner's thread; what it
            raises is logged and does the round no harm.
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
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[str] | None = None
        self._busy = False
        self._stopping = False
        self._resumable = True
        self.record: RoundRecord | None = None

    @property
    def busy(self) -> bool:
        """Whether a round is running here; no longer when its end is announced."""
        return self._busy

    def newest(self) -> RoundRecord | None:
        """Return the last round's record that is remembered, of whichever process."""
        return max(self._log.records(), key=lambda record: record.number, default=None)

    def set_plan(self, plan: RoundPlan) -> None:
        """Use these settings from the next round on."""
        self._plan = plan

    def start(self) -> RoundRecord:
        """Start a round and return its record at once.

        Raises:
            RoundRefusedError: one is running, or there are too few labelled frames.
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
            check_enough(train, held_out, self._plan.distill)
            lock = self._log.lock()
            try:
                number = max(self._log.numbers(), default=0) + 1
                record = RoundRecord(number, train_frames=train, held_out_frames=held_out)
                self._store.mark_seen()
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

    def resume(self) -> RoundRecord | None:
        """Bring to an end what a killed process left: adopt its verdict, or start anew.

        Returns:
            The record of the round that was adopted or started; None where nothing was left.

        Raises:
            TiekdError: as `start`.
        """
        self._registry.clean()
        with self._log.lock():  # else another process is still at it
            records = list(self._log.records())
            left = [r for r in records if r.state == RUNNING]
            for record in left:
                reason = "the process that ran this round was stopped"
                self._log.save(replace(record, state=INTERRUPTED, reason=reason))
            if not left:
                return None
            stored = self._version_of_round(left[-1].number)
            if stored is not None:
                return self._adopt(left[-1], stored)
        before = [r.state for r in records if r.state != RUNNING][-_TRIES + 1 :]
        if before == [INTERRUPTED] * (_TRIES - 1):
            return None
        return self.start()

    def rest(self) -> None:
        """Have the running round rest between two steps until `go_on`; none running, no effect."""
        if (process := self._process) is not None:
            tell(process, PAUSE)

    def go_on(self) -> None:
        """End the running round's rest, if any."""
        if (process := self._process) is not None:
            tell(process, RESUME)

    def wait(self) -> None:
        """Wait until the running round, if any, is over and announced."""
        if self._thread is not None:
            self._thread.join()

    def stop(self, *, resumable: bool = True, timeout_s: float = 5.0) -> None:
        """End the running round, if any.

        Args:
            resumable: `resume` takes it up again; else it is remembered as interrupted.
            timeout_s: how long the worker may take to end before it is killed.
        """
        self._resumable = resumable
        self._stopping = True
        process, thread = self._process, self._thread
        if process is not None:
            process.terminate()
        if thread is not None:
            thread.join(timeout_s)
            if thread.is_alive() and process is not None:
                process.kill()
                thread.join(timeout_s)

    def _run(self, record: RoundRecord, lock: IO[str], before: threading.Thread | None) -> None:
        if before is not None:
            before.join()  # the last word of that round comes before the first of this one
        start = time.monotonic()
        done = None
        with lock:
            record = self._outcome(record)
            if self._stopping and not self._resumable and record.state == FAILED:
                record = replace(record, state=INTERRUPTED, reason="stopped by hand")
            if not (self._stopping and record.state == FAILED):  # else `resume` takes it up
                seconds = round(time.monotonic() - start, 2)
                done = replace(record, stage="done", resting=False, seconds=seconds)
                with contextlib.suppress(TiekdError):
                    self._log.save(done)
        with self._starting:
            self.record = done or self.record
            self._busy = False
        if done is not None:  # whoever hears of it may start the next round at once
            self._announce(done)

    def _outcome(self, record: RoundRecord) -> RoundRecord:
        try:
            return self._follow_worker(record)
        except TiekdError as error:
            reason = str(error)
        except Exception as error:  # a thread that dies leaves a round that runs for ever
            _LOG.exception("round %d", record.number)
            reason = f"{type(error).__name__}: {error}"
        return replace(self.record or record, state=FAILED, reason=reason)

    def _follow_worker(self, record: RoundRecord) -> RoundRecord:
        result: dict[str, Any] | None = None
        message = ""
        self._change(record)
        try:
            with spawn_worker(self._state, self._plan, record.number) as process:
                self._process = process
                if self._stopping:  # asked while the process was being made
                    process.terminate()
                assert process.stdout is not None
                for event in read_events(process.stdout):
                    if event["event"] == "result":
                        result = event
                    elif event["event"] == "error":
                        message = event["message"]
                    elif event["event"] == "undecodable":
                        self._reject(event["ids"])
                    elif event["event"] == "warning":
                        _LOG.warning("round %d: %s", record.number, event["message"])
                    else:
                        record = record.followed_by(event)
                        self._change(record)
        finally:
            self._process = None
        if result is None:
            raise TiekdError(message or cause_of_death(process.returncode, worker_log(self._state)))
        return self._conclude(record, result)

    def _reject(self, ids: list[int]) -> None:
        for frame_id in ids:  # else every later round could draw them again
            with contextlib.suppress(TiekdError):
                self._store.reject(frame_id, UNDECODABLE)

    def _conclude(self, record: RoundRecord, result: dict[str, Any]) -> RoundRecord:
        state, reason = REFUSED, result["reason"]
        if result["accepted"]:
            state, reason = self._promote(result["version"], result["parent"], reason)
        self._mark_used(result["train_ids"], record.number)
        names = ["version", "baseline", "before", "after"]
        names += ["train_frames", "held_out_frames", "train_seconds"]
        values = {name: result[name] for name in names}
        return replace(record, state=state, reason=reason, **values)

    def _adopt(self, record: RoundRecord, version: str) -> RoundRecord:
        card = self._registry.card(version)
        state, reason = REFUSED, card.reason
        if card.status == ACCEPTED:
            state, reason = self._promote(version, card.parent, reason)
        self._mark_used(card.training.get("frame_ids", []), record.number)
        adopted = replace(record, state=state, stage="done", version=version, reason=reason)
        self._log.save(adopted)
        self._change(adopted)
        return adopted

    def _promote(self, version: str, parent: str | None, reason: str) -> tuple[str, str]:
        """Promote a candidate that was judged better than `parent`; return state and reason."""
        try:
            self._registry.promote(version, expected_live=parent)
        except LiveChangedError as error:  # someone's wish, which outweighs a verdict
            return REFUSED, f"{error} (its verdict: {reason})"
        return PROMOTED, reason

    def _mark_used(self, ids: list[int], number: int) -> None:
        with contextlib.suppress(TiekdError):  # bookkeeping must not undo a verdict
            self._store.mark_used(ids, number)

    def _version_of_round(self, number: int) -> str | None:
        for version in reversed(self._registry.versions()):
            with contextlib.suppress(TiekdError):
                if self._registry.card(version).round == number:
                    return version
        return None

    def _change(self, record: RoundRecord) -> None:
        self.record = record
        self._announce(record)

    def _announce(self, record: RoundRecord) -> None:
        try:
            self._on_change(record)
        except Exception:  # whoever listens must not break the round
            _LOG.exception("round %d: %s cannot be announced", record.number, record.stage)
