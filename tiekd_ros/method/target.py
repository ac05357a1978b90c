"""The teacher's depth map as a depth probability map (DPM): mode `tiekd`.

TIE-KD (arXiv 2402.14340) spreads each teacher depth d over the bins with a Gaussian around
it. Here a bin's probability is the Gaussian's mass inside the bin, renormalised within the
depth range. Cutting the Gaussian at the range's ends moves the expectation inwards, so the
Gaussian is centred at mu(d), not at d, where mu is chosen such that the expectation is d.

Shapes: B batch, C bins, h and w the map; n pixels; K bins of a band around each of them (see
`bands`), the same number for all n; P numbers that describe a pixel's target. Depth in metres,
NaN = unknown.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import TargetWidth


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


_STEPS_PER_BIN = 16  # of the table below
_REACH = 10.0  # sigmas by which a centre moves at most; float32 has 1e-23 for what is left
# Half width of a band in sigmas, from the part of the range that is nearest to the Gaussian's
# centre. At most 4 Q(6) = 4e-9 of the mass within the range lies beyond, with Q the Gaussian's
# tail: at least about half of the mass is within the range where the centre is, and with a
# centre a sigmas outside it is Q(6 + a) / Q(a), less than 2 Q(6). float32 resolves 6e-8 of 1.
_BAND_REACH = 6.0


class DepthTarget:
    """Turns teacher depth into the distribution that the student is to learn."""

    def __init__(self, bins: DepthBins, width: TargetWidth) -> None:
        self.bins = bins
        self.width = width
        self._edges = bins.edges()
        self._centre_table = self._make_centre_table()  # (C * _STEPS_PER_BIN + 1,)

    def sigma(self, depth: Tensor) -> Tensor:
        """Return the Gaussian's standard deviation in metres at each depth."""
        return self.width.sigma(depth, self.bins)

    def valid(self, depth: Tensor) -> Tensor:
        """Return where depth is known and inside the range, as bool of the same shape."""
        return (depth >= self.bins.min_depth_m) & (depth <= self.bins.max_depth_m)

    def probabilities(self, depth: Tensor) -> Tensor:
        """Return the target distribution, (B, C, h, w).

        Its expectation is `depth` (at the very ends of the range: within half a bin or 5 % at the
        near one, whichever is more, and within 1.5 % at the far one).

        Args:
            depth: metres, (B, 1, h, w); what is unknown or out of range gets some valid
                distribution, to be masked by `valid`.
        """
        numbers = self.bands(depth.flatten()).numbers
        everywhere = torch.zeros_like(numbers[0], dtype=torch.int64)
        masses = self.masses(numbers, everywhere, self.bins.count)  # (B * h * w, C)
        B, _, h, w = depth.shape
        return masses.view(B, h, w, -1).permute(0, 3, 1, 2)

    def bands(self, depth: Tensor) -> Bands:
        """Return the bins in which targets have mass: all but 4e-9 of it.

        Args:
            depth: metres, (...); unknown or out of range as for `probabilities`.

        Returns:
            The bands; their numbers are the Gaussians' centres and sigmas.
        """
        low, high = self.bins.min_depth_m, self.bins.max_depth_m
        inside = depth.nan_to_num(nan=low).clamp(low, high)
        centre, sigma = self._centre(inside), self.sigma(inside)
        nearest = centre.clamp(low, high)
        ends = torch.stack((nearest - _BAND_REACH * sigma, nearest + _BAND_REACH * sigma))
        first, last = self.bins.index(ends)
        return Bands(first, last - first + 1, torch.stack((centre, sigma)))

    def masses(self, numbers: Tensor, first: Tensor, count: int) -> Tensor:
        """Return the probabilities of `count` bins from `first` (n,) on, (n, K).

        Args:
            numbers: of the pixels' bands, (2, n).
            first: at most C - K.
            count: K; the bins hold the pixel's band.
        """
        centre, sigma = numbers
        edges = windows(self._edges.to(centre), first, count + 1)
        return self._masses(centre[:, None], sigma[:, None], edges)

    def _masses(self, centre: Tensor, sigma: Tensor, edges: Tensor) -> Tensor:
        """Return (n, K) for centres and sigmas (n, 1) and edges (n or 1, K + 1)."""
        # erfc of the side where it is small: there the masses of a Gaussian whose centre lies
        # far outside the range keep all their digits.
        middle = 0.5 * (self.bins.min_depth_m + self.bins.max_depth_m)
        side = torch.where(centre > middle, -1.0, 1.0).to(centre)
        tail = ((edges - centre) * (side / (sigma * math.sqrt(2.0)))).erfc_()
        masses = tail[:, :-1] - tail[:, 1:]  # all times `side`
        return masses * (side / (masses.sum(dim=1, keepdim=True) * side).clamp_min(1e-30))

    def _centre(self, depth: Tensor) -> Tensor:
        table = self._centre_table.to(depth)
        position = self.bins.position(depth) * _STEPS_PER_BIN
        left = position.floor().clamp(0, len(table) - 2)
        index = left.long()
        share = position - left
        return table[index] * (1 - share) + table[index + 1] * share

    def _make_centre_table(self) -> Tensor:
        """Invert numerically: for each depth, the centre whose expectation is that depth."""
        steps = torch.arange(self.bins.count * _STEPS_PER_BIN + 1, dtype=torch.float64)
        depth = self.bins.depth_at(steps / _STEPS_PER_BIN)[:, None]
        sigma = self.sigma(depth)
        below, above = depth - _REACH * sigma, depth + _REACH * sigma
        edges = self._edges.double()[None]
        centres = self.bins.centres().double()
        for _ in range(40):  # bisection: the expectation grows with the centre
            middle = 0.5 * (below + above)
            expectation = (self._masses(middle, sigma, edges) * centres).sum(dim=1, keepdim=True)
            small = expectation < depth
            below, above = torch.where(small, middle, below), torch.where(small, above, middle)
        return (0.5 * (below + above)).flatten().float()
