"""How far recordings have been imported, kept in the frame log beside their frames."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from tiekd_ros.closing import Closing
from tiekd_ros.frames.database import Database

# Made when it is first needed: a frame log without imports has none.
_TABLE = """
CREATE TABLE IF NOT EXISTS file_places (
    recording TEXT PRIMARY KEY,                        -- a hash that tells files apart
    images INTEGER NOT NULL,                           -- how many of its images were looked at
    mark INTEGER NOT NULL                           -- tells the last one of them from others
) WITHOUT ROWID
"""
_KEEP = """
INSERT INTO file_places VALUES (?, ?, ?) ON CONFLICT (recording)
DO UPDATE SET images = excluded.images, mark = excluded.mark
"""


@dataclass(frozen=True)
class Place:
    """A place in one file of a recording."""

    recording: str
    """What tells the file from others: a hash."""
    images: int
    """How many of its images were looked at, up to here."""
    mark: int
    """What tells the last one of them from others: when it was recorded."""


def write_place(connection: sqlite3.Connection, place: Place) -> None:
    """Note a place, in the caller's transaction: a frame and its place are stored together."""
    connection.execute(_TABLE)
    connection.execute(_KEEP, (place.recording, place.images, place.mark))


class Places(Closing):
    """The places in a frame log, to go on from where an import stopped."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        """Open a frame log that is there already; errors as `FrameStore`."""
        self._db = Database(path, read_only=False, timeout_s=timeout_s)

    def find(self, recording: str) -> Place | None:
        """Return the place in a file; None where no image of it was looked at."""
        with self._db.read() as connection:
            if not connection.execute("PRAGMA table_info(file_places)").fetchall():
                return None
            row = connection.execute(
                "SELECT images, mark FROM file_places WHERE recording = ?", (recording,)
            ).fetchone()
        return None if row is None else Place(recording, int(row[0]), int(row[1]))

    def put(self, place: Place) -> None:
        """Note a place."""
        with self._db.write() as connection:
            write_place(connection, place)

    def close(self) -> None:
        """Close the file."""
        self._db.close()
