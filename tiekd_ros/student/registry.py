"""The registry of student versions and the pointer to the live one.

Layout: `students/000001/{student.safetensors, card.json}` and `students/live.json`. Versions
are written to a temporary name, synced and renamed; the pointer is replaced atomically. So a
process killed at any moment leaves whole versions and a valid pointer.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from types import EllipsisType

from tiekd_ros.student.checkpoint import (
    CARD,
    CheckpointError,
    Student,
    StudentCard,
    StudentStatus,
    load_card,
    load_student,
    save_student,
    sync_folder,
    write_durably,
)

_LIVE = "live.json"
_LOCK = ".lock"
_TEMPORARY = ".writing-"


class LiveChangedError(CheckpointError):
    """Another student is live than the one that a promotion was to replace."""


class StudentRegistry:
    """All students of one state folder. Safe for several processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def versions(self) -> list[str]:
        """Return the versions, oldest first."""
        if not self.root.is_dir():
            return []
        return sorted(p.name for p in self.root.iterdir() if p.is_dir() and p.name.isdigit())

    def card(self, version: str) -> StudentCard:
        """Return the card of a version; CheckpointError where there is none."""
        return load_card(self._folder(version))

    def load(self, version: str) -> Student:
        """Return a version, checked; CheckpointError where it cannot be used."""
        return load_student(self._folder(version))

    def add(self, student: Student) -> StudentCard:
        """Store a student under the next free number and return its card.

        Raises:
            CheckpointError: not finite, or the disk refuses; nothing half-written stays.
        """
        temporary = self.root / f"{_TEMPORARY}{os.getpid()}-{uuid.uuid4().hex}"
        try:
            temporary.mkdir(parents=True)
        except OSError as error:
            raise CheckpointError(f"cannot write to {self.root}: {error.strerror}") from error
        try:
            return self._store(temporary, student)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _store(self, temporary: Path, student: Student) -> StudentCard:
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        card = replace(student.card, created=student.card.created or created)
        while True:
            versions = self.versions()
            version = f"{int(versions[-1]) + 1 if versions else 1:06d}"
            stored = save_student(temporary, replace(student, card=replace(card, version=version)))
            try:
                if self._publish(temporary, version):
                    return stored
            except OSError as error:
                raise CheckpointError(f"cannot write to {self.root}: {error.strerror}") from error

    def _publish(self, temporary: Path, version: str) -> bool:
        """Give a written folder its number; return whether no other process took it before."""
        sync_folder(temporary)  # the name must not last longer than what it names
        try:
            temporary.rename(self.root / version)
        except OSError:
            if (self.root / version).exists():
                return False
            raise
        sync_folder(self.root)
        return True

    def live(self) -> str | None:
        """Return the live version, or None while there is none."""
        return self._pointer()[0]

    def held_out_abs_rel(self, version: str) -> float | None:
        """Return a version's AbsRel on held-out frames; None where its card does not say."""
        try:
            value = self.card(version).scores.get("after", {}).get("abs_rel")
        except CheckpointError:
            return None
        return float(value) if isinstance(value, (int, float)) else None

    def history(self) -> list[str]:
        """Return the versions that were live before, the latest last."""
        return self._pointer()[1]

    def promote(
        self,
        version: str,
        *,
        force: bool = False,
        expected_live: str | EllipsisType | None = ...,
    ) -> None:
        """Make a version the live one, after checking that it loads.

        Args:
            version: what is to go live.
            force: even where the gate refused it.
            expected_live: what must be live until then (None: no student); `...` = anything.

        Raises:
            LiveChangedError: another student than `expected_live` is live.
            CheckpointError: it cannot be used; or, without `force`, the gate refused it, or it is
                a base student, which no gate has seen.
        """
        student = self.load(version)
        if student.card.status is StudentStatus.REFUSED and not force:
            raise CheckpointError(
                f"version {version} was refused by the gate ({student.card.reason}); "
                "promote it with --force if you know better"
            )
        if student.card.status is StudentStatus.BASE and not force:
            raise CheckpointError(
                f"version {version} is a base student, a start for training that no gate has "
                "passed; distil from it, or promote it with --force if you know better"
            )
        with self._exclusive():
            live, history = self._pointer()
            if live == version:
                return
            if expected_live is not ... and live != expected_live:
                raise LiveChangedError(
                    f"the live student changed from {expected_live or 'none'} to "
                    f"{live or 'none'} meanwhile; version {version} was not promoted, promote it "
                    "by name if you want it"
                )
            self._point(version, [*history, live] if live else history)

    def rollback(self, *, expected: tuple[str, str] | None = None) -> str:
        """Go back to the version that was live before and return it.

        Args:
            expected: what must be live until then, and what was before; None = anything.

        Raises:
            LiveChangedError: it is not as `expected`.
            CheckpointError: there is none, or it cannot be used any more.
        """
        with self._exclusive():
            live, history = self._pointer()
            if expected is not None and [live, *history[-1:]] != list(expected):
                raise LiveChangedError(
                    f"live is {live or 'none'} after {history[-1] if history else 'none'} and not "
                    f"{expected[0]} after {expected[1]} any more; nothing was rolled back"
                )
            if not history:
                raise CheckpointError("there is no earlier version to go back to")
            previous = history[-1]
            self.load(previous)
            self._point(previous, history[:-1])
            return previous

    def mark(self, version: str, status: StudentStatus, reason: str) -> None:
        """Write another status into a version's card, and why.

        Raises:
            CheckpointError: there is no such card, or the disk refuses.
        """
        card = replace(self.card(version), status=status, reason=reason)
        self._replace_file(self._folder(version) / CARD, card.to_json().encode())

    def clean(self) -> None:
        """Remove what killed writers left behind."""
        for leftover in self.root.glob(f"{_TEMPORARY}*"):
            if _is_alive(leftover.name[len(_TEMPORARY) :].partition("-")[0]):
                continue
            shutil.rmtree(leftover, ignore_errors=True)
            with contextlib.suppress(OSError):
                leftover.unlink()

    def _folder(self, version: str) -> Path:
        folder = self.root / version
        if not version.isdigit() or not folder.is_dir():
            known = ", ".join(self.versions()) or "none yet"
            raise CheckpointError(f"there is no student {version!r}; versions: {known}")
        return folder

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Let no other thread or process move the pointer during the block."""
        with contextlib.ExitStack() as held:  # closing gives the lock back, and so does a kill
            try:
                file = held.enter_context((self.root / _LOCK).open("w"))
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                raise CheckpointError(
                    f"cannot change what is live in {self.root}: {error.strerror}"
                ) from error
            yield

    def _pointer(self) -> tuple[str | None, list[str]]:
        path = self.root / _LIVE
        try:
            values = json.loads(path.read_text())
            return str(values["live"]), [str(v) for v in values["history"]]
        except FileNotFoundError:
            return None, []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} is damaged ({error}); remove it and promote a version by name"
            ) from error

    def _point(self, version: str, history: list[str]) -> None:
        text = json.dumps({"live": version, "history": history}) + "\n"
        self._replace_file(self.root / _LIVE, text.encode())

    def _replace_file(self, path: Path, data: bytes) -> None:
        temporary = self.root / f"{_TEMPORARY}{os.getpid()}-{uuid.uuid4().hex}"
        try:
            write_durably(temporary, data)
            temporary.replace(path)
            sync_folder(path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise CheckpointError(f"cannot write {path}: {error.strerror}") from error


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
