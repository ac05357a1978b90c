"""The state folder: where everything that outlives a process is kept."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tiekd_ros.errors import TiekdError


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
