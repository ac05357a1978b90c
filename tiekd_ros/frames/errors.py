"""What can go wrong with the frame log, one type for each way out."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tiekd_ros.errors import TiekdError

_NO_SPACE_LEFT_BYTES = 1_000_000


class FrameStoreError(TiekdError):
    """The frame log cannot do what was asked."""


class StoreCorruptError(FrameStoreError):
    """The file is no frame log, or a damaged one. It is left exactly as it was found."""


class StoreLockedError(FrameStoreError):
    """Another program holds the frame log for longer than `lock_timeout_s`."""


class StoreFullError(FrameStoreError):
    """The disk is full, or one frame with its label exceeds `max_bytes_mb`."""


class StoreVersionError(FrameStoreError):
    """A newer version of this package wrote the file."""


class UndecodableFrameError(FrameStoreError):
    """One frame's image or label is damaged; the rest of the frame log is sound."""


class UnknownFrameError(FrameStoreError):
    """No frame of that id (it may have been evicted), or it has no label."""


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn every sqlite3 error of the block into an error of this room."""
    try:
        yield
    except sqlite3.Error as error:
        raise _translate(error, path) from error


def corrupt(path: Path, detail: str) -> StoreCorruptError:
    """Make the error for a file that cannot be read as a frame log."""
    return StoreCorruptError(
        f"{path} cannot be read as a frame log ({detail}). Nothing in it was changed: move it "
        "away (with its -wal and -shm files) and start again, or restore a copy"
    )


def _translate(error: sqlite3.Error, path: Path) -> FrameStoreError:
    # By message: Python 3.10 does not know sqlite_errorcode, and SQLite's texts are fixed.
    text = str(error)
    if "locked" in text:
        return StoreLockedError(
            f"{path} is held by another program ({text}); close it, or raise lock_timeout_s"
        )
    if "not a database" in text or "malformed" in text or "no such" in text:
        return corrupt(path, text)
    if "full" in text or ("I/O" in text and _no_space(path)):
        return StoreFullError(
            f"no space left for {path} ({text}); free some disk space: nothing that was stored "
            "is lost, and logging goes on by itself"
        )
    if "unable to open" in text:
        return FrameStoreError(
            f"cannot open {path} ({text}): its folder must exist and be writable"
        )
    return FrameStoreError(f"{path}: {text}; check the disk and the file's permissions")


def _no_space(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < _NO_SPACE_LEFT_BYTES
    except OSError:
        return False
