"""The published teacher DPM: a softmax over Gaussian density values.

Shapes: B batch, C bins, h and w the map. Depth in metres.

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
from torch import Tensor

from tiekd_ros.errors import BadDepthError, InvalidSettingError
from tiekd_ros.student import DepthBins

PUBLISHED_SIGMA_M = 0.5
"""What every published TIE-KD run uses: the sigma of its configs never reaches the loss."""

DENSITY_FLOOR = 1e-16
"""Densities below this are outside the window."""

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
        self._centres = bins.centres().view(1, -1, 1, 1)

    @property
    def window_m(self) -> float:
        """Half width of the window in metres."""
        return window_m(self.sigma_m)

    def probabilities(self, depth: Tensor) -> Tensor:
        """Return the target distribution q, (B, C, h, w), for depth in metres, (B, 1, h, w).

        Raises:
            BadDepthError: the depth is not in floating-point metres.
        """
        if not depth.is_floating_point():
            raise BadDepthError(
                f"teacher depth must be floating-point metres, got {depth.dtype}: convert it, and "
                "divide what a PNG holds by the PNG's scale"
            )
        distance = self._centres.to(depth) - depth  # (B, C, h, w)
        variance = self.sigma_m**2
        density = (-(distance**2) / (2 * variance)).exp() / math.sqrt(2 * math.pi * variance)
        scores = density.masked_fill(density < DENSITY_FLOOR, _OUTSIDE)
        return scores.softmax(dim=1)
