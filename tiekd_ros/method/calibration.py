"""The scale that makes the base student's depth that of a place, fitted to a few labels.

What the base says of a place it has never seen is in order more often than in size: the scale is
off where the camera's focal length is wrong or not known. A second number, an exponent, was tried
and fitted the corner that the labels came from better, and the rest of the place worse
(docs/base_student.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tiekd_ros.core.images import DepthMap

_PIXELS = 500
"""Pixels of a frame that take part: neighbours say the same."""
_DEAD_ZONE = 0.15
"""Of ln scale: so far off is what one corner of a place looks like, and no reason to move."""


def fit_scale(said: Sequence[DepthMap], labels: Sequence[DepthMap]) -> float:
    """Return what the base's depth is to be multiplied by, whatever a part of the labels says.

    The median of ln label - ln said, every frame counting the same, moved towards 0 by the width
    of the dead zone: labels that come from one corner say little more of the place.

    Args:
        said: the base's depth for each frame, (H, W) in metres.
        labels: of the same frames, (H, W) in metres, NaN = unknown.

    Returns:
        The scale; 1 where no pixel is known.
    """
    points = [_points(one, label) for one, label in zip(said, labels, strict=True)]
    off, share = (np.concatenate(part) for part in zip(*points, strict=True))
    if off.size == 0:
        return 1.0
    order = off.argsort()
    total = share[order].cumsum()
    median = off[order][np.searchsorted(total, total[-1] / 2)]
    return float(np.exp(np.sign(median) * max(abs(median) - _DEAD_ZONE, 0.0)))


_Points = npt.NDArray[np.float64]


def _points(said: DepthMap, label: DepthMap) -> tuple[_Points, _Points]:
    """Return ln label - ln said of a frame's known pixels, and each pixel's share of it."""
    known = np.flatnonzero(np.isfinite(label) & (label > 0))
    chosen = known[:: max(1, known.size // _PIXELS)]
    off = np.log(label.ravel()[chosen] / said.ravel()[chosen].astype(np.float64))
    return off, np.full(chosen.size, 1 / max(chosen.size, 1))
