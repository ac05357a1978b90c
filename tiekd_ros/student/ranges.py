"""Depth as REP-117 wants it: what lies outside the range is infinite, not clipped."""

from __future__ import annotations

import functools

import numpy as np

from tiekd_ros.images import DepthMap
from tiekd_ros.student.bins import DepthBins


def mark_out_of_range(
    depth: DepthMap,
    bins: DepthBins,
    min_range_m: float = 0.0,
    max_range_m: float = 0.0,
    *,
    in_place: bool = False,
) -> DepthMap:
    """Return depth with -Inf where it is nearer than the range and +Inf where it is beyond.

    A student's expectation never leaves its range; where it reaches the first or last bin it
    says no more than "this near or nearer", "this far or farther".

    Args:
        depth: metres, (H, W); NaN stays NaN.
        bins: the student's bins.
        min_range_m: raise the near end to this; 0 = the student's own.
        max_range_m: lower the far end to this; 0 = the student's own.
        in_place: write into `depth` and return it.
    """
    near, far = range_left(bins, min_range_m, max_range_m)
    marked = depth if in_place else depth.copy()
    if depth.size == 0:
        return marked
    # Finding that nothing is out of range, the usual case, takes a tenth of marking it. A NaN
    # makes both comparisons false.
    low, high = depth.min(), depth.max()
    if not low >= near:
        marked[marked < near] = -np.inf
    if not high <= far:
        marked[marked > far] = np.inf
    return marked


def range_left(bins: DepthBins, min_range_m: float, max_range_m: float) -> tuple[float, float]:
    """Return the ends in metres between which depth is finite; arguments as above."""
    near, far = _ends(bins)
    return max(near, min_range_m), min(far, max_range_m) if max_range_m > 0 else far


def range_fault(bins: DepthBins, min_range_m: float, max_range_m: float) -> str:
    """Say which of both leaves nothing of a student's range; empty where something is left."""
    near, far = range_left(bins, min_range_m, max_range_m)
    if near < far:
        return ""
    is_near = min_range_m >= _ends(bins)[1]
    name, value, becomes = (
        ("min_range_m", min_range_m, "-Inf") if is_near else ("max_range_m", max_range_m, "+Inf")
    )
    return (
        f"{name} = {value:g} m leaves nothing of the live student's range ({bins.min_depth_m:g} to "
        f"{bins.max_depth_m:g} m), so all of depth is {becomes}; {'lower' if is_near else 'raise'} "
        "it, or set it to 0"
    )


@functools.lru_cache(maxsize=8)
def _ends(bins: DepthBins) -> tuple[float, float]:
    """Return the far edge of the first bin and the near edge of the last, in metres."""
    edges = bins.edges()
    return float(edges[1]), float(edges[-2])
