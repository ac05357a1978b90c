"""The published teacher DPM: a softmax over Gaussian density values.

Shapes: B batch, C bins, h and w the map; n pixels and K bins around each of them (see
`bands`). Depth in metres.

With bin centres c_i and teacher depth d the published code computes

    g_i = exp(-(c_i - d)^2 / (2 sigma^2)) / sqrt(2 pi sigma^2)
    s_i = g_i  where g_i >= 1e-16,  else -1000
    q   = softmax(s)

The softmax is taken over the density values, not over their logarithm. With sigma 0.5 m the
densities end at 0.8, so inside the window |c_i - d| <= 4.28 m the largest probability is only
2.2 times the smallest, and outside it is zero. Where the window is cut by an end of the range
the expectation of q moves inwards: by 1.94 m at 0 m, 0.91 m at 2 m, 0.17 m at 4 m (KITTI bins).
There is no valid mask: depth 0 is a depth like any other, and a depth that is outside the
range by more than the window gives a uniform q.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.method.target import Bands, windows
from tiekd_ros.student.bins import DepthBins

PUBLISHED_SIGMA_M = 0.5
"""What every published TIE-KD run uses: the sigma of its configs never reaches the loss."""

DENSITY_FLOOR = 1e-16
"""Densities below this are outside the window."""

_BAND_SLACK = 1e-3  # of the window's half width: densities are rounded
_OUTSIDE = -1000.0  # softmax input of a bin outside the window; exp of it is exactly 0


def unknown_as_zero(depth: Tensor) -> Tensor:
    """Return teacher depth as a published depth PNG holds it: unknown (NaN) is 0 m."""
    return depth.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf)


def window_m(sigma_m: float) -> float:
    """Return the window's half width in metres, sigma * sqrt(2 ln(peak density / 1e-16))."""
    peak = 1.0 / (sigma_m * math.sqrt(2 * math.pi))
    return sigma_m * math.sqrt(2 * math.log(peak / DENSITY_FLOOR))


def published_width_m(sigma_m: float) -> float:
    """Return the standard deviation in metres of the target of a depth amid the range.

    The softmax over densities makes it far wider than sigma: 2.3 m for 0.5 m. It is that of
    narrow bins, and of a range that holds the whole window.
    """
    distance = np.linspace(-window_m(sigma_m), window_m(sigma_m), 4001)
    density = np.exp(-(distance**2) / (2 * sigma_m**2)) / (sigma_m * math.sqrt(2 * math.pi))
    share = np.exp(density - density.max())
    return float(np.sqrt((share * distance**2).sum() / share.sum()))


class PublishedTarget:
    """Turns teacher depth into the published target distribution."""

    def __init__(self, bins: DepthBins, sigma_m: float = PUBLISHED_SIGMA_M) -> None:
        if not (math.isfinite(sigma_m) and sigma_m > 0):
            raise InvalidSettingError(
                f"sigma_m must be a positive number of metres, got {sigma_m!r}; "
                f"the published code uses {PUBLISHED_SIGMA_M}"
            )
        self.bins = bins
        self.sigma_m = sigma_m
        self.window_m = window_m(sigma_m)
        self._centres = bins.centres()

    def probabilities(self, depth: Tensor) -> Tensor:
        """Return the target distribution q, (B, C, h, w), for depth in metres, (B, 1, h, w)."""
        B, _, h, w = depth.shape
        flat = depth.flatten()
        everywhere = torch.zeros_like(flat, dtype=torch.int64)
        shares = self.shares(flat[None], everywhere, self.bins.count)  # (B * h * w, C)
        return shares.view(B, h, w, -1).permute(0, 3, 1, 2)

    def bands(self, depth: Tensor) -> Bands:
        """Return the bins whose centres are in the window, and at most one more at each end.

        They are all bins where that of the depth itself is not in the window: only then may no
        bin be, which makes the target uniform.

        Args:
            depth: metres, (...), not NaN.
        """
        reach = self.window_m * (1 + _BAND_SLACK)
        own, first, last = self.bins.index(torch.stack((depth, depth - reach, depth + reach)))
        distance = (self._centres.to(depth)[own] - depth).abs()
        uniform = distance > self.window_m * (1 - _BAND_SLACK)
        first = first.masked_fill(uniform, 0)
        last = last.masked_fill(uniform, self.bins.count - 1)
        return Bands(first, last - first + 1, depth[None])

    def shares(self, numbers: Tensor, first: Tensor, count: int) -> Tensor:
        """Return the probabilities of `count` bins from `first` (n,) on, (n, K).

        Args:
            numbers: of the pixels' bands, (1, n).
            first: at most C - K.
            count: K; the bins hold the pixel's band.
        """
        distance = windows(self._centres.to(numbers), first, count).sub_(numbers[0, :, None])
        variance = self.sigma_m**2
        density = distance.square_().div_(-2 * variance).exp_()
        density /= math.sqrt(2 * math.pi * variance)
        scores: Tensor = functional.threshold(density, DENSITY_FLOOR, _OUTSIDE)
        return scores.softmax(dim=1)
