"""A folder of teacher maps that is written bit by bit, whole file by whole file."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from tiekd_ros.core.errors import BadDepthError, TiekdError
from tiekd_ros.core.images import DepthMap
from tiekd_ros.datasets import DatasetError, MapFormat
from tiekd_ros.datasets.items import TEACHER_NOTE
from tiekd_ros.teacher.protocol import TeacherIdentity

_LOCK = ".lock"
_WRITING = ".writing-"


class LabelFolderError(TiekdError):
    """Labels cannot be written to a folder; the message says why and what would do."""


class MapFolder:
    """One teacher's maps of one data set.

    A map is written to a temporary name, synced and renamed: a process killed at any moment
    leaves whole maps only. `teacher.json` says who made them.
    """

    def __init__(self, path: Path, map_format: MapFormat) -> None:
        """Nothing is read or made yet."""
        self.path = path
        self.map_format = map_format

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Make the folder, and let no other process write to it during the block.

        Raises:
            LabelFolderError: another process does, or the folder cannot be made.
        """
        with contextlib.ExitStack() as held:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                lock = held.enter_context((self.path / _LOCK).open("w"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LabelFolderError(
                    f"another process is labelling into {self.path}; wait for it, or end it"
                ) from None
            except OSError as error:
                raise LabelFolderError(
                    f"cannot write to {self.path}: {error.strerror}; give another folder with "
                    "--output"
                ) from error
            yield

    def claim(self, teacher: TeacherIdentity, files: Iterable[str], *, overwrite: bool) -> None:
        """Make the folder this teacher's, or go on where this teacher stopped.

        Args:
            teacher: who is going to label.
            files: the names of all maps of the data set.
            overwrite: drop those of them that are there, if `teacher.json` says whose they are.

        Raises:
            LabelFolderError: the maps that are there are another teacher's, and `overwrite`
                is off or would leave some of them; or nothing says whose they are.
        """
        note = self.path / TEACHER_NOTE
        wanted = self._note_of(teacher)
        names, there = set(files), self._maps()
        if there and not note.exists():
            raise LabelFolderError(  # never overwritten: they may be images, or measured depth
                f"{self.path} holds files like {there[0]} and no {TEACHER_NOTE} that says whose "
                "they are; give another folder with --output, or move them away"
            )
        if overwrite:
            found = self._read_note_or_nothing(note)
            others = [name for name in there if name not in names]
            if others and found != wanted:
                raise LabelFolderError(
                    f"{self.path} also holds {len(others)} maps of images that are not labelled "
                    f"now (such as {others[0]}), made by {_named(found)}: they would stay beside "
                    f"those of {_named(wanted)}, and one folder holds one teacher's; give another "
                    "with --output, label all those images at once, or delete the folder"
                )
            for name in names:
                (self.path / name).unlink(missing_ok=True)
        elif (found := self._read_note(note)) not in (None, wanted):
            raise LabelFolderError(
                f"{self.path} holds maps of {_named(found)}, not of {_named(wanted)}: one folder "
                "holds one teacher's; give another with --output, or replace all of them with "
                "--overwrite"
            )
        self._write(note, (json.dumps(wanted, indent=2) + "\n").encode())

    def has(self, name: str) -> bool:
        """Tell whether a map is there and whole; a damaged one is not."""
        path = self.path / name
        if not path.is_file():
            return False
        try:
            return bool(np.isfinite(self.map_format.read(path)).any())
        except DatasetError:
            return False

    def put(self, name: str, depth: DepthMap) -> None:
        """Write a map, metres, NaN = unknown; an earlier one is replaced.

        Raises:
            BadDepthError: not one pixel lies in the range that can be stored.
            LabelFolderError: the disk refuses.
        """
        limit = self.map_format.max_depth_m
        if not bool(((depth > 0) & (depth <= limit)).any()):
            raise BadDepthError(
                f"no depth between 0 and {limit:g} m, which this layout's maps can hold"
            )
        self._write(self.path / name, self.map_format.encode(depth))

    def _note_of(self, teacher: TeacherIdentity) -> dict[str, str]:
        return {
            "teacher": teacher.name,
            "version": teacher.version,
            "units": self.map_format.units,
        }

    def _maps(self) -> list[str]:
        """Return the names of all files that may be maps, of whatever images."""
        return sorted(
            path.name for path in self.path.glob("*.png") if not path.name.startswith(".")
        )

    def _read_note_or_nothing(self, path: Path) -> dict[str, str] | None:
        with contextlib.suppress(LabelFolderError):
            return self._read_note(path)
        return None

    def _read_note(self, path: Path) -> dict[str, str] | None:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return {str(key): str(value) for key, value in values.items()}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, AttributeError) as error:
            raise LabelFolderError(
                f"{path} cannot be read ({error}); replace the folder's maps with --overwrite"
            ) from error

    def _write(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(_WRITING + path.name)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise LabelFolderError(
                f"cannot write {path}: {error.strerror}; make room and run the command again"
            ) from error


def _named(note: dict[str, str] | None) -> str:
    if note is None:
        return "nobody knows whom"
    return f"{note.get('teacher')} {note.get('version')} ({note.get('units')})"
