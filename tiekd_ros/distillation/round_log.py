"""What is remembered of each round: `rounds/000007.json`, and the lock that one round holds."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from tiekd_ros.distillation.replay import RoundRefusedError
from tiekd_ros.errors import TiekdError
from tiekd_ros.student.checkpoint import write_durably

RUNNING, FAILED, INTERRUPTED = "running", "failed", "interrupted"
PROMOTED, REFUSED = "accepted", "refused"


@dataclass(frozen=True)
class RoundRecord:
    """What is known of one round; scores are means over held-out frames."""

    number: int
    state: str = RUNNING
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
    resting: bool = False
    rested_seconds: float = 0.0

    def followed_by(self, event: dict[str, Any]) -> RoundRecord:
        """Return the record after a `stage`, `progress` or `resting` event of the worker."""
        if event["event"] == "progress":
            loss = event.get("loss", self.loss)  # judging has none
            return replace(self, step=event["step"], steps=event["steps"], loss=loss)
        if event["event"] == "resting":
            rested = round(self.rested_seconds + event["seconds"], 2)
            return replace(self, resting=event["resting"], rested_seconds=rested)
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
            with contextlib.suppress(OSError, ValueError, TypeError):
                yield RoundRecord(**json.loads(self._path(number).read_text()))

    def save(self, record: RoundRecord) -> None:
        """Write a record, whole or not at all.

        Raises:
            TiekdError: the disk refuses.
        """
        path = self._path(record.number)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            write_durably(temporary, (json.dumps(asdict(record), indent=2) + "\n").encode())
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise TiekdError(f"cannot write {path}: {error.strerror}; make room") from error

    def lock(self) -> IO[str]:
        """Take the lock that a running round holds; closing the file gives it back.

        The operating system gives it back as well when the process dies.

        Raises:
            RoundRefusedError: another process runs a round on this state folder.
        """
        try:
            file = (self.folder / ".lock").open("w")
        except OSError as error:
            raise TiekdError(f"cannot write to {self.folder}: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise RoundRefusedError(
                "busy: another process runs a round on this state folder; wait for it to end"
            ) from error
        return file

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"
