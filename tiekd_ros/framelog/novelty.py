"""Novelty of a frame against the stored ones, the choice of its split, and eviction.

Shapes: N stored frames, P = 768 pixels of a thumbnail.

A frame's redundancy, its distance to the nearest other stored frame, is kept up to date: a new
frame is compared with the N others once (10 ms at N = 30 000), and a removed one makes only those
search again whose nearest it was. Eviction: rejected frames go first; then labelled training
frames that a round trained on; then the rest, from the split that has more than its share; within
a class the most redundant. The file counts changes by other processes ('index_version').
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tiekd_ros.core.images import Thumbnail
from tiekd_ros.framelog.policy import (
    Choice,
    ImageStats,
    Neighbours,
    SplitRule,
    choose_split,
    read_rule,
    write_rule,
)
from tiekd_ros.framelog.records import HELD_OUT, TRAIN, Split
from tiekd_ros.framelog.schema import used_bytes
from tiekd_ros.framelog.settings import FrameLogSettings

_LOG = logging.getLogger(__name__)
_CHUNK = 1024  # rows compared at a time: fits the processor's cache
_NO_FRAME = -1

Distances = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Link:
    """A frame's nearest other frame; None and infinity where it is alone."""

    frame_id: int
    nearest_id: int | None
    distance: float


class ThumbnailIndex:
    """Thumbnails by frame id. Not thread-safe: the store's lock guards it."""

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}
        self._ids = np.empty(0, np.int64)  # (capacity,)
        self._thumbnails = np.empty((0, 0), np.uint8)  # (capacity, P)
        self._held_out = np.empty(0, np.bool_)
        self._nearest_ids = np.empty(0, np.int64)
        self._nearest = np.empty(0, np.float32)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, frame_id: int) -> bool:
        return frame_id in self._rows

    def thumbnail_of(self, frame_id: int) -> npt.NDArray[np.uint8]:
        """Return a stored thumbnail as (P,) grey levels."""
        row: npt.NDArray[np.uint8] = self._thumbnails[self._rows[frame_id]]
        return row

    def distances(self, thumbnail: Thumbnail) -> Distances:
        """Return the mean absolute grey-level difference to every stored thumbnail, (N,).

        Equal to `images.thumbnail_distances`, in a seventh of its time on many thumbnails.
        """
        return self._distances_to(_flat(thumbnail))

    def neighbours(self, distances: Distances, identical_distance: float) -> Neighbours:
        """Summarise what `distances` returned."""
        if not len(distances):
            return Neighbours(float("inf"), frozenset())
        flags = self._held_out[: len(self)][distances <= identical_distance]
        splits: set[Split] = {HELD_OUT if flag else TRAIN for flag in np.unique(flags)}
        return Neighbours(float(distances.min()), frozenset(splits))

    def add(
        self, frame_id: int, thumbnail: Thumbnail, split: Split, distances: Distances
    ) -> list[Link]:
        """Add a frame, given its distances to the others; return all links that changed."""
        count = len(self)
        link = Link(frame_id, None, float("inf"))
        closer = np.flatnonzero(distances < self._nearest[:count])
        self._nearest_ids[closer] = frame_id
        self._nearest[closer] = distances[closer]
        if count:
            best = int(distances.argmin())
            link = Link(frame_id, int(self._ids[best]), float(distances[best]))
        self.put(link, _flat(thumbnail), split)
        return [link, *(self._link(int(row)) for row in closer)]

    def put(self, link: Link, pixels: npt.NDArray[np.uint8], split: Split) -> None:
        """Put a frame in whose link is known; `pixels` is (P,)."""
        row = len(self)
        if row == len(self._ids):
            self._grow(len(pixels))
        self._rows[link.frame_id] = row
        self._ids[row] = link.frame_id
        self._thumbnails[row] = pixels
        self._held_out[row] = split == HELD_OUT
        self._nearest_ids[row] = _NO_FRAME if link.nearest_id is None else link.nearest_id
        self._nearest[row] = link.distance

    def remove(self, frame_id: int) -> list[Link]:
        """Remove a frame; return all links that changed."""
        row, last = self._rows.pop(frame_id), len(self)
        for array in self._arrays():
            array[row] = array[last]  # `last`: the row that the pop left over
        if row != last:
            self._rows[int(self._ids[row])] = row
        orphans = np.flatnonzero(self._nearest_ids[: len(self)] == frame_id)
        return [self._search(int(orphan)) for orphan in orphans]

    def _search(self, row: int) -> Link:
        distances = self._distances_to(self._thumbnails[row])
        distances[row] = np.inf
        best = int(distances.argmin())
        self._nearest[row] = distances[best]
        alone = not np.isfinite(distances[best])
        self._nearest_ids[row] = _NO_FRAME if alone else self._ids[best]
        return self._link(row)

    def _link(self, row: int) -> Link:
        nearest_id = int(self._nearest_ids[row])
        return Link(
            int(self._ids[row]),
            None if nearest_id == _NO_FRAME else nearest_id,
            float(self._nearest[row]),
        )

    def _distances_to(self, pixels: npt.NDArray[np.uint8]) -> Distances:
        count = len(self)
        result = np.empty(count, np.float32)
        for start in range(0, count, _CHUNK):
            rows = self._thumbnails[start : min(start + _CHUNK, count)]
            # |a - b| without leaving uint8
            sums = (np.maximum(rows, pixels) - np.minimum(rows, pixels)).sum(1, dtype=np.int32)
            result[start : start + len(rows)] = sums / np.float32(len(pixels))
        return result

    def _grow(self, pixels: int) -> None:
        old = self._arrays()
        capacity = max(256, 2 * len(self._ids))
        self._ids = np.empty(capacity, np.int64)
        self._thumbnails = np.empty((capacity, pixels), np.uint8)
        self._held_out = np.empty(capacity, np.bool_)
        self._nearest_ids = np.empty(capacity, np.int64)
        self._nearest = np.empty(capacity, np.float32)
        for new, array in zip(self._arrays(), old, strict=True):
            if len(array):
                new[: len(array)] = array

    def _arrays(self) -> tuple[npt.NDArray[np.generic], ...]:
        return (self._ids, self._thumbnails, self._held_out, self._nearest_ids, self._nearest)


