"""What is remembered of each round: `rounds/000007.json`, and the lock that one round holds."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice, takewhile
from pathlib import Path
from typing import IO, Any

from tiekd_ros.core.errors import RoundRefusedError, TiekdError
from tiekd_ros.core.settings import TextEnum
from tiekd_ros.rounds import WorkerEvent
from tiekd_ros.student.checkpoint import replace_durably


class RoundKind(TextEnum):
    """What a round does."""

    TRAINING = "training"
    CALIBRATION = "calibration"
    """Fits the base student to the first labels, without training: `rounds.calibration`."""


class RoundState(TextEnum):
    """How far a round came."""

    RUNNING = "running"
    PROMOTED = "promoted"
    REFUSED = "refused"
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    @classmethod
    def _missing_(cls, value: object) -> RoundState | None:
        return cls.PROMOTED if value == "accepted" else None  # as it was called once


class CanaryState(TextEnum):
    """How far a promoted student's canary evaluation came."""

    WAITING = "waiting"
    JUDGING = "judging"
    """Never written down: an evaluation that was killed in it waits again."""
    KEPT = "kept"
    ROLLING_BACK = "rolling back"
    """Written before the rollback, so that the process that follows a kill ends it."""
    ROLLED_BACK = "rolled back"
    SUPERSEDED = "superseded"
    """Another student went live meanwhile."""

    @classmethod
    def _missing_(cls, value: object) -> CanaryState | None:
        return {"ended well": cls.KEPT, "ended": cls.SUPERSEDED}.get(str(value))  # once


_OF_BEFORE = {"watch": "canary", "resting": "paused", "rested_seconds": "paused_seconds"}
"""Names that records once had, and have now."""
_A_ROUND = "another process runs a round"
_LOOK_BACK = 200
"""Rounds, newest first, among which one is looked for."""


@dataclass(frozen=True)
class CanaryRecord:
    """The canary evaluation of a student that a round promoted.

    Scores are means over the frames that came after the promotion: `before` the predecessor's,
    `after` the promoted student's.
    """

    predecessor: str
    """The version that was live before, and is again after a rollback."""
    after_id: int
    """No frame up to this id is evidence: it may have had its label before the promotion."""
    state: CanaryState = CanaryState.WAITING
    reason: str = ""
    frames: int = 0
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)

    @property
    def is_open(self) -> bool:
        """Whether it has yet to come to an end."""
        return self.state in (CanaryState.WAITING, CanaryState.JUDGING, CanaryState.ROLLING_BACK)


