"""How well a depth map follows the outlines of objects, where a robot looks for free space.

Shapes: H and W the map, depth in metres, NaN = unknown.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from tiekd_ros.core.errors import BadDepthError
from tiekd_ros.core.images import DepthMap

Mask = npt.NDArray[np.bool_]

_RATIOS = np.linspace(1.05, 1.25, 10)
_STEP_RATIO = 1.15  # of neighbours' depths, at least, at an outline
_REACH_PX = 3  # from an outline
_OFF_SURFACE = 1.05  # ratio of depths


class BoundaryErrors(NamedTuple):
    """Errors at outlines; NaN where the truth has no outline."""

    f1: float
    """How many outlines are there, and only there: 0 to 1, higher is better."""
    flying: float
    """Share of the pixels at outlines whose depth lies between both surfaces, on neither."""


def boundary_errors(predicted: DepthMap, truth: DepthMap) -> BoundaryErrors:
    """Compare a depth map with the truth at the outlines of objects.

    F1 is the scale-free measure of Depth Pro (arXiv 2410.02073, section 4): an outline is between
    neighbours whose depths have a ratio above t; precision and recall are averaged over the
    four directions, and F1 over t = 1.05 to 1.25, weighted by t. Neighbours of which one has no
    known truth do not count.

    A pixel is flying if it is within 3 px of an outline (t = 1.15) and its depth is more than
    5 % away from both the nearest and the farthest true depth within 3 px, and between them.
    Where the truth itself is so, the pixel does not count.

    Args:
        predicted: (H, W), without NaN where the truth is known.
        truth: (H, W).

    Raises:
        BadDepthError: the shapes differ.
    """
    if predicted.shape != truth.shape:
        raise BadDepthError(f"cannot compare depth of shape {predicted.shape} with {truth.shape}")
    predicted = np.where(np.isfinite(truth), predicted, np.float32(np.nan))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return BoundaryErrors(_f1(predicted, truth), _flying(predicted, truth))


def _steps(depth: DepthMap) -> list[npt.NDArray[np.float32]]:
    """Return each pixel's depth over its neighbour's: left, right, above, below."""
    across, down = depth[:, 1:] / depth[:, :-1], depth[1:] / depth[:-1]
    return [across, 1 / across, down, 1 / down]


def _f1(predicted: DepthMap, truth: DepthMap) -> float:
    found, wanted = _steps(predicted), _steps(truth)
    if not any((step > _RATIOS[0]).any() for step in wanted):
        return float("nan")
    scores = []
    for ratio in _RATIOS:
        edges = [(one > ratio, other > ratio) for one, other in zip(found, wanted, strict=True)]
        hits = [int((mine & true).sum()) for mine, true in edges]
        each = zip(hits, edges, strict=True)
        shares = [(n / max(mine.sum(), 1), n / max(true.sum(), 1)) for n, (mine, true) in each]
        precision, recall = np.mean(shares, axis=0)
        scores.append(2 * precision * recall / max(precision + recall, 1e-12))
    return float(np.average(scores, weights=_RATIOS))


def _flying(predicted: DepthMap, truth: DepthMap) -> float:
    outline = np.zeros(truth.shape, np.uint8)
    across, right, down, below = (step > _STEP_RATIO for step in _steps(truth))
    outline[:, 1:] |= across | right
    outline[:, :-1] |= across | right
    outline[1:] |= down | below
    outline[:-1] |= down | below
    window = np.ones((2 * _REACH_PX + 1, 2 * _REACH_PX + 1), np.uint8)
    # Not one pixel more: those of the outline itself are on both of its sides already.
    at_outline = cv2.dilate(outline, window[1:-1, 1:-1]) > 0
    known = np.isfinite(truth)
    nearest = cv2.erode(np.where(known, truth, np.float32(np.inf)), window)
    farthest = cv2.dilate(np.where(known, truth, np.float32(-np.inf)), window)

    def between(depth: DepthMap) -> Mask:
        off: Mask = (depth > nearest * _OFF_SURFACE) & (depth < farthest / _OFF_SURFACE)
        return off

    counts = at_outline & known & ~between(truth)
    return float(between(predicted)[counts].mean()) if counts.any() else float("nan")
