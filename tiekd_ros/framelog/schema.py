"""The SQLite file of a frame log: errors, tables, and its two connections.

One writes, one reads, each behind its own lock.

Two and not one, because a writer may have to wait seconds for another program's write, and
counting frames for the diagnostics or loading one for training must not wait with it: in
WAL mode a reader never waits.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tiekd_ros.core.errors import TiekdError

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


VERSION = 1
_APPLICATION_ID = 0x746B4644  # "tkFD": tells a frame log from other programs' SQLite files
_CACHE_KIB = 1024  # a frame is read once, not again: a large page cache would be wasted
_RETRY_S = 0.01

# Ids are never used again (AUTOINCREMENT): a round may still name a frame that was evicted.
# Images and labels lie in tables of their own, so that counting frames reads none of them.
_TABLES = """
CREATE TABLE meta (
    key TEXT PRIMARY KEY,      -- 'origin_ns', 'block_ns', 'held_out_every', 'index_version'
    value INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO meta VALUES ('index_version', 0);
CREATE TABLE frames (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    stamp_ns INTEGER NOT NULL,
    camera_frame TEXT NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    fx REAL, fy REAL, cx REAL, cy REAL,                -- pixels; all NULL where unknown
    split TEXT NOT NULL CHECK (split IN ('train', 'held_out')),
    state TEXT NOT NULL CHECK (state IN ('logged', 'labelled', 'rejected')),
    reason TEXT NOT NULL DEFAULT '',                   -- why it was rejected
    sharpness REAL NOT NULL,
    exposure REAL NOT NULL,
    novelty REAL,                                      -- NULL: the store was empty
    student_confidence REAL,
    teacher_name TEXT,
    teacher_version TEXT,
    last_round INTEGER,                                -- that trained on its label; see rows.py
    byte_size INTEGER NOT NULL,                        -- of all its blobs
    nearest_id INTEGER,                                -- the nearest other frame, and how far
    nearest_distance REAL
);
CREATE INDEX frames_by_state ON frames (state, id);
CREATE TABLE images (
    frame_id INTEGER PRIMARY KEY REFERENCES frames (id) ON DELETE CASCADE,
    thumbnail BLOB NOT NULL,                           -- 24 x 32 grey levels
    jpeg BLOB NOT NULL
);
CREATE TABLE labels (
    frame_id INTEGER PRIMARY KEY REFERENCES frames (id) ON DELETE CASCADE,
    depth BLOB NOT NULL,                               -- 16-bit PNG, metres * 256, 0 = unknown
    confidence BLOB                                    -- 8-bit PNG, 255 = certain
);
"""


def connect(path: Path, *, read_only: bool, timeout_s: float) -> sqlite3.Connection:
    """Open one connection to a file that is known to be a frame log, or to become one."""
    mode = "ro" if read_only else "rwc"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=timeout_s,
        isolation_level=None,  # transactions are begun and ended by hand
        check_same_thread=False,  # a lock guards each connection
    )
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    connection.execute("PRAGMA foreign_keys = ON")
    # FULL costs one fsync a commit, a few times a second and never in the image's way. It
    # keeps what a power cut would take with NORMAL: the last labels, which were dear, and
    # the last frames, which do not come again. (Neither can damage the file.)
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def prepare(
    connection: sqlite3.Connection, path: Path, *, read_only: bool, timeout_s: float
) -> None:
    """Check that the file is a frame log of this version; make a new file into one.

    Nothing is written before the file has proved to be new or a frame log.

    Raises:
        StoreCorruptError: it is another program's file, or a truncated one.
        StoreVersionError: a newer version of this package wrote it.
        FrameStoreError: it is empty and may only be read, or lies on a network drive.
    """
    connection.execute("BEGIN")  # one state of the file: another process may be making it
    try:
        is_new = _is_new(connection, path)
        _check_length(connection, path)
    finally:
        if connection.in_transaction:
            connection.execute("COMMIT")
    if read_only:
        if is_new:
            raise FrameStoreError(f"{path} is empty: nothing has been logged yet")
        return
    mode = _switch_to_wal(connection, timeout_s)
    if mode != "wal":
        raise FrameStoreError(
            f"{path} lies on a drive that cannot share a write-ahead log (journal mode {mode}); "
            "put the state folder on a local disk"
        )
    if is_new:
        _create(connection, path)


def _check_length(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a file that ends within a page: SQLite would read the rest of it as zeros."""
    # By stat alone: opening and closing the file here would drop the locks that this process
    # holds on it through SQLite (POSIX locks belong to a process, not to a descriptor).
    page_bytes = int(connection.execute("PRAGMA page_size").fetchone()[0])
    size = path.stat().st_size
    if size % page_bytes == 0:
        return
    log = path.with_name(path.name + "-wal")
    if not log.exists() or log.stat().st_size == 0:  # else the missing part is in the log
        raise corrupt(path, f"truncated: its {size} bytes are no whole number of pages")


def _switch_to_wal(connection: sqlite3.Connection, timeout_s: float) -> str:
    # SQLite's own timeout does not cover this switch, which two processes that open a new
    # file at once both try.
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return str(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() >= deadline:
                raise
            time.sleep(_RETRY_S)


def _is_new(connection: sqlite3.Connection, path: Path) -> bool:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    application = int(connection.execute("PRAGMA application_id").fetchone()[0])
    tables = int(connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0])
    if (version, application, tables) == (0, 0, 0):
        return True
    if application != _APPLICATION_ID:
        raise corrupt(path, "another program's SQLite file")
    if version > VERSION:
        raise StoreVersionError(
            f"{path} was written by a newer version of tiekd_ros (its schema is {version}, this "
            f"program knows {VERSION}); update tiekd_ros, or give another state folder"
        )
    return False


def _create(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        if _is_new(connection, path):  # no other process was faster
            for statement in _TABLES.split(";\n"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


class Database:
    """An open frame log file; every method may be called from any thread."""

    def __init__(self, path: Path, *, read_only: bool, timeout_s: float) -> None:
        self.path = path
        self.write_lock = threading.RLock()
        self._read_lock = threading.Lock()
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        if read_only and not path.exists():
            raise FrameStoreError(f"there is no frame log at {path}; nothing has been logged yet")
        with translated(path):
            first = connect(path, read_only=read_only, timeout_s=timeout_s)
            try:
                prepare(first, path, read_only=read_only, timeout_s=timeout_s)
                self._file = _identity(path)
                if read_only:
                    self._reader = first
                    return
                self._reader = connect(path, read_only=True, timeout_s=timeout_s)
                self._writer = first
            except BaseException:
                first.close()
                raise

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Run the block in one transaction: all of it is stored, or nothing."""
        with self.write_lock, translated(self.path):
            writer = self._writer
            if writer is None:
                raise FrameStoreError(f"{self.path} is closed, or open for reading only")
            self._check_in_place()
            writer.execute("BEGIN IMMEDIATE")
            try:
                yield writer
                writer.execute("COMMIT")
            except BaseException:
                if writer.in_transaction:  # SQLite itself rolls back when a disk is full
                    writer.execute("ROLLBACK")
                raise

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Run the block on one consistent state of the file."""
        with self._read_lock, translated(self.path):
            reader = self._reader
            if reader is None:
                raise FrameStoreError(f"{self.path} is closed")
            reader.execute("BEGIN")
            try:
                yield reader
            finally:
                if reader.in_transaction:  # a damaged file may have ended it
                    reader.execute("COMMIT")

    def close(self) -> None:
        """Close both connections; waits for a write that is under way."""
        with self.write_lock, self._read_lock:
            connections = (self._reader, self._writer)
            self._reader = self._writer = None
            with translated(self.path):
                for connection in connections:
                    if connection is not None:
                        connection.close()

    def _check_in_place(self) -> None:
        # Else frames would go into a file without a name.
        if _identity(self.path) != self._file:
            raise FrameStoreError(
                f"{self.path} was moved or deleted while it was open; start the program again"
            )


def used_bytes(connection: sqlite3.Connection) -> int:
    """Return the space in use inside the file, in whole pages, free ones not counted."""
    pages, free, size = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return (status.st_dev, status.st_ino)
