"""What a promoted student has to stand: frames that came after its promotion.

The gate judged it on frames of the places that the robot knew by then. Once enough newer ones
have their labels, it is compared with its predecessor again, frame by frame: neither was trained
on them. The watch is the counterpart of the gate and uses its metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tiekd_ros.core.settings import Settings, setting
from tiekd_ros.method.metrics import DepthMetrics, mean_metrics


@dataclass(frozen=True)
class WatchSettings(Settings):
    """When a promoted student is compared with its predecessor, and what speaks against it."""

    enabled: bool = setting(
        True,
        "judge a promoted student on frames that came after its promotion, and go back to its "
        "predecessor where it is clearly worse",
    )
    frames: int = setting(
        32, "newly labelled frames that are waited for, and judged", minimum=4, maximum=10_000
    )
    tolerance: float = setting(
        0.05,
        "how much worse than its predecessor a student may be, relative (mean of AbsRel and RMSE)",
        minimum=0.0,
        maximum=10.0,
    )
    support: float = setting(
        0.65,
        "least share of the frames on which it has to be worse by more than the tolerance, each "
        "for itself, before anything is rolled back",
        minimum=0.5,
        maximum=1.0,
    )


@dataclass(frozen=True)
class WatchVerdict:
    """Clearly worse or not, why, and the scores that it rests on (means over the frames)."""

    worse: bool
    reason: str
    frames: int
    before: DepthMetrics
    """Of the predecessor."""
    after: DepthMetrics
    """Of the watched student."""


def judge_watched(
    watched: Sequence[DepthMetrics], predecessor: Sequence[DepthMetrics], settings: WatchSettings
) -> WatchVerdict:
    """Compare a live student with its predecessor, paired by frame.

    It is clearly worse where its mean errors are, by more than the tolerance, and most frames say
    the same each for itself: a few frames that are very wrong, of one doubtful label or one odd
    place, prove nothing, and neither do many that are a trifle worse.

    Args:
        watched: the live student's errors, one entry a frame.
        predecessor: the predecessor's, of the same frames.
        settings: tolerance and support.

    Raises:
        BadDepthError: there is no frame.
    """
    after, before = mean_metrics(watched), mean_metrics(predecessor)
    abs_rel = _change(after.abs_rel, before.abs_rel)
    rmse = _change(after.rmse, before.rmse)
    change = 0.5 * (abs_rel + rmse)
    each = [
        0.5 * (_change(one.abs_rel, other.abs_rel) + _change(one.rmse, other.rmse))
        for one, other in zip(watched, predecessor, strict=True)
    ]
    support = float(np.mean([value > settings.tolerance for value in each]))
    reason = (
        f"on {len(each)} frames since its promotion AbsRel {before.abs_rel:.3f} -> "
        f"{after.abs_rel:.3f} ({abs_rel:+.1%}), RMSE {before.rmse:.3f} -> {after.rmse:.3f} m "
        f"({rmse:+.1%}) against its predecessor; more than {settings.tolerance:.1%} worse on "
        f"{support:.0%} of them ({settings.support:.0%} would be needed)"
    )
    worse = change > settings.tolerance and support >= settings.support
    return WatchVerdict(worse, reason, len(each), before, after)


def _change(after: float, before: float) -> float:
    return after / max(before, 1e-9) - 1
