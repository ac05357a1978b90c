"""Scores of the published stream, student by student and turn by turn."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field

import cv2
import numpy as np

from tiekd_ros.images import DepthMap, RgbImage, thumbnail, thumbnail_distances

_KEPT_VIEWS = 240  # of each student, for the pictures
_WHOLE = 0.9  # of the first turn's frames: a turn has them all, but for the loop's other load
_SAME_VIEW = 3.0  # grey levels between thumbnails: less shows nothing new


@dataclass(frozen=True)
class View:
    """One scored frame of the stream; depth maps in metres, (H, W)."""

    stamp_ns: int
    image: RgbImage
    depth: DepthMap
    truth: DepthMap


@dataclass
class StreamScore:
    """Errors pooled over all valid pixels of the scored frames of one student's turn."""

    frames: int = 0
    pixels: int = 0
    views: list[View] = field(default_factory=list)
    _truth: float = 0.0
    _truth_squared: float = 0.0
    _error_squared: float = 0.0
    _relative_error: float = 0.0

    def add(self, view: View, keep: bool = True) -> None:
        """Score a frame over the pixels whose truth is known; its depth must be finite there."""
        known = np.isfinite(view.truth) & (view.truth > 0)
        if not known.any():
            return
        truth = view.truth[known].astype(np.float64)
        depth = view.depth[known].astype(np.float64)
        error = depth - truth
        self.frames += 1
        self.pixels += truth.size
        self._truth += truth.sum()
        self._truth_squared += (truth**2).sum()
        self._error_squared += (error**2).sum()
        self._relative_error += (np.abs(error) / truth).sum()
        if keep and len(self.views) < _KEPT_VIEWS:
            self.views.append(view)

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

    def add(self, version: str, view: View, near_m: float, far_m: float, turn: int = 0) -> None:
        """Score a frame for a version.

        Args:
            version: the student that was live.
            view: what was published; -Inf counts as `near_m`, +Inf as `far_m`, and so does NaN.
            near_m: near end of the student's range.
            far_m: far end of the student's range.
            turn: how often the camera had shown everything since the student's swap.
        """
        depth = np.nan_to_num(view.depth, nan=far_m, posinf=far_m, neginf=near_m)
        if depth.shape != view.truth.shape:
            size = (view.truth.shape[1], view.truth.shape[0])
            depth = cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST)
        view = View(view.stamp_ns, view.image, depth, view.truth)
        with self._lock:
            score = self._scores.setdefault((version, turn), StreamScore())
            score.add(view, keep=turn == 0)

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


def matching_views(before: list[View], after: list[View], count: int) -> list[tuple[View, View]]:
    """Return pairs of views of the same place under two students, at most `count`.

    Each view of `after` is paired with the one in `before` that resembles it most. Of the pairs
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
    while len(chosen) < min(count, len(good)) and apart.max() > _SAME_VIEW:
        index = int(good[int(apart.argmax())])
        chosen.append(index)
        apart = np.minimum(apart, thumbnail_distances(new[index], new[good]))
    return [(before[int(partner[i])], after[i]) for i in sorted(chosen)]
