"""Depth as REP-117 wants it: what lies outside the range is infinite, not clipped.

Shapes: C bins, so C + 1 edges and C centres, in metres.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.images import DepthMap
from tiekd_ros.core.settings import Settings, setting

UNIFORM, LOG = "uniform", "log"


@dataclass(frozen=True)
class DepthBins(Settings):
    """Fixed bins between the ends of a depth range.

    Uniform ones are those of TIE-KD (arXiv 2402.14340). Those spaced by logarithm have edges
    with a constant ratio, and so the same relative width at every depth.
    """

    count: int = setting(257, "number of depth bins", minimum=2, maximum=4096)
    min_depth_m: float = setting(
        0.1, "near end of the depth range", unit="m", minimum=1e-3, maximum=100.0
    )
    max_depth_m: float = setting(
        10.0, "far end of the depth range", unit="m", minimum=0.1, maximum=1000.0
    )
    spacing: str = setting(
        UNIFORM, "bins of equal width, or of equal relative width (log)", choices=(UNIFORM, LOG)
    )

    def check(self) -> None:
        """Refuse an empty range."""
        if self.max_depth_m <= self.min_depth_m:
            raise InvalidSettingError(
                f"max_depth_m must be greater than min_depth_m ({self.min_depth_m:g} m), "
                f"got {self.max_depth_m:g} m"
            )

    def edges(self) -> Tensor:
        """Return the C + 1 bin edges in metres, float32."""
        if self.spacing == UNIFORM:
            return torch.linspace(self.min_depth_m, self.max_depth_m, self.count + 1)
        return self.depth_at(torch.arange(self.count + 1, dtype=torch.float64)).float()

    def centres(self) -> Tensor:
        """Return the C bin centres in metres, float32."""
        edges = self.edges()
        return 0.5 * (edges[:-1] + edges[1:])

    def width_at(self, depth: Tensor) -> Tensor:
        """Return how wide bins are in metres at depths in metres, of the same shape."""
        if self.spacing == UNIFORM:
            width = (self.max_depth_m - self.min_depth_m) / self.count
            return torch.full_like(depth, width)
        return depth * (2 * math.tanh(0.5 * self._log_step))  # a bin around this centre

    def position(self, depth: Tensor) -> Tensor:
        """Return where depths (metres) lie on the axis: i + share of bin i, 0 to C."""
        low, high = self.min_depth_m, self.max_depth_m
        if self.spacing == UNIFORM:
            return (depth - low) * (self.count / (high - low))
        return (depth / low).log() / self._log_step

    def index(self, depth: Tensor) -> Tensor:
        """Return the bins in which depths (metres, not NaN) lie, or the nearest ones, int64."""
        inside = depth.clamp(self.min_depth_m, self.max_depth_m)
        return self.position(inside).long().clamp(0, self.count - 1)

    def depth_at(self, position: Tensor) -> Tensor:
        """Return the depths in metres at positions 0 to C on the axis."""
        low, high = self.min_depth_m, self.max_depth_m
        if self.spacing == UNIFORM:
            return low + position * ((high - low) / self.count)
        return low * (position * self._log_step).exp()

    @property
    def _log_step(self) -> float:
        return math.log(self.max_depth_m / self.min_depth_m) / self.count


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
