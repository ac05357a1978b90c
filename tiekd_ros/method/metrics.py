"""Depth metrics after Eigen et al. 2014, as used on KITTI and NYU, and the best constant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import numpy.typing as npt

from tiekd_ros.core.errors import BadDepthError

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


def mean_metrics(each: Sequence[DepthMetrics]) -> DepthMetrics:
    """Return the plain mean over images, as the published evaluations do.

    Raises:
        BadDepthError: there is nothing to average.
    """
    if not each:
        raise BadDepthError("no image had a valid pixel to compare")
    names = [f.name for f in fields(DepthMetrics)]
    return DepthMetrics(**{n: float(np.mean([getattr(m, n) for m in each])) for n in names})


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
