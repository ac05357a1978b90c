"""Depth as REP-117 wants it: what lies outside the range is infinite, not clipped."""

from __future__ import annotations

import numpy as np

from tiekd_ros.images import DepthMap
from tiekd_ros.student.bins import DepthBins


def mark_out_of_range(
    depth: DepthMap, bins: DepthBins, min_range_m: float = 0.0, max_range_m: float = 0.0
) -> DepthMap:
    """Return depth with -Inf where it is nearer than the range and +Inf where it is beyond.

    A student's expectation never leaves its range; where it reaches the first or last bin it
    says no more than "this near or nearer", "this far or farther".

    Args:
        depth: metres, (H, W); NaN stays NaN.
        bins: the student's bins.
        min_range_m: raise the near end to this; 0 = the student's own.
        max_range_m: lower the far end to this; 0 = the student's own.
    """
    edges = bins.edges()
    near = max(float(edges[1]), min_range_m)
    far = float(edges[-2])
    if max_range_m > 0:
        far = min(far, max_range_m)
    marked = depth.copy()
    marked[depth < near] = -np.inf
    marked[depth > far] = np.inf
    return marked
