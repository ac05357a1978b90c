"""What an answer must look like before it is believed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tiekd_ros.core.settings import Settings, setting
from tiekd_ros.teacher.errors import TeacherAnswerError
from tiekd_ros.teacher.protocol import DepthAnswer


@dataclass(frozen=True)
class AnswerChecks(Settings):
    """Thresholds of `check_answer`."""

    min_known_share: float = setting(
        0.05,
        "least share of pixels with known depth; LiDAR-sparse labels need less, about 0.001",
        minimum=0.0,
        maximum=1.0,
    )
    max_depth_m: float = setting(
        1000.0, "largest depth that is believed", unit="m", minimum=1.0, maximum=100000.0
    )
    min_relative_spread: float = setting(
        0.002,
        "least spread of depth, (95th - 5th percentile) / median: below it the map is taken "
        "for a constant that a broken teacher sends",
        minimum=0.0,
        maximum=1.0,
    )
    aspect_tolerance: float = setting(
        0.02,
        "largest relative difference between the aspect ratios of depth map and image",
        minimum=0.0,
        maximum=0.5,
    )


def check_answer(
    answer: DepthAnswer,
    image_width: int,
    image_height: int,
    checks: AnswerChecks | None = None,
) -> None:
    """Refuse an answer that cannot be a depth map of an image of this size.

    Raises:
        TeacherAnswerError: wrong rank or aspect ratio, negative or implausibly large depth,
            too little known, nearly constant, or a confidence that is none; the text says
            what was met.
    """
    checks = checks or AnswerChecks()
    depth = answer.depth
    _check_shape(depth, image_width, image_height, checks)
    _check_values(depth, checks)
    if answer.confidence is not None:
        _check_confidence(answer.confidence, depth.shape)


def _check_shape(
    depth: npt.NDArray[np.float32], image_width: int, image_height: int, checks: AnswerChecks
) -> None:
    if depth.ndim != 2 or depth.size == 0:
        raise TeacherAnswerError(
            f"a depth map has the shape (H, W), got {depth.shape}", "label_shape"
        )
    height, width = depth.shape
    aspect = (width * image_height) / (height * image_width)
    if abs(aspect - 1.0) > checks.aspect_tolerance:
        raise TeacherAnswerError(
            f"the depth map is {width}x{height} for an image of {image_width}x{image_height}: "
            "the aspect ratios differ, so it does not show the same view",
            "label_shape",
        )


def _check_values(depth: npt.NDArray[np.float32], checks: AnswerChecks) -> None:
    known = depth[~np.isnan(depth)]
    if known.size and float(known.min()) < 0:
        raise TeacherAnswerError(
            f"depth goes down to {float(known.min()):.6g} m; it must be positive, and NaN where "
            "it is unknown",
            "label_range",
        )
    if known.size and float(known.max()) > checks.max_depth_m:
        raise TeacherAnswerError(
            f"depth goes up to {float(known.max()):.6g} m, beyond max_depth_m = "
            f"{checks.max_depth_m:g}; it must be in metres, and NaN where it is unknown",
            "label_range",
        )
    known = known[known > 0]
    share = known.size / depth.size
    if known.size == 0 or share < checks.min_known_share:
        raise TeacherAnswerError(
            f"only {share:.2%} of the depth map is known, less than min_known_share = "
            f"{checks.min_known_share:.2%}",
            "label_unknown",
        )
    low, middle, high = np.percentile(known, (5, 50, 95))
    if (high - low) / middle < checks.min_relative_spread:
        raise TeacherAnswerError(
            f"the depth map is nearly constant (5th to 95th percentile {low:.6g} to {high:.6g} m)"
            ": no view of a room looks like this; is the teacher broken?",
            "label_constant",
        )


def _check_confidence(confidence: npt.NDArray[np.float32], shape: tuple[int, ...]) -> None:
    if confidence.shape != shape:
        raise TeacherAnswerError(
            f"confidence has the shape {confidence.shape}, its depth map {shape}; they must agree",
            "label_confidence",
        )
    if bool(((confidence < 0) | (confidence > 1)).any()):
        raise TeacherAnswerError(
            f"confidence ranges from {np.nanmin(confidence):.6g} to {np.nanmax(confidence):.6g}; "
            "it must lie between 0 and 1",
            "label_confidence",
        )
