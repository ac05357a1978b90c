"""How far recordings have been imported, kept in the frame log beside their frames."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from tiekd_ros.frames.database import Database

# Made when it is first needed: a frame log without imports has none.
_TABLE = """
CREATE TABLE IF NOT EXISTS places (
    recording TEXT PRIMARY KEY,                        -- a hash that tells recordings apart
    images INTEGER NOT NULL                            -- how many of its images were looked at
) WITHOUT ROWID
"""
_KEEP = """
INSERT INTO places VALUES (?, ?) ON CONFLICT (recording) DO UPDATE SET images = excluded.images
"""


@dataclass(frozen=True)
class Place:
    """A place in a recording."""

    recording: str
    images: int
    """How many of its images were looked at, up to here."""


def write_place(connection: sqlite3.Connection, place: Place) -> None:
    """Note a place, in the caller's transaction: a frame and its place are stored together."""
    connection.execute(_TABLE)
    connection.execute(_KEEP, (place.recording, place.images))


class Places:
    """The places in a frame log, to go on from where an import stopped."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        """Open a frame log that is there already; errors as `FrameStore`."""
        self._db = Database(path, read_only=False, timeout_s=timeout_s)

    def images(self, recording: str) -> int:
        """Return how many images of a recording were looked at; 0 where none were."""
        with self._db.read() as connection:
            if not connection.execute("PRAGMA table_info(places)").fetchall():
                return 0
            row = connection.execute(
                "SELECT images FROM places WHERE recording = ?", (recording,)
            ).fetchone()
        return 0 if row is None else int(row[0])

    def put(self, place: Place) -> None:
        """Note a place."""
        with self._db.write() as connection:
            write_place(connection, place)

    def close(self) -> None:
        """Close the file."""
        self._db.close()
