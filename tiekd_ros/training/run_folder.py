"""The folder of one run: its settings, its lock, its students.

Layout: `run.json` (settings), `snapshots/`, `tensorboard/`, `metrics.jsonl`, `students/NNNNNNNN`
(students after so many steps) and the links `student` (the best one) and `student_last`, whose
folders have the format of the registry.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.method.stepping import TrainingError
from tiekd_ros.student import Student, StudentCard, save_student
from tiekd_ros.student.checkpoint import replace_durably, sync_folder

SETTINGS = "run.json"
BEST, LAST = "student", "student_last"
_LOCK = ".lock"
_OURS = {SETTINGS, _LOCK}
_held: set[IO[str]] = set()


def _let_go() -> None:
    """Close the locks that a forked reader got: it may outlive the training it reads for."""
    for lock in _held:
        lock.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


class RunFolderError(TiekdError):
    """A run cannot start, or go on, in this folder."""


class RunFolder:
    """Where one run keeps everything; used by one training at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def snapshots(self) -> Path:
        """The folder of snapshots."""
        return self.root / "snapshots"

    @property
    def best(self) -> Path:
        """The best student: a folder with weights and card."""
        return self.root / BEST

    @contextlib.contextmanager
    def opened(self, settings: Mapping[str, Any], *, resume: bool) -> Iterator[None]:
        """Hold the folder for the run with these settings (plain values by group and name).

        Raises:
            RunFolderError: another training uses it, it is not empty and `resume` is not set,
                or it holds a run with other settings. What was refused, or killed, before it
                wrote a snapshot or a student is no run: it does not count.
        """
        with contextlib.ExitStack() as held:
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                lock = held.enter_context((self.root / _LOCK).open("w"))
            except OSError as error:
                raise RunFolderError(
                    f"cannot write to {self.root}: {error.strerror}; give another --output"
                ) from error
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunFolderError(
                    f"another training is running in {self.root}; wait for it or give another "
                    "--output"
                ) from error
            _held.add(lock)
            held.callback(_held.discard, lock)
            self._begin(settings, resume)
            yield

    def _begin(self, settings: Mapping[str, Any], resume: bool) -> None:
        path = self.root / SETTINGS
        if path.exists() and not self._is_leftover(path, settings):
            if not resume:
                raise RunFolderError(
                    f"{self.root} holds a run already: continue it with --resume, or give another "
                    "--output"
                )
            self._compare(path, settings)
            return
        others = sorted({p.name for p in self.root.iterdir()} - _OURS)
        others = [name for name in others if not name.startswith(".writing-")]
        if others and not path.exists():
            raise RunFolderError(
                f"{self.root} is not empty (it holds {', '.join(others[:3])}) and no run of "
                "tiekd train; give an empty or new folder with --output"
            )
        self._write(SETTINGS, json.dumps(settings, indent=2) + "\n")

    def _is_leftover(self, path: Path, settings: Mapping[str, Any]) -> bool:
        """Return whether a file of settings is ours, of a training that wrote nothing else."""
        try:
            before = json.loads(path.read_text())
        except (OSError, ValueError):
            return False
        ours = isinstance(before, dict) and before.keys() == settings.keys()
        students = self.root / "students"
        return ours and not (_has_numbers(self.snapshots) or _has_numbers(students))

    def _compare(self, path: Path, settings: Mapping[str, Any]) -> None:
        try:
            before = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{path} cannot be read ({error}); train anew") from error
        plain = json.loads(json.dumps(settings))
        differences = _differences(before, plain)
        if differences:
            raise RunFolderError(
                f"the run in {self.root} cannot continue with other settings: "
                f"{'; '.join(differences[:5])}. Give the same, or train into another --output"
            )

    def export(self, student: Student, step: int, *, best: bool) -> StudentCard:
        """Write the student after `step` steps as the last and, if so, the best one.

        Raises:
            CheckpointError: a weight is not finite, or the disk refuses.
            TrainingError: the disk refuses.
        """
        folder = self.root / "students" / f"{step:08d}"
        temporary = folder.with_name(f".writing-{os.getpid()}")
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            card = save_student(temporary, student)
            sync_folder(temporary)
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed right after it
            temporary.rename(folder)
            sync_folder(folder.parent)  # the links must not last longer than what they name
            for link in (LAST, BEST) if best else (LAST,):
                self._link(link, folder)
            sync_folder(self.root)
        except OSError as error:
            raise TrainingError(
                f"cannot write the student to {folder}: {error.strerror}; make room, then "
                "continue with --resume"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._remove_unused(folder.parent)
        return card

    def _link(self, name: str, folder: Path) -> None:
        temporary = self.root / f".writing-{os.getpid()}-{name}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(Path(folder.parent.name) / folder.name)
        temporary.replace(self.root / name)

    def _remove_unused(self, students: Path) -> None:
        used = {(self.root / name).resolve() for name in (BEST, LAST)}
        for folder in students.iterdir():
            if folder.resolve() not in used:
                shutil.rmtree(folder, ignore_errors=True)

    def _write(self, name: str, text: str) -> None:
        try:
            replace_durably(self.root / name, text.encode())
        except OSError as error:
            raise RunFolderError(
                f"cannot write {self.root / name}: {error.strerror}; give another --output"
            ) from error


def _has_numbers(folder: Path) -> bool:
    """Return whether a folder holds anything whole, which has a number for a name."""
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Name what differs between two nested tables."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            found
            for key in [*before, *(k for k in now if k not in before)]
            for found in _differences(
                before.get(key), now.get(key), f"{name}.{key}" if name else str(key)
            )
        ]
    return [] if before == now else [f"{name} was {before!r}, now {now!r}"]
