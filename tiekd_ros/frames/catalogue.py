"""The memory of the frame log: what every new frame is compared with.

Another process may add or evict frames in the same file. The file therefore counts those
changes ('index_version'), and this memory reads again what is not known here.
"""

from __future__ import annotations

import sqlite3

import numpy as np

from tiekd_ros.frames.eviction import save_links
from tiekd_ros.frames.nearest import Distances, Link, ThumbnailIndex
from tiekd_ros.frames.records import Split
from tiekd_ros.frames.split_rule import SplitRule, read_rule, write_rule
from tiekd_ros.images import Thumbnail


class Catalogue:
    """Thumbnails, the split's origin and the last stamp. The store's write lock guards it."""

    def __init__(self) -> None:
        self.index = ThumbnailIndex()
        self.origin_ns: int | None = None
        """Stamp of the store's first frame: where the time blocks start."""
        self.rule: SplitRule | None = None
        """How the store is split, once it is known."""
        self.last_ns: int | None = None
        """Stamp of the frame that was kept last."""
        self._version: int | None = None
        self._newest_id = 0

    def sync(self, connection: sqlite3.Connection) -> bool:
        """Read what changed in the file; return whether anything had."""
        version = _meta(connection, "index_version")
        if version == self._version:
            return False
        self.index = self._read_index(connection)
        self.origin_ns = _meta(connection, "origin_ns")
        self.rule = read_rule(connection)
        newest = connection.execute(
            "SELECT id, stamp_ns FROM frames ORDER BY id DESC LIMIT 1"
        ).fetchone()
        self._newest_id, self.last_ns = newest if newest is not None else (0, None)
        self._version = version
        return True

    def add(
        self,
        connection: sqlite3.Connection,
        frame_id: int,
        stamp_ns: int,
        thumbnail: Thumbnail,
        split: Split,
        distances: Distances,
        rule: SplitRule,
    ) -> None:
        """Take in the frame that the caller has just inserted, and store the links.

        The first one brings the split's origin and `rule` with it.
        """
        save_links(connection, self.index.add(frame_id, thumbnail, split, distances))
        if self.origin_ns is None:
            connection.execute("INSERT INTO meta VALUES ('origin_ns', ?)", (stamp_ns,))
            self.origin_ns = stamp_ns
        if self.rule is None:
            write_rule(connection, rule)
            self.rule = rule
        self.last_ns = stamp_ns
        self._newest_id = frame_id
        self.count_change(connection)

    def count_change(self, connection: sqlite3.Connection) -> None:
        """Tell other processes that frames came or went."""
        connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'index_version'")
        self._version = _meta(connection, "index_version")

    def distrust(self, newest_id: int) -> None:
        """Forget what a transaction did that was rolled back; `newest_id` was there before it."""
        # The id of a frame that was rolled back is given to the next one.
        self._newest_id = newest_id
        self._version = None

    @property
    def newest_id(self) -> int:
        """Id of the newest known frame; 0 where there is none."""
        return self._newest_id

    def _read_index(self, connection: sqlite3.Connection) -> ThumbnailIndex:
        index = ThumbnailIndex()
        for frame_id, split, nearest_id, distance in connection.execute(
            "SELECT id, split, nearest_id, nearest_distance FROM frames ORDER BY id"
        ).fetchall():
            if frame_id in self.index and frame_id <= self._newest_id:
                pixels = self.index.thumbnail_of(frame_id)
            else:
                blob = connection.execute(
                    "SELECT thumbnail FROM images WHERE frame_id = ?", (frame_id,)
                ).fetchone()[0]
                pixels = np.frombuffer(blob, np.uint8)
            link = Link(frame_id, nearest_id, np.inf if distance is None else distance)
            index.put(link, pixels, split)
        return index


def _meta(connection: sqlite3.Connection, key: str) -> int | None:
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return None if row is None else int(row[0])
