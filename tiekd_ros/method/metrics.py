"""Depth metrics after Eigen et al. 2014, as used on KITTI and NYU, and those at outlines.

Means over a shared batch stand here, too.

Where several processes train, each holds its part of a batch. Their gradients are averaged, so
the loss of each has to be its share of the whole batch's loss times the number of processes:
dividing by its own count of valid pixels would weigh a process with few of them too much.
In one process all of this is the plain mean.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, fields
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_reduce

from tiekd_ros.core.errors import BadDepthError
from tiekd_ros.core.images import DepthMap

_sharing = False


@contextlib.contextmanager
def shared_batches() -> Iterator[None]:
    """Within the block, batches are shared by all processes of the default group.

    Every process has to compute the same losses in the same order.
    """
    global _sharing
    before, _sharing = _sharing, dist.is_available() and dist.is_initialized()
    try:
        yield
    finally:
        _sharing = before


def processes() -> int:
    """Return how many processes share a batch."""
    return dist.get_world_size() if _sharing else 1


def batch_count(mask: Tensor) -> Tensor:
    """Return how many elements are True in the whole batch, or the sum of weights, a scalar."""
    count = mask.sum()
    if _sharing:
        dist.all_reduce(count)
    return count


def batch_sum(local: Tensor) -> Tensor:
    """Return the sum over all processes of a scalar or small tensor, differentiable.

    For losses that are no mean over pixels: computed from such sums, the loss is the same
    number in every process, and the average of the gradients is the whole batch's gradient.
    """
    if not _sharing:
        return local
    total: Tensor = all_reduce(local)
    return total


def masked_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return this process's share of the whole batch's mean; 0 where all weights are.

    Args:
        values: any shape.
        weights: the same shape, bool, or numbers that are 0 or at least 1; where one is 0 or
            False, the value may be NaN.
    """
    kept = torch.where(weights > 0, values, torch.zeros_like(values))
    total = (kept if weights.dtype == torch.bool else kept * weights).sum()
    return total * processes() / batch_count(weights).clamp_min(1)


FloatArray = npt.NDArray[np.floating]


@dataclass(frozen=True)
class DepthMetrics:
    """Errors of one depth map or their mean; a1..a3 are shares, higher is better."""

    abs_rel: float
    sq_rel: float  # metres
    rmse: float  # metres
    rmse_log: float
    log10: float
    silog: float  # 100 * standard deviation of the log error
    a1: float
    a2: float
    a3: float

    def as_dict(self) -> dict[str, float]:
        """Return the values by name."""
        return asdict(self)


NEAR_M = 2.0
"""What is nearer than this is where a robot bumps into things."""


@dataclass(frozen=True)
class FrameMetrics(DepthMetrics):
    """What a student is judged by on one frame, or its mean; NaN = the label does not tell."""

    near_abs_rel: float = float("nan")
    """AbsRel where the truth is nearer than `NEAR_M`."""
    boundary_f1: float = float("nan")
    """Outlines that are there, and only there: `boundary_errors`."""
    flying: float = float("nan")
    """Share of pixels at outlines that are on no surface: `boundary_errors`."""
    spread: float = float("nan")
    """Standard deviation of ln depth over the truth's, at most 1; 0 = one depth everywhere."""

    def as_dict(self) -> dict[str, float]:
        """Return the values by name, those that are known."""
        return {name: value for name, value in asdict(self).items() if not np.isnan(value)}


def valid_pixels(
    truth: FloatArray, min_depth_m: float, max_depth_m: float
) -> npt.NDArray[np.bool_]:
    """Return where the truth is known and strictly inside the range."""
    return (truth > min_depth_m) & (truth < max_depth_m)  # NaN compares False


def depth_metrics(
    predicted: FloatArray, truth: FloatArray, min_depth_m: float, max_depth_m: float
) -> DepthMetrics | None:
    """Compare a depth map with the truth over the valid pixels of the truth.

    Args:
        predicted: metres, any shape; clamped to the range.
        truth: metres, the same shape; NaN or out of range = not compared.
        min_depth_m: near end of the range that counts.
        max_depth_m: far end of the range that counts.

    Returns:
        The metrics, or None where no pixel of the truth is valid.

    Raises:
        BadDepthError: the shapes differ, or the prediction has NaN where the truth is valid.
    """
    if predicted.shape != truth.shape:
        raise BadDepthError(f"cannot compare depth of shape {predicted.shape} with {truth.shape}")
    valid = valid_pixels(truth, min_depth_m, max_depth_m)
    if not valid.any():
        return None
    t = truth[valid].astype(np.float64)
    p = predicted[valid].astype(np.float64)
    if np.isnan(p).any():
        raise BadDepthError("the predicted depth has NaN where the truth is known")
    return depth_errors(p.clip(min_depth_m, max_depth_m), t)


