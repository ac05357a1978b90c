"""Which images a frame log keeps, by what is stored already, and what has to go for them.

First those that were rejected; then labelled training frames that a round trained on; then
the rest, from the split that has more than its share (1 / held_out_every for held-out): no
student could be judged without held-out frames, nor trained without the others. Within a
class the most redundant goes first: the one whose nearest other frame is nearest.

Another process may add or evict frames in the same file. The file therefore counts those
changes ('index_version'), and this memory reads again what is not known here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tiekd_ros.core.images import Thumbnail
from tiekd_ros.framelog import policy
from tiekd_ros.framelog.novelty import Distances, Link, ThumbnailIndex
from tiekd_ros.framelog.policy import ImageStats, SplitRule, read_rule, warn_of, write_rule
from tiekd_ros.framelog.records import HELD_OUT, TRAIN, Split
from tiekd_ros.framelog.schema import used_bytes
from tiekd_ros.framelog.settings import FrameLogSettings

# Where the limit was lowered, the log shrinks over several writes: none takes minutes.
_MOST_PER_WRITE = 64

_RANK = """CASE
    WHEN state = 'rejected' THEN 0
    WHEN split = 'train' AND state = 'labelled' AND last_round > 0 THEN 1
    WHEN split = :surplus THEN 2
    ELSE 3 END"""


class NoRoomError(Exception):
    """Nothing is left to evict, and the log is still too large."""


def make_room(
    connection: sqlite3.Connection, index: ThumbnailIndex, settings: FrameLogSettings, keep: int
) -> None:
    """Evict frames, never `keep`, until the log fits `max_bytes_mb`.

    Runs inside the caller's transaction.

    Raises:
        NoRoomError: the frame `keep` alone is too large.
    """
    for _ in range(_MOST_PER_WRITE):
        if used_bytes(connection) <= settings.max_bytes:
            return
        victim = _most_dispensable(connection, settings, keep)
        if victim is None:
            raise NoRoomError
        connection.execute("DELETE FROM frames WHERE id = ?", (victim,))
        save_links(connection, index.remove(victim))


def save_links(connection: sqlite3.Connection, links: Iterable[Link]) -> None:
    """Store which frame is nearest to which."""
    connection.executemany(
        "UPDATE frames SET nearest_id = ?, nearest_distance = ? WHERE id = ?",
        [
            (link.nearest_id, None if link.nearest_id is None else link.distance, link.frame_id)
            for link in links
        ],
    )


def _most_dispensable(
    connection: sqlite3.Connection, settings: FrameLogSettings, keep: int
) -> int | None:
    counts: dict[str, int] = dict(
        connection.execute("SELECT split, COUNT(*) FROM frames GROUP BY split").fetchall()
    )
    many_held_out = counts.get(HELD_OUT, 0) * settings.held_out_every > sum(counts.values())
    row = connection.execute(
        f"SELECT id FROM frames WHERE id != :keep ORDER BY {_RANK}, nearest_distance IS NULL, "
        "nearest_distance, id LIMIT 1",
        {"keep": keep, "surplus": HELD_OUT if many_held_out else TRAIN},
    ).fetchone()
    return None if row is None else int(row[0])


class NoveltyIndex:
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

    def invalidate(self, newest_id: int) -> None:
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


class Selection:
    """Compares images with what a log holds. The store's write lock guards it.

    Args:
        path: of the log, for people.
        settings: what to keep.
        evicts: whether what is redundant may go for a new frame.
    """

    def __init__(self, path: Path, settings: FrameLogSettings, *, evicts: bool) -> None:
        self.settings = settings
        """What it keeps; split as the log is, once that is known."""
        self.novelty = NoveltyIndex()
        self._path = path
        self._evicts = evicts

    def catch_up(self, connection: sqlite3.Connection) -> bool:
        """Take in what changed in the file; return whether anything had."""
        changed = self.novelty.sync(connection)
        rule, own = self.novelty.rule, SplitRule.of(self.settings)
        if rule is not None and rule != own:
            warn_of(self._path, rule, own)
            self.settings = rule.put_into(self.settings)
        return changed

    def choose(self, stats: ImageStats, stamp_ns: int) -> tuple[policy.Choice, Distances]:
        """Choose a split, or none, by time and by the views that are stored."""
        index, origin_ns = self.novelty.index, self.novelty.origin_ns
        distances = index.distances(stats.thumbnail)
        neighbours = index.neighbours(distances, self.settings.identical_distance)
        origin_ns = stamp_ns if origin_ns is None else origin_ns
        return policy.choose_split(self.settings, stamp_ns, origin_ns, neighbours), distances

    def take_in(
        self,
        connection: sqlite3.Connection,
        frame_id: int,
        stamp_ns: int,
        stats: ImageStats,
        split: Split,
        distances: Distances,
    ) -> None:
        """Take in the frame that the caller has just inserted, with what `choose` returned."""
        rule = SplitRule.of(self.settings)
        self.novelty.add(connection, frame_id, stamp_ns, stats.thumbnail, split, distances, rule)

    def fit(self, connection: sqlite3.Connection, keep: int) -> None:
        """Evict frames, never `keep`, until the log has room, in the caller's transaction.

        Raises:
            NoRoomError: nothing that may go is left.
        """
        if used_bytes(connection) <= self.settings.max_bytes:
            return
        if not self._evicts:
            raise NoRoomError
        self.catch_up(connection)
        make_room(connection, self.novelty.index, self.settings, keep)
        self.novelty.count_change(connection)
