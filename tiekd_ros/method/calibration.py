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
"""Of ln factor: so far off is what one corner of a place looks like, and no reason to move."""


def label_factor(said: Sequence[DepthMap], labels: Sequence[DepthMap]) -> float:
    """Return how many times what the base says the labels are, whatever a part of them says.

    The median over pixels, every frame counting the same.

    Args:
        said: the base's depth for each frame, (H, W) in metres.
        labels: of the same frames, (H, W) in metres, NaN = unknown.

    Returns:
        The factor; 1 where no pixel is known.
    """
    frames = [_log_ratios(one, label) for one, label in zip(said, labels, strict=True)]
    ratios, share = (np.concatenate(part) for part in zip(*frames, strict=True))
    if ratios.size == 0:
        return 1.0
    order = ratios.argsort()
    total = share[order].cumsum()
    return float(np.exp(ratios[order][np.searchsorted(total, total[-1] / 2)]))


def scale_for(factor: float) -> float:
    """Return what the base's depth is multiplied by where labels are `factor` times as large.

    Labels from one corner say little of the rest of a place: the scale is what of the factor's
    logarithm is beyond a dead zone, so that 15 % of a wrong focal length stay.
    """
    off = np.log(factor)
    return float(np.exp(np.sign(off) * max(abs(off) - _DEAD_ZONE, 0.0)))


_Values = npt.NDArray[np.float64]


def _log_ratios(said: DepthMap, label: DepthMap) -> tuple[_Values, _Values]:
    """Return ln label - ln said of a frame's known pixels, and each pixel's share of it."""
    known = np.flatnonzero(np.isfinite(label) & (label > 0))
    chosen = known[:: max(1, known.size // _PIXELS)]
    ratios = np.log(label.ravel()[chosen] / said.ravel()[chosen].astype(np.float64))
    return ratios, np.full(chosen.size, 1 / max(chosen.size, 1))