def frame_metrics(
    predicted: DepthMap, truth: DepthMap, min_depth_m: float, max_depth_m: float
) -> FrameMetrics | None:
    """Compare a depth map with the truth, also near by, at outlines and in its spread.

    Arguments, result and errors as for `depth_metrics`, of (H, W).
    """
    errors = depth_metrics(predicted, truth, min_depth_m, max_depth_m)
    if errors is None:
        return None
    clipped = predicted.clip(min_depth_m, max_depth_m)
    known = np.where(valid_pixels(truth, min_depth_m, max_depth_m), truth, np.float32(np.nan))
    near = valid_pixels(truth, min_depth_m, min(NEAR_M, max_depth_m))
    near_errors = np.abs(clipped[near] - truth[near]) / truth[near]  # a missed obstacle is far off
    outlines = boundary_errors(clipped, known)
    with np.errstate(divide="ignore", invalid="ignore"):
        there = np.isfinite(known)
        spread = np.log(clipped[there]).std() / np.log(known[there]).std()  # of one pixel: 0 / 0
    return FrameMetrics(
        **asdict(errors),
        near_abs_rel=float(near_errors.mean(dtype=np.float64)) if near.any() else float("nan"),
        boundary_f1=outlines.f1,
        flying=outlines.flying,
        spread=min(float(spread), 1.0) if np.isfinite(spread) else float("nan"),
    )


def depth_errors(p: npt.NDArray[np.float64], t: npt.NDArray[np.float64]) -> DepthMetrics:
    """Compare depths p with t, metres, both (N,), N > 0 and positive; nothing is clamped.

    Formulas of Eigen et al. 2014, natural logarithms but for log10.
    """
    error = p - t
    log_error = np.log(p) - np.log(t)
    ratio = np.maximum(p / t, t / p)
    return DepthMetrics(
        abs_rel=float(np.mean(np.abs(error) / t)),
        sq_rel=float(np.mean(error**2 / t)),
        rmse=float(np.sqrt(np.mean(error**2))),
        rmse_log=float(np.sqrt(np.mean(log_error**2))),
        log10=float(np.mean(np.abs(np.log10(p) - np.log10(t)))),
        silog=float(100 * np.sqrt(max(np.mean(log_error**2) - np.mean(log_error) ** 2, 0.0))),
        a1=float(np.mean(ratio < 1.25)),
        a2=float(np.mean(ratio < 1.25**2)),
        a3=float(np.mean(ratio < 1.25**3)),
    )


_Metrics = TypeVar("_Metrics", bound=DepthMetrics)


def mean_metrics(each: Sequence[_Metrics]) -> _Metrics:
    """Return the plain mean over images, as published; BadDepthError where there is none.

    Of a metric that not every image has, the mean over those that do.
    """
    if not each:
        raise BadDepthError("no image had a valid pixel to compare")
    kind = type(each[0])
    return kind(**{f.name: _mean(f, [getattr(m, f.name) for m in each]) for f in fields(kind)})


def _mean(field: Field[float], values: Sequence[float]) -> float:
    if field.default is not MISSING:  # may be unknown
        values = [value for value in values if not np.isnan(value)]
    return float(np.mean(values)) if values else float("nan")


def best_constant(truths: Sequence[FloatArray], min_depth_m: float, max_depth_m: float) -> float:
    """Return the constant depth in metres with the least mean RMSE over these maps.

    It is what an answer without looking at the image could reach at best.

    Raises:
        BadDepthError: no map has a valid pixel.
    """
    means, squares = [], []
    for truth in truths:
        t = truth[valid_pixels(truth, min_depth_m, max_depth_m)].astype(np.float64)
        if t.size:
            means.append(t.mean())
            squares.append((t**2).mean())
    if not means:
        raise BadDepthError("no depth map has a valid pixel inside the range")
    mean, square = np.array(means), np.array(squares)
    candidates = np.linspace(mean.min(), mean.max(), 512)[:, None]  # mean RMSE is convex in it
    rmse = np.sqrt(np.maximum(square - 2 * candidates * mean + candidates**2, 0)).mean(axis=1)
    return float(candidates[int(rmse.argmin()), 0])


