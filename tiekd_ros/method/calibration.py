"""Two numbers that make the base student's depth that of a place, fitted to a few labels.

What the base says of a place it has never seen is in order more often than in size: the scale is
off where the camera's focal length is wrong or not known, and the contrast where the place is
deeper or shallower than what it learnt. Both are one line through (ln said, ln label).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tiekd_ros.core.images import DepthMap
from tiekd_ros.student.base_student import UNCALIBRATED, Calibration

_PIXELS = 500
"""Pixels of a frame that take part: neighbours say the same."""
_ROUNDS = 30
_CORE = 0.03  # of ln depth: within it, errors count by their square, beyond it by their size
_EXPONENTS = (0.2, 2.0)
"""Below, the base knows nothing of the place; above, noise is made to look like depth."""
_PULL = 0.005
"""Weight of an exponent of 1 beside the labels: it decides where all are equally far away."""


def fit_calibration(said: Sequence[DepthMap], labels: Sequence[DepthMap]) -> Calibration:
    """Return the calibration that fits best to labels, whatever a part of them says.

    The sum of |ln label - ln calibrated| over pixels is minimised, every frame counting the same
    (iteratively reweighted least squares, Holland and Welsch 1977).

    Args:
        said: the base's depth for each frame, (H, W) in metres.
        labels: of the same frames, (H, W) in metres, NaN = unknown.

    Returns:
        The calibration; one that changes nothing where no pixel is known.
    """
    points = [_points(one, label) for one, label in zip(said, labels, strict=True)]
    x, y, share = (np.concatenate(part) for part in zip(*points, strict=True))
    if x.size == 0:
        return UNCALIBRATED
    weight = share
    exponent, offset = 1.0, 0.0
    for _ in range(_ROUNDS):
        total = weight.sum()
        middle_x, middle_y = (weight @ x) / total, (weight @ y) / total
        spread = (weight @ (x - middle_x) ** 2) / total
        covariance = (weight @ ((x - middle_x) * (y - middle_y))) / total
        exponent = float(np.clip((covariance + _PULL) / (spread + _PULL), *_EXPONENTS))
        offset = float(middle_y - exponent * middle_x)
        weight = share / np.maximum(np.abs(y - exponent * x - offset), _CORE)
    return Calibration(float(np.exp(offset)), exponent)


_Points = npt.NDArray[np.float64]


def _points(said: DepthMap, label: DepthMap) -> tuple[_Points, _Points, _Points]:
    """Return ln said and ln label of a frame's known pixels, and each pixel's share of it."""
    known = np.flatnonzero(np.isfinite(label) & (label > 0))
    chosen = known[:: max(1, known.size // _PIXELS)]
    x = np.log(said.ravel()[chosen].astype(np.float64))
    y = np.log(label.ravel()[chosen].astype(np.float64))
    return x, y, np.full(chosen.size, 1 / max(chosen.size, 1))
