"""Bands: the bins around a pixel's depth in which its target has mass.

Shapes: C bins; n pixels; K bins of a band, the same number for all n; P numbers that describe
a pixel's target. Depth in metres.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from tiekd_ros.student import DepthBins


class Bands(NamedTuple):
    """Where the targets of many pixels have mass, and what they are; (...) is any shape."""

    first: Tensor
    """Index of the first bin, int64, (...)."""
    bins: Tensor
    """How many bins there are from it on, at least 1, int64, (...)."""
    numbers: Tensor
    """What the target is computed from, (P, ...)."""


class BandedDivergence(Protocol):
    """A divergence of a student's DPM p from a target q: D = sum_i f(q_i, ln p_i).

    f is 0 where q_i is, so only the bins of a band count.
    """

    bins: DepthBins

    def bands(self, depth: Tensor) -> Bands:
        """Return the bands around teacher depth (...) in metres, of any value, also NaN."""

    def target(self, numbers: Tensor, first: Tensor, count: int) -> Tensor:
        """Return q in `count` bins from `first` (n,) on, (n, K), for numbers (P, n).

        The bins hold the pixel's band and may hold more.
        """

    def terms(self, target: Tensor, log_student: Tensor) -> Tensor:
        """Return f for q and ln p, each (n, K); ln p may be -inf."""

    def slopes(self, target: Tensor, log_student: Tensor) -> Tensor:
        """Return df / d ln p for q and ln p, each (n, K)."""


def windows(values: Tensor, starts: Tensor, size: int) -> Tensor:
    """Return values[s : s + size] for each start s: (n, size) for (m,) and (n,).

    Whole runs are copied: several times faster than a gather, which looks up every element.
    """
    return values.unfold(0, size, 1).index_select(0, starts)
