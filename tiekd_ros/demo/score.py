"""Scores of the demo's stream: errors by student and turn, frames that swaps lost."""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from tiekd_ros.core.images import DepthMap, RgbImage, thumbnail, thumbnail_distances

_KEPT_FRAMES = 240  # of each student, for the pictures
_WHOLE = 0.9  # of the first turn's frames: a turn has them all, but for the loop's other load
_SAME_PLACE = 3.0  # grey levels between thumbnails: less shows nothing new


@dataclass(frozen=True)
class ScoredFrame:
    """One frame of the stream with its true depth; depth maps in metres, (H, W)."""

    stamp_ns: int
    image: RgbImage
    depth: DepthMap
    truth: DepthMap


@dataclass
class StreamScore:
    """Errors pooled over all valid pixels of the scored frames of one student's turn."""

    frames: int = 0
    pixels: int = 0
    kept: list[ScoredFrame] = field(default_factory=list)
    _truth: float = 0.0
    _truth_squared: float = 0.0
    _error_squared: float = 0.0
    _relative_error: float = 0.0

    def add(self, frame: ScoredFrame, keep: bool = True) -> None:
        """Score a frame over the pixels whose truth is known; its depth must be finite there."""
        known = np.isfinite(frame.truth) & (frame.truth > 0)
        if not known.any():
            return
        truth = frame.truth[known].astype(np.float64)
        depth = frame.depth[known].astype(np.float64)
        error = depth - truth
        self.frames += 1
        self.pixels += truth.size
        self._truth += truth.sum()
        self._truth_squared += (truth**2).sum()
        self._error_squared += (error**2).sum()
        self._relative_error += (np.abs(error) / truth).sum()
        if keep and len(self.kept) < _KEPT_FRAMES:
            self.kept.append(frame)

    @property
    def rmse(self) -> float:
        """Root mean square error in metres."""
        return math.sqrt(self._error_squared / self.pixels) if self.pixels else math.nan

    @property
    def abs_rel(self) -> float:
        """Mean of |error| / truth."""
        return self._relative_error / self.pixels if self.pixels else math.nan

    @property
    def constant_rmse(self) -> float:
        """RMSE in metres of the best constant depth on the same frames: the truth's spread."""
        if not self.pixels:
            return math.nan
        mean = self._truth / self.pixels
        return math.sqrt(max(self._truth_squared / self.pixels - mean * mean, 0.0))


class Scoreboard:
    """Scores by student version and turn; safe to use from several threads.

    A turn is a time in which the camera shows everything, so that the turns of any students
    show the same. The first turn after a student's swap, number 0, is its score.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._scores: dict[tuple[str, int], StreamScore] = {}

    def add(
        self, version: str, frame: ScoredFrame, near_m: float, far_m: float, turn: int = 0
    ) -> None:
        """Score a frame for a version.

        Args:
            version: the student that was live.
            frame: as it was published; -Inf counts as `near_m`, +Inf as `far_m`, and so does NaN.
            near_m: near end of the student's range.
            far_m: far end of the student's range.
            turn: how often the camera had shown everything since the student's swap.
        """
        depth = np.nan_to_num(frame.depth, nan=far_m, posinf=far_m, neginf=near_m)
        if depth.shape != frame.truth.shape:
            size = frame.truth.shape[::-1]
            depth = cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST)
        with self._lock:
            score = self._scores.setdefault((version, turn), StreamScore())
            score.add(replace(frame, depth=depth), keep=turn == 0)

    def of(self, version: str) -> StreamScore:
        """Return the score of a version's first turn (an empty one where it never ran)."""
        with self._lock:
            return self._scores.get((version, 0), StreamScore())

    def repeated(self, version: str) -> list[float]:
        """Return the RMSE in metres of a version's later turns that are as good as whole."""
        whole = _WHOLE * self.of(version).frames
        with self._lock:
            later = [s for (v, turn), s in sorted(self._scores.items()) if v == version and turn]
            return [score.rmse for score in later if score.frames >= whole]


def matching_frames(
    before: list[ScoredFrame], after: list[ScoredFrame], count: int
) -> list[tuple[ScoredFrame, ScoredFrame]]:
    """Return pairs of frames of the same place under two students, at most `count`.

    Each frame of `after` is paired with the one in `before` that resembles it most. Of the pairs
    that resemble best, those are taken that differ most from the ones taken already, so that a
    looped recording does not show one place twice.
    """
    if not before or not after:
        return []
    old = np.stack([thumbnail(v.image) for v in before])
    new = np.stack([thumbnail(v.image) for v in after])
    distances = np.stack([thumbnail_distances(one, old) for one in new])  # (after, before)
    partner = distances.argmin(axis=1)
    resemblance = distances.min(axis=1)
    good = np.flatnonzero(resemblance <= np.median(resemblance))
    chosen: list[int] = []
    apart = np.full(len(good), np.inf)
    while len(chosen) < min(count, len(good)) and apart.max() > _SAME_PLACE:
        index = int(good[int(apart.argmax())])
        chosen.append(index)
        apart = np.minimum(apart, thumbnail_distances(new[index], new[good]))
    return [(before[int(partner[i])], after[i]) for i in sorted(chosen)]


BEFORE_S = 1.0
"""So long before it is asked for, a swap may have begun to disturb the stream: the companion
promotes the new student then."""
AFTER_S = 3.0
"""So long after the depth node announced it, a swap may still disturb the stream."""
UNFINISHED_S = 0.5
"""The depth of the run's newest images may be on its way."""


def lost_by_swaps(
    images: Collection[int], depths: Collection[int], swaps: Iterable[tuple[int, int]]
) -> int:
    """Return how many of the camera's images around swaps got no depth.

    All losses count, since a swap's share cannot be told from that of other load. Images before
    the first depth do not: there was no student.

    Args:
        images: stamps in ns of all that the camera published.
        depths: stamps in ns of all depth images.
        swaps: for each student that replaced another, when the depth node was asked for it and
            when it announced it, in ns of the same clock.
    """
    if not images:
        return 0
    newest = max(images) - int(UNFINISHED_S * 1e9)
    begin = min(depths, default=min(images))
    lost: set[int] = set()
    for asked, announced in swaps:
        low = max(asked - int(BEFORE_S * 1e9), begin)
        high = min(announced + int(AFTER_S * 1e9), newest)
        lost.update(stamp for stamp in images if low <= stamp <= high)
    return len(lost.difference(depths))


SETTLE_S = 1.0
"""So soon after a swap a frame may be of the student before: its announcement takes time."""
LEAST_S = 25.0
"""A short loop is measured several times over, as scoring takes only a few frames a second."""


def measured_seconds(turn_s: float) -> float:
    """Return how long a student is measured: whole turns, so that all students see the same."""
    return turn_s * max(1, math.ceil(LEAST_S / turn_s))


def measured_turn(since_swap_s: float, measured_s: float) -> int | None:
    """Return the turn, from 0, in which a frame counts; None where it is too near to the swap.

    Args:
        since_swap_s: from the student's announcement to the image.
        measured_s: length of a turn.
    """
    if since_swap_s < SETTLE_S:
        return None
    return int((since_swap_s - SETTLE_S) / measured_s)
