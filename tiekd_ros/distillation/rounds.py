"""Running rounds from a long-lived process: start, follow, promote, remember.

A round's record is written before its worker starts and after its verdict, so whoever comes
after a crash knows what was going on.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

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
from tiekd_ros.errors import TiekdError
from tiekd_ros.frames import FrameStore
from tiekd_ros.state import StateFolder
from tiekd_ros.student import ACCEPTED, StudentRegistry

_TRIES = 3
"""A round interrupted this often in a row is not started again by itself."""


class RoundRunner:
    """Runs at most one round at a time in a worker process.

    Args:
        state: the state folder.
        store: the open frame log; used for counting and for marking frames as used.
        plan: settings; `set_plan` changes them for the next round.
        on_change: called with the record at every change, from the runner's thread.
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
        self._stopping = False
        self.record: RoundRecord | None = None

    @property
    def busy(self) -> bool:
        """Whether a round is running here."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    @property
    def worker_pid(self) -> int | None:
        """Process id of the training worker while one runs."""
        process = self._process
        return process.pid if process is not None else None

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
            if self.busy and self.record is not None:
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
                self._log.save(record)
            except TiekdError:
                lock.close()
                raise
            self._stopping = False
            self.record = record
            self._thread = threading.Thread(target=self._run, args=(record, lock), name="round")
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

    def wait(self) -> None:
        """Wait until the running round, if any, is over."""
        if self._thread is not None:
            self._thread.join()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the running round, if any; `resume` takes it up again."""
        self._stopping = True
        process, thread = self._process, self._thread
        if process is not None:
            process.terminate()
        if thread is not None:
            thread.join(timeout_s)
            if thread.is_alive() and process is not None:
                process.kill()
                thread.join(timeout_s)

    def _run(self, record: RoundRecord, lock: IO[str]) -> None:
        start = time.monotonic()
        with lock:
            try:
                record = self._follow_worker(record)
            except TiekdError as error:
                record = replace(self.record or record, state=FAILED, reason=str(error))
            except OSError as error:
                record = replace(record, state=FAILED, reason=f"cannot run the worker: {error}")
            if self._stopping and record.state == FAILED:
                return  # its record stays `running`: `resume` takes it up
            record = replace(record, stage="done", seconds=round(time.monotonic() - start, 2))
            with contextlib.suppress(TiekdError):
                self._log.save(record)
        self._change(record)

    def _follow_worker(self, record: RoundRecord) -> RoundRecord:
        log = self._state.logs / "worker.log"
        result: dict[str, Any] | None = None
        message = ""
        self._change(record)
        with self._spawn(record.number, log) as process:
            self._process = process
            if self._stopping:  # asked while the process was being made
                process.terminate()
            assert process.stdout is not None
            for line in process.stdout:
                try:
                    event = json.loads(line)
                except json.JSONDecodeError:  # cut short by a kill
                    continue
                if event["event"] == "result":
                    result = event
                elif event["event"] == "error":
                    message = event["message"]
                else:
                    record = _updated(record, event)
                    self._change(record)
        self._process = None
        if result is None:
            raise TiekdError(message or _death(process.returncode, log))
        return self._conclude(record, result)

    def _spawn(self, number: int, log: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tiekd_ros.distillation.worker", "--with-parent"]
        command += ["--state", str(self._state.root), "--round", str(number)]
        command += ["--plan", json.dumps(self._plan.as_dict())]
        with log.open("a") as errors:
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )

    def _conclude(self, record: RoundRecord, result: dict[str, Any]) -> RoundRecord:
        accepted = bool(result["accepted"])
        if accepted:
            self._registry.promote(result["version"])
        with contextlib.suppress(TiekdError):  # bookkeeping must not undo a verdict
            self._store.mark_used(result["train_ids"], record.number)
        names = ["version", "reason", "baseline", "before", "after"]
        names += ["train_frames", "held_out_frames", "train_seconds"]
        state = PROMOTED if accepted else REFUSED
        return replace(record, state=state, **{name: result[name] for name in names})

    def _adopt(self, record: RoundRecord, version: str) -> RoundRecord:
        card = self._registry.card(version)
        accepted = card.status == ACCEPTED
        if accepted:
            self._registry.promote(version)
        state = PROMOTED if accepted else REFUSED
        with contextlib.suppress(TiekdError):  # as in _conclude
            self._store.mark_used(card.training.get("frame_ids", []), record.number)
        adopted = replace(record, state=state, stage="done", version=version, reason=card.reason)
        self._log.save(adopted)
        self._change(adopted)
        return adopted

    def _version_of_round(self, number: int) -> str | None:
        for version in reversed(self._registry.versions()):
            with contextlib.suppress(TiekdError):
                if self._registry.card(version).round == number:
                    return version
        return None

    def _change(self, record: RoundRecord) -> None:
        self.record = record
        self._on_change(record)


def _updated(record: RoundRecord, event: dict[str, Any]) -> RoundRecord:
    if event["event"] == "progress":
        return replace(record, step=event["step"], steps=event["steps"], loss=event["loss"])
    return replace(record, stage=event["stage"])


def _death(code: int, log: Path) -> str:
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return f"the training worker {how}; nothing is lost, call again (its log: {log})"
