"""The acceptance gate: nothing unproven goes live.

Candidate and incumbent are judged on the same held-out frames in the same run. The first
student has no incumbent; it must beat the best constant depth clearly.
"""

from __future__ import annotations

from dataclasses import dataclass

from tiekd_ros.core.settings import Settings, setting
from tiekd_ros.method.comparison import PairedErrors
from tiekd_ros.method.metrics import DepthMetrics


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
    """Accepted or not, why, and the scores behind it (means over held-out frames)."""

    accepted: bool
    reason: str
    before: DepthMetrics
    after: DepthMetrics
    baseline: str  # "incumbent" or "best constant"


def judge_first(errors: PairedErrors, settings: GateSettings) -> GateVerdict:
    """Judge a first student by its errors and those of the best constant depth."""
    candidate, constant = errors.candidate_mean, errors.reference_mean
    rmse, abs_rel = errors.ratio("rmse"), errors.ratio("abs_rel")
    share = 0.5 * (rmse + abs_rel)
    accepted = share <= settings.first_margin and max(rmse, abs_rel) < 1
    reason = (
        f"held-out errors are {share:.2f} of the best constant's (at most "
        f"{settings.first_margin:g} is asked, and less than 1 in each): AbsRel "
        f"{candidate.abs_rel:.3f} against {constant.abs_rel:.3f}, RMSE "
        f"{candidate.rmse:.3f} against {constant.rmse:.3f} m"
    )
    return GateVerdict(accepted, reason, constant, candidate, "best constant")


def judge_against_incumbent(errors: PairedErrors, settings: GateSettings) -> GateVerdict:
    """Judge a candidate by its errors and those of the student that is live."""
    candidate, incumbent = errors.candidate_mean, errors.reference_mean
    abs_rel, rmse = errors.ratio("abs_rel") - 1, errors.ratio("rmse") - 1
    gain = -0.5 * (abs_rel + rmse)
    accepted = gain >= settings.min_gain and max(abs_rel, rmse) <= settings.max_loss
    reason = (
        f"held-out AbsRel {incumbent.abs_rel:.3f} -> {candidate.abs_rel:.3f} ({abs_rel:+.1%}), "
        f"RMSE {incumbent.rmse:.3f} -> {candidate.rmse:.3f} m ({rmse:+.1%})"
    )
    return GateVerdict(accepted, reason, incumbent, candidate, "incumbent")
