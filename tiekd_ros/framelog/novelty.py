"""The thumbnails of all stored frames in memory, and which frame is nearest to which.

Shapes: N stored frames, P = 768 pixels of a thumbnail.

A frame's redundancy is its distance to the nearest other stored frame. Finding that for all
frames costs N^2, so it is kept up to date instead: a new frame is compared with the N others
once (10 ms at N = 30 000), and a removed one makes only those search again whose nearest it
was. The frame log stores the results, so that opening it costs no search either.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tiekd_ros.core.images import Thumbnail
from tiekd_ros.framelog.policy import Neighbours
from tiekd_ros.framelog.records import HELD_OUT, TRAIN, Split

_CHUNK = 1024  # rows compared at a time: fits the processor's cache
_NOBODY = -1

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

        Equal to `images.thumbnail_distances`, at a seventh of its time on many thumbnails.
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
        self._nearest_ids[row] = _NOBODY if link.nearest_id is None else link.nearest_id
        self._nearest[row] = link.distance

    def remove(self, frame_id: int) -> list[Link]:
        """Take a frame out; return all links that changed."""
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
        self._nearest_ids[row] = _NOBODY if alone else self._ids[best]
        return self._link(row)

    def _link(self, row: int) -> Link:
        nearest_id = int(self._nearest_ids[row])
        return Link(
            int(self._ids[row]),
            None if nearest_id == _NOBODY else nearest_id,
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
