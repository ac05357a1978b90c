"""What a depth network's numbers mean, and how they become an answer."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from tiekd_ros.images import DepthMap
from tiekd_ros.teacher.backend import Backend
from tiekd_ros.teacher.protocol import TeacherIdentity

Meaning = Literal["metric", "relative_depth", "inverse_depth"]
"""metric: metres. relative_depth: depth in an unknown unit. inverse_depth: grows towards the
camera, in an unknown unit and from an unknown zero."""

METRIC: Meaning = "metric"
INVERSE_DEPTH: Meaning = "inverse_depth"

FARTHEST_M = 1000.0
"""Beyond this a network means the sky, not a distance; it becomes unknown."""

_SAME_VIEW = 0.01  # relative difference of aspect ratios that needs no resizing


def identity_of(name: str, version: str, meaning: Meaning) -> TeacherIdentity:
    """Return a network's identity; where it is not metric, the name says what its numbers are."""
    metric = meaning == METRIC
    return TeacherIdentity(name if metric else f"{name} ({meaning})", version, metric)


def meaning_of(backend: Backend) -> Meaning | None:
    """Return what a backend's numbers are; None where it does not say."""
    if backend.identity.metric:
        return METRIC
    meaning: Meaning | None = getattr(backend, "meaning", None)
    return meaning


def answer_size(image: tuple[int, int], output: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) of the answer for an image and a network's output of these.

    It has the image's aspect ratio, and no more pixels than either: more would carry nothing.
    """
    aspect = (output[1] * image[0]) / (output[0] * image[1])
    smaller = output[0] * output[1] <= image[0] * image[1]
    if smaller and abs(aspect - 1) <= _SAME_VIEW:
        return output
    factor = min(1.0, math.sqrt((output[0] * output[1]) / (image[0] * image[1])))
    return max(1, round(image[0] * factor)), max(1, round(image[1] * factor))


def finished(values: npt.NDArray[np.float32], meaning: Meaning) -> DepthMap:
    """Return a network's numbers as an answer's depth map, NaN where they say nothing.

    That is what is not finite or negative, and of metres also 0 and beyond `FARTHEST_M`.
    """
    with np.errstate(invalid="ignore"):
        known = np.isfinite(values) & (values >= 0)
        if meaning == METRIC:
            known &= (values > 0) & (values <= FARTHEST_M)
    depth: DepthMap = np.where(known, values, np.nan).astype(np.float32)
    return depth