def _flat(thumbnail: Thumbnail) -> npt.NDArray[np.uint8]:
    # A thumbnail's grey levels are whole numbers: nothing is lost.
    flat: npt.NDArray[np.uint8] = thumbnail.astype(np.uint8).reshape(-1)
    return flat


# Where the limit was lowered, the log shrinks over several writes: none takes minutes.
_MOST_EVICTIONS = 64
_RANK = """CASE
    WHEN state = 'rejected' THEN 0
    WHEN split = 'train' AND state = 'labelled' AND last_round > 0 THEN 1
    WHEN split = :surplus THEN 2
    ELSE 3 END"""


class NoRoomError(Exception):
    """Nothing is left to evict, and the log is still too large."""


class NoveltyIndex:
    """State of a frame log that adding a frame needs. The store's write lock guards it.

    Args:
        path: of the log, for the log line.
        settings: what to keep.
        evicts: whether redundant frames may go for a new one.
    """

    def __init__(self, path: Path, settings: FrameLogSettings, *, evicts: bool) -> None:
        self.settings = settings
        """Limits of the log; split as the log is, once that is known."""
        self.last_ns: int | None = None
        """Stamp of the frame that was kept last."""
        self.newest_id = 0
        """Id of the newest known frame; 0 where there is none."""
        self._path = path
        self._evicts = evicts
        self._thumbnails = ThumbnailIndex()
        self._origin_ns: int | None = None  # stamp of the first frame: the time blocks start there
        self._rule: SplitRule | None = None  # how the log is split, once a frame settled it
        self._version: int | None = None

    def sync(self, connection: sqlite3.Connection) -> bool:
        """Read what changed in the file; return whether anything had."""
        version = _read_meta(connection, "index_version")
        if version == self._version:
            return False
        self._thumbnails = self._read_thumbnails(connection)
        self._origin_ns = _read_meta(connection, "origin_ns")
        self._take_rule(read_rule(connection))
        newest = connection.execute(
            "SELECT id, stamp_ns FROM frames ORDER BY id DESC LIMIT 1"
        ).fetchone()
        self.newest_id, self.last_ns = newest if newest is not None else (0, None)
        self._version = version
        return True

    def choose(self, stats: ImageStats, stamp_ns: int) -> tuple[Choice, Distances]:
        """Choose a split for an image, or none; return also its distances to the stored ones."""
        distances = self._thumbnails.distances(stats.thumbnail)
        neighbours = self._thumbnails.neighbours(distances, self.settings.identical_distance)
        origin_ns = stamp_ns if self._origin_ns is None else self._origin_ns
        return choose_split(self.settings, stamp_ns, origin_ns, neighbours), distances

    def add(
        self,
        connection: sqlite3.Connection,
        frame_id: int,
        stamp_ns: int,
        thumbnail: Thumbnail,
        split: Split,
        distances: Distances,
    ) -> None:
        """Add a frame that was inserted in the caller's transaction.

        The log's first frame settles where its time blocks start and how it is split.

        Args:
            connection: in the transaction.
            frame_id: the frame's id.
            stamp_ns: its stamp, nanoseconds.
            thumbnail: of its image, (24, 32).
            split: where it belongs, as `choose` returned it.
            distances: to the stored thumbnails, (N,), as `choose` returned them.
        """
        _save_links(connection, self._thumbnails.add(frame_id, thumbnail, split, distances))
        if self._origin_ns is None:
            connection.execute("INSERT INTO meta VALUES ('origin_ns', ?)", (stamp_ns,))
            self._origin_ns = stamp_ns
        if self._rule is None:
            self._rule = SplitRule.of(self.settings)
            write_rule(connection, self._rule)
        self.last_ns = stamp_ns
        self.newest_id = frame_id
        self._count_change(connection)

    def make_room(self, connection: sqlite3.Connection, keep: int) -> None:
        """Evict frames, never `keep`, until the log fits, in the caller's transaction.

        Raises:
            NoRoomError: nothing that may go is left.
        """
        if used_bytes(connection) <= self.settings.max_bytes:
            return
        if not self._evicts:
            raise NoRoomError
        self.sync(connection)
        for _ in range(_MOST_EVICTIONS):
            if used_bytes(connection) <= self.settings.max_bytes:
                break
            victim = self._most_redundant(connection, keep)
            if victim is None:
                raise NoRoomError
            connection.execute("DELETE FROM frames WHERE id = ?", (victim,))
            _save_links(connection, self._thumbnails.remove(victim))
        self._count_change(connection)

    def invalidate(self, newest_id: int) -> None:
        """Forget a transaction that was rolled back; `newest_id` was there before it."""
        # The id of a frame that was rolled back is given to the next one.
        self.newest_id = newest_id
        self._version = None

    def _take_rule(self, rule: SplitRule | None) -> None:
        """Keep to the rule by which the log is split already, whatever the settings say."""
        self._rule, own = rule, SplitRule.of(self.settings)
        if rule is None or rule == own:
            return
        _LOG.warning(
            "%s is split by block_s = %g and held_out_every = %d since its first frame: kept to "
            "that, and not to %g and %d; for another split start an empty log",
            *(self._path, *rule, *own),
        )
        self.settings = rule.put_into(self.settings)

    def _most_redundant(self, connection: sqlite3.Connection, keep: int) -> int | None:
        counts: dict[str, int] = dict(
            connection.execute("SELECT split, COUNT(*) FROM frames GROUP BY split").fetchall()
        )
        held_out = counts.get(HELD_OUT, 0) * self.settings.held_out_every > sum(counts.values())
        row = connection.execute(
            f"SELECT id FROM frames WHERE id != :keep ORDER BY {_RANK}, nearest_distance IS NULL, "
            "nearest_distance, id LIMIT 1",
            {"keep": keep, "surplus": HELD_OUT if held_out else TRAIN},
        ).fetchone()
        return None if row is None else int(row[0])

    def _count_change(self, connection: sqlite3.Connection) -> None:
        """Tell other processes that frames came or went."""
        connection.execute("UPDATE meta SET value = value + 1 WHERE key = 'index_version'")
        self._version = _read_meta(connection, "index_version")

    def _read_thumbnails(self, connection: sqlite3.Connection) -> ThumbnailIndex:
        """Return the file's thumbnails; those that are known already are not read again."""
        index = ThumbnailIndex()
        for frame_id, split, nearest_id, distance in connection.execute(
            "SELECT id, split, nearest_id, nearest_distance FROM frames ORDER BY id"
        ).fetchall():
            if frame_id in self._thumbnails and frame_id <= self.newest_id:
                pixels = self._thumbnails.thumbnail_of(frame_id)
            else:
                blob = connection.execute(
                    "SELECT thumbnail FROM images WHERE frame_id = ?", (frame_id,)
                ).fetchone()[0]
                pixels = np.frombuffer(blob, np.uint8)
            link = Link(frame_id, nearest_id, np.inf if distance is None else distance)
            index.put(link, pixels, split)
        return index


def _read_meta(connection: sqlite3.Connection, key: str) -> int | None:
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return None if row is None else int(row[0])


def _save_links(connection: sqlite3.Connection, links: Iterable[Link]) -> None:
    """Store which frame is nearest to which."""
    connection.executemany(
        "UPDATE frames SET nearest_id = ?, nearest_distance = ? WHERE id = ?",
        [
            (link.nearest_id, None if link.nearest_id is None else link.distance, link.frame_id)
            for link in links
        ],
    )