_RATIOS = np.linspace(1.05, 1.25, 10)
EDGE_RATIO = 1.15
"""Of neighbours' depths, at least, at an outline."""
_REACH_PX = 3  # from an outline
_OFF_SURFACE = 1.05  # ratio of depths


class BoundaryErrors(NamedTuple):
    """Errors at outlines; NaN where the truth has no outline."""

    f1: float
    """How many outlines are there, and only there: 0 to 1, higher is better."""
    flying: float
    """Share of the pixels at outlines whose depth lies between both surfaces, on neither."""


def boundary_errors(predicted: DepthMap, truth: DepthMap) -> BoundaryErrors:
    """Compare a depth map with the truth at the outlines of objects.

    F1 is the scale-free measure of Depth Pro (arXiv 2410.02073, section 4): an outline is between
    neighbours whose depths have a ratio above t; precision and recall are averaged over the
    four directions, and F1 over t = 1.05 to 1.25, weighted by t. Neighbours of which one has no
    known truth do not count.

    A pixel is flying if it is within 3 px of an outline (t = 1.15) and its depth is more than
    5 % away from both the nearest and the farthest true depth within 3 px, and between them.
    Where the truth itself is so, the pixel does not count.

    Args:
        predicted: (H, W), without NaN where the truth is known.
        truth: (H, W).

    Raises:
        BadDepthError: the shapes differ.
    """
    if predicted.shape != truth.shape:
        raise BadDepthError(f"cannot compare depth of shape {predicted.shape} with {truth.shape}")
    predicted = np.where(np.isfinite(truth), predicted, np.float32(np.nan))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return BoundaryErrors(_f1(predicted, truth), _flying(predicted, truth))


def _steps(depth: DepthMap) -> list[npt.NDArray[np.float32]]:
    """Return each pixel's depth over its neighbour's: left, right, above, below."""
    across, down = depth[:, 1:] / depth[:, :-1], depth[1:] / depth[:-1]
    return [across, 1 / across, down, 1 / down]


def _f1(predicted: DepthMap, truth: DepthMap) -> float:
    found, wanted = _steps(predicted), _steps(truth)
    if not any((step > _RATIOS[0]).any() for step in wanted):
        return float("nan")
    scores = []
    for ratio in _RATIOS:
        edges = [(one > ratio, other > ratio) for one, other in zip(found, wanted, strict=True)]
        hits = [int((mine & true).sum()) for mine, true in edges]
        each = zip(hits, edges, strict=True)
        shares = [(n / max(mine.sum(), 1), n / max(true.sum(), 1)) for n, (mine, true) in each]
        precision, recall = np.mean(shares, axis=0)
        scores.append(2 * precision * recall / max(precision + recall, 1e-12))
    return float(np.average(scores, weights=_RATIOS))


def _flying(predicted: DepthMap, truth: DepthMap) -> float:
    outline = np.zeros(truth.shape, np.uint8)
    across, right, down, below = (step > EDGE_RATIO for step in _steps(truth))
    outline[:, 1:] |= across | right
    outline[:, :-1] |= across | right
    outline[1:] |= down | below
    outline[:-1] |= down | below
    window = np.ones((2 * _REACH_PX + 1, 2 * _REACH_PX + 1), np.uint8)
    # Not one pixel more: those of the outline itself are on both of its sides already.
    at_outline = cv2.dilate(outline, window[1:-1, 1:-1]) > 0
    known = np.isfinite(truth)
    nearest = cv2.erode(np.where(known, truth, np.float32(np.inf)), window)
    farthest = cv2.dilate(np.where(known, truth, np.float32(-np.inf)), window)

    def between(depth: DepthMap) -> npt.NDArray[np.bool_]:
        off: npt.NDArray[np.bool_] = (depth > nearest * _OFF_SURFACE) & (
            depth < farthest / _OFF_SURFACE
        )
        return off

    counts = at_outline & known & ~between(truth)
    return float(between(predicted)[counts].mean()) if counts.any() else float("nan")
