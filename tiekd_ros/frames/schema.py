"""The frame log's tables, and opening a file that holds them (and no other file)."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from tiekd_ros.frames.errors import FrameStoreError, StoreVersionError, corrupt

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
