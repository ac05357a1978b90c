"""The acceptance gate: nothing unproven goes live.

Candidate and incumbent are judged on the same held-out frames in the same run. The first
student has no incumbent; it must beat the best constant depth clearly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tiekd_ros.core.settings import Settings, setting
from tiekd_ros.method.metrics import DepthMetrics, best_constant, depth_metrics, mean_metrics
from tiekd_ros.method.samples import Sample
from tiekd_ros.student import DepthBins, Runtime


@dataclass(frozen=True)
class GateSettings(Settings):
    """What a candidate has to show."""

    first_margin: float = setting(
        0.8,
        "a first student's errors must be at most this share of the best constant's (mean of "
        "AbsRel and RMSE; neither may be larger)",
        minimum=0.05,
        maximum=1.0,
    )
    min_gain: float = setting(
        0.005,
        "least mean relative improvement of AbsRel and RMSE over the incumbent",
        minimum=0.0,
        maximum=1.0,
    )
    max_loss: float = setting(
        0.02, "most that either of the two may get worse, relative", minimum=0.0, maximum=1.0
    )


@dataclass(frozen=True)
class GateVerdict:
    """Accepted or not, why, and the scores that it rests on (means over held-out frames)."""

    accepted: bool
    reason: str
    before: DepthMetrics
    after: DepthMetrics
    baseline: str  # "incumbent" or "best constant"


def score_student(
    runtime: Runtime,
    samples: Sequence[Sample],
    bins: DepthBins,
    report: Callable[[int], None] = lambda done: None,
) -> DepthMetrics:
    """Judge a student on samples, within the range of `bins`; `report` gets how many are done.

    Raises:
        BadDepthError: no sample has a valid pixel.
    """
    each = []
    for done, sample in enumerate(samples, start=1):
        predicted = runtime.predict(sample.image, confidence=False).depth
        each.append(depth_metrics(predicted, sample.depth, bins.min_depth_m, bins.max_depth_m))
        report(done)
    return mean_metrics([m for m in each if m is not None])


def score_best_constant(samples: Sequence[Sample], bins: DepthBins) -> DepthMetrics:
    """Judge the best constant depth on samples."""
    low, high = bins.min_depth_m, bins.max_depth_m
    constant = best_constant([s.depth for s in samples], low, high)
    each = [depth_metrics(np.full_like(s.depth, constant), s.depth, low, high) for s in samples]
    return mean_metrics([m for m in each if m is not None])


def judge_first(
    candidate: DepthMetrics, constant: DepthMetrics, settings: GateSettings
) -> GateVerdict:
    """Compare a first student with the best constant depth."""
    rmse = candidate.rmse / max(constant.rmse, 1e-9)
    abs_rel = candidate.abs_rel / max(constant.abs_rel, 1e-9)
    share = 0.5 * (rmse + abs_rel)
    accepted = share <= settings.first_margin and max(rmse, abs_rel) < 1
    reason = (
        f"held-out errors are {share:.2f} of the best constant's (at most "
        f"{settings.first_margin:g} is asked): AbsRel {candidate.abs_rel:.3f} against "
        f"{constant.abs_rel:.3f}, RMSE {candidate.rmse:.3f} against {constant.rmse:.3f} m"
    )
    return GateVerdict(accepted, reason, constant, candidate, "best constant")


def judge_against_incumbent(
    candidate: DepthMetrics, incumbent: DepthMetrics, settings: GateSettings
) -> GateVerdict:
    """Compare a candidate with the student that is live."""
    abs_rel = candidate.abs_rel / max(incumbent.abs_rel, 1e-9) - 1
    rmse = candidate.rmse / max(incumbent.rmse, 1e-9) - 1
    gain = -0.5 * (abs_rel + rmse)
    accepted = gain >= settings.min_gain and max(abs_rel, rmse) <= settings.max_loss
    reason = (
        f"held-out AbsRel {incumbent.abs_rel:.3f} -> {candidate.abs_rel:.3f} ({abs_rel:+.1%}), "
        f"RMSE {incumbent.rmse:.3f} -> {candidate.rmse:.3f} m ({rmse:+.1%})"
    )
    return GateVerdict(accepted, reason, incumbent, candidate, "incumbent")
