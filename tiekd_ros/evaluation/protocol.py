"""The published evaluation protocols of KITTI Eigen and NYU Depth v2.

Per image: the window of the test (KITTI's KB crop), a prediction that is the mean of the image's
and its mirror image's, clamped to the depth range, and nine errors over the valid pixels of the
truth inside a crop; then the plain mean over the images. No median scaling.

Shapes: B batch, H and W the picture. Depth in metres; a truth that is NaN or 0 is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from tiekd_ros.core.errors import BadDepthError, InvalidSettingError
from tiekd_ros.method.metrics import DepthMetrics, depth_errors, depth_metrics, valid_pixels
from tiekd_ros.student.bins import DepthBins

METRIC_NAMES = (
    "a1", "a2", "a3", "abs_rel", "rmse", "log_10", "rmse_log", "silog", "sq_rel",
)  # fmt: skip
"""Published names of the nine errors against the truth."""

TEACHER_METRIC_NAMES = (
    "a1_T", "a2_T", "a3_T", "abs_rel_T", "rmse_T", "rmse_log_T", "sq_rel_T",
)  # fmt: skip
"""Published names of the seven errors against the teacher."""

FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Protocol:
    """What one data set's published evaluation counts."""

    min_depth_m: float
    max_depth_m: float
    crop: str  # a name in CROPS
    kb_crop: bool  # cut picture and truth to KITTI's 352x1216 first
    teacher_top: int  # first row that counts in the comparison with the teacher


KITTI_PROTOCOL = Protocol(1e-3, 80.0, "garg", kb_crop=True, teacher_top=110)
NYU_PROTOCOL = Protocol(1e-3, 10.0, "nyu", kb_crop=False, teacher_top=0)

_PUBLISHED = {"kitti": KITTI_PROTOCOL, "nyu": NYU_PROTOCOL}

# Share of height (top, bottom) and width (left, right), of the map after the KB crop.
_SHARES = {
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
    "eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
}
_NYU_BOUNDS = (45, 471, 41, 601)
CROPS = (*_SHARES, "nyu", "none")
"""Crops by name: where truth counts."""


def protocol_for(kind: str, bins: DepthBins, crop: str | None = None) -> Protocol:
    """Return what counts on data of a layout.

    KITTI and NYU have their published protocols; elsewhere the student's depth range counts, in
    the whole image.

    Args:
        kind: the layout, such as `kitti`.
        bins: the student's.
        crop: a name in `CROPS`, instead of the protocol's.
    """
    own = Protocol(bins.min_depth_m, bins.max_depth_m, "none", kb_crop=False, teacher_top=0)
    protocol = _PUBLISHED.get(kind, own)
    return protocol if crop is None else replace(protocol, crop=crop)


def crop_mask(crop: str, height: int, width: int) -> BoolArray:
    """Return where a crop lets truth count, (height, width); InvalidSettingError for others."""
    if crop in _SHARES:
        up, down, left, right = _SHARES[crop]
        bounds = (int(up * height), int(down * height), int(left * width), int(right * width))
    elif crop == "nyu":
        bounds = _NYU_BOUNDS
    elif crop == "none":
        bounds = (0, height, 0, width)
    else:
        names = ", ".join(repr(name) for name in CROPS)
        raise InvalidSettingError(f"crop must be one of {names}, got {crop!r}")
    mask = np.zeros((height, width), dtype=bool)
    mask[bounds[0] : bounds[1], bounds[2] : bounds[3]] = True
    return mask


def evaluation_mask(truth: FloatArray, protocol: Protocol) -> BoolArray:
    """Return which pixels of a truth (H, W) count: known, strictly in range, inside the crop."""
    valid = valid_pixels(truth, protocol.min_depth_m, protocol.max_depth_m)
    return valid & crop_mask(protocol.crop, *truth.shape)


@dataclass(frozen=True)
class ImageScore:
    """One image's errors. None = not one pixel to compare (the published code ends there)."""

    truth: DepthMetrics | None
    teacher: DepthMetrics | None
    valid_pixels: int

    def as_row(self) -> dict[str, float]:
        """Return the published 16 values by their published names; NaN where there is none."""
        against_truth = _row(METRIC_NAMES, self.truth)
        return against_truth | _row(TEACHER_METRIC_NAMES, self.teacher)


@dataclass(frozen=True)
class MeanScore:
    """The mean over images."""

    values: dict[str, float]  # by published name; NaN where no image had a value
    without_truth: int  # images that counted for nothing against the truth


def score_image(
    predicted: FloatArray,
    truth: FloatArray | None,
    protocol: Protocol,
    teacher: FloatArray | None = None,
) -> ImageScore:
    """Score one prediction.

    Args:
        predicted: metres, (H, W), of the picture after the KB crop where there is one; it is
            clamped to the depth range.
        truth: metres, the same shape, or None.
        protocol: what counts.
        teacher: metres, the same shape, or None. All its known pixels from the protocol's
            first row on count, out of range and outside the crop too.

    Raises:
        BadDepthError: the shapes differ, or a prediction is NaN where it counts.
    """
    low, high = protocol.min_depth_m, protocol.max_depth_m
    against_truth, count = None, 0
    if truth is not None:
        _same_shape(predicted, truth, "truth")
        mask = evaluation_mask(truth, protocol)
        count = int(mask.sum())
        counted = np.where(mask, truth, np.nan)
        against_truth = depth_metrics(predicted, counted, low, high)
    agreement = None
    if teacher is not None:
        _same_shape(predicted, teacher, "teacher's map")
        agreement = _agreement(predicted, teacher, protocol)
    return ImageScore(against_truth, agreement, count)


def mean_score(scores: Sequence[ImageScore]) -> MeanScore:
    """Return the plain mean over images that have a value; BadDepthError without any image."""
    if not scores:
        raise BadDepthError("there is no image to take the mean of")
    rows = [score.as_row() for score in scores]
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    known = {name: column[~np.isnan(column)] for name, column in columns.items()}
    values = {name: float(c.mean()) if c.size else float("nan") for name, c in known.items()}
    return MeanScore(values, sum(score.truth is None for score in scores))


def flip_averaged(predict: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """Return the mean of the image's prediction and its mirror image's, mirrored back.

    `predict` turns images (B, 3, H, W) into maps (B, 1, H, W).
    """
    mirrored = predict(image.flip(-1)).flip(-1)
    return 0.5 * (predict(image) + mirrored)


def _agreement(
    predicted: FloatArray, teacher: FloatArray, protocol: Protocol
) -> DepthMetrics | None:
    p, t = predicted[protocol.teacher_top :], teacher[protocol.teacher_top :]
    known = np.isfinite(t) & (t > 0)
    if not known.any():
        return None
    student = p[known].astype(np.float64)
    if np.isnan(student).any():
        raise BadDepthError("the predicted depth has NaN where the teacher's is known")
    clamped = student.clip(protocol.min_depth_m, protocol.max_depth_m)
    return depth_errors(clamped, t[known].astype(np.float64))


def _row(names: Sequence[str], metrics: DepthMetrics | None) -> dict[str, float]:
    if metrics is None:
        return dict.fromkeys(names, float("nan"))
    values = metrics.as_dict() | {"log_10": metrics.log10}
    return {name: values[name.removesuffix("_T")] for name in names}


def _same_shape(predicted: FloatArray, other: FloatArray, what: str) -> None:
    if predicted.shape != other.shape or predicted.ndim != 2:
        raise BadDepthError(
            f"the prediction is {predicted.shape} and the {what} {other.shape}: both must be "
            "(H, W) of the picture as it is evaluated, on KITTI after its 352x1216 crop"
        )
