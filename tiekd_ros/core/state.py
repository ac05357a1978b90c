"""The state folder: where everything that outlives a process is kept."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tiekd_ros.core.errors import TiekdError

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class StateFolder:
    """Paths inside one state folder (frame log, students, rounds, logs)."""

    root: Path

    @classmethod
    def resolve(cls, path: str | Path | None = None) -> StateFolder:
        """Return the folder `path`, or `$XDG_STATE_HOME/tiekd` where none is given."""
        if path is None or str(path) == "":
            base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
            path = Path(base) / "tiekd"
        return cls(Path(path).expanduser().absolute())

    @property
    def frames(self) -> Path:
        """The frame log, one SQLite file."""
        return self.root / "frames.sqlite3"

    @property
    def students(self) -> Path:
        """The registry of student versions."""
        return self.root / "students"

    @property
    def rounds(self) -> Path:
        """One JSON record a distillation round."""
        return self.root / "rounds"

    @property
    def logs(self) -> Path:
        """Log files of child processes."""
        return self.root / "logs"

    def create(self) -> StateFolder:
        """Make the folders that are missing.

        Raises:
            TiekdError: a folder cannot be made or written to.
        """
        for folder in (self.root, self.students, self.rounds, self.logs):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise TiekdError(
                    f"cannot make the state folder {folder}: {error.strerror}; give another one "
                    "with --state (ROS parameter state_dir)"
                ) from error
        if not os.access(self.root, os.W_OK):
            raise TiekdError(f"the state folder {self.root} is not writable; give another one")
        return self

    @contextlib.contextmanager
    def claimed(self, by: str) -> Iterator[None]:
        """Keep the folder to one program of a kind; the system frees it when the process dies.

        On a file system without locks (some network mounts) it is used all the same, with a
        warning.

        Args:
            by: the kind of program, such as `companion`.

        Raises:
            TiekdError: another one holds it; names its process.
        """
        path = self.root / f".{by}.lock"
        try:
            file = path.open("a+")
        except OSError as error:
            raise TiekdError(f"cannot write {path}: {error.strerror}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise TiekdError(
                    f"the state folder {self.root} belongs to another {by} (process "
                    f"{file.read().strip() or 'unknown'}): end that one, or give each one a folder "
                    "of its own with --state (ROS parameter state_dir)"
                ) from error
            except OSError as error:
                _LOG.warning(
                    "the file system of %s cannot lock (%s), so that another %s on this folder "
                    "would not be noticed: put state_dir on a local disk",
                    self.root,
                    error.strerror,
                    by,
                )
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield
