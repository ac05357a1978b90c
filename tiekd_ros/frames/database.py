"""Two connections to one frame log: one writes, one reads, each behind its own lock.

Two and not one, because a writer may have to wait seconds for another program's write, and
counting frames for the diagnostics or loading one for training must not wait with it: in
WAL mode a reader waits for nobody.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tiekd_ros.frames import schema
from tiekd_ros.frames.errors import FrameStoreError, translated


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
            first = schema.connect(path, read_only=read_only, timeout_s=timeout_s)
            try:
                schema.prepare(first, path, read_only=read_only, timeout_s=timeout_s)
                self._file = _identity(path)
                if read_only:
                    self._reader = first
                    return
                self._reader = schema.connect(path, read_only=True, timeout_s=timeout_s)
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
        # Else frames would go into a file that nobody can find again.
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