@dataclass(frozen=True)
class RoundRecord:
    """One round; scores are means over held-out frames."""

    number: int
    trigger: str = ""
    """Why it was started."""
    kind: RoundKind = RoundKind.TRAINING
    labels: int = 0
    """Labelled frames that there were when it started."""
    state: RoundState = RoundState.RUNNING
    stage: str = "starting"
    step: int = 0
    steps: int = 0
    loss: float | None = None
    version: str | None = None
    reason: str = ""
    baseline: str = ""
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    train_frames: int = 0
    held_out_frames: int = 0
    train_seconds: float = 0.0
    seconds: float = 0.0
    paused: bool = False
    paused_seconds: float = 0.0
    canary: CanaryRecord | None = None
    """Of the promoted student; None where no other is known to go back to."""

    @classmethod
    def from_json(cls, text: str) -> RoundRecord:
        """Read what `to_json` wrote; ValueError or TypeError where it is something else."""
        values = {_OF_BEFORE.get(name, name): value for name, value in json.loads(text).items()}
        for name, kind in (("state", RoundState), ("kind", RoundKind)):
            if name in values:
                values[name] = kind(values[name])
        if (canary := values.get("canary")) is not None:
            state = CanaryState(canary.get("state", CanaryState.WAITING))
            values["canary"] = CanaryRecord(**{**canary, "state": state})
        return cls(**values)

    def with_canary(self, state: CanaryState, reason: str) -> RoundRecord:
        """Return the record with another state of its canary evaluation."""
        assert self.canary is not None
        return replace(self, canary=replace(self.canary, state=state, reason=reason))

    def to_json(self) -> str:
        """Return the record as text."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def followed_by(self, event: dict[str, Any]) -> RoundRecord:
        """Return the record after a `stage`, `progress` or `paused` event of the worker."""
        kind = event["event"]
        if kind == WorkerEvent.PROGRESS:
            loss = event.get("loss", self.loss)  # judging has none
            return replace(self, step=event["step"], steps=event["steps"], loss=loss)
        if kind == WorkerEvent.PAUSED:
            seconds = round(self.paused_seconds + event["seconds"], 2)
            return replace(self, paused=event["paused"], paused_seconds=seconds)
        return replace(self, stage=event["stage"], step=0, steps=0)


class RoundLog:
    """The records of one state folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def numbers(self) -> list[int]:
        """Return the numbers of all rounds, oldest first."""
        return sorted(int(p.stem) for p in self.folder.glob("*.json") if p.stem.isdigit())

    def records(self) -> Iterator[RoundRecord]:
        """Yield the readable records, oldest first.

        A damaged one is passed over: students and frames do not depend on records.
        """
        for number in self.numbers():
            if (record := self.record(number)) is not None:
                yield record

    def record(self, number: int) -> RoundRecord | None:
        """Return the record of a round; None where there is none that can be read."""
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            return RoundRecord.from_json(self._path(number).read_text())
        return None

    def promoted(self) -> Iterator[RoundRecord]:
        """Yield the records of the rounds that promoted a student, newest first."""
        return (r for r in self._newest_first() if r.state is RoundState.PROMOTED)

    def last_calibration(self) -> RoundRecord | None:
        """Return the record of the newest calibration that was not interrupted, if any."""
        ended = (r for r in self._newest_first() if r.state is not RoundState.INTERRUPTED)
        return next((r for r in ended if r.kind is RoundKind.CALIBRATION), None)

    def refused_in_a_row(self, most: int) -> int:
        """Return how many of the last rounds that trained were refused, `most` at most."""
        ended = (RoundState.PROMOTED, RoundState.REFUSED)
        trained = (
            r.state for r in self._newest_first()
            if r.kind is RoundKind.TRAINING and r.state in ended
        )  # fmt: skip
        last = islice(trained, most)
        return sum(1 for _ in takewhile(lambda state: state is RoundState.REFUSED, last))

    def _newest_first(self) -> Iterator[RoundRecord]:
        for number in reversed(self.numbers()[-_LOOK_BACK:]):
            if (record := self.record(number)) is not None:
                yield record

    def changed_ns(self) -> int:
        """Return a number that changes with each `save`, in this or another process."""
        try:
            return self.folder.stat().st_mtime_ns
        except OSError as error:
            raise TiekdError(f"cannot read {self.folder}: {error.strerror}") from error

    def save(self, record: RoundRecord) -> None:
        """Write a record, whole or not at all.

        Raises:
            TiekdError: the disk refuses.
        """
        path = self._path(record.number)
        try:
            replace_durably(path, record.to_json().encode())
        except OSError as error:
            raise TiekdError(f"cannot write {path}: {error.strerror}; make room") from error

    def lock(self, holder: str = _A_ROUND) -> IO[str]:
        """Take the lock that a running round holds; closing the file gives it back.

        The operating system gives it back as well when the process dies.

        Args:
            holder: what takes it, for the refusal of others.

        Raises:
            RoundRefusedError: a round runs on this state folder, or a canary evaluation;
                says which.
        """
        try:
            file = (self.folder / ".lock").open("a+")
        except OSError as error:
            raise TiekdError(f"cannot write to {self.folder}: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            held_by = file.read().strip() or _A_ROUND
            file.close()
            raise RoundRefusedError(
                f"busy: {held_by} on this state folder; wait for it to end"
            ) from error
        with contextlib.suppress(OSError):  # a full disk: then the refusal names no holder
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), holder.encode())
        return file

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"
