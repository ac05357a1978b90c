"""The acceptance gate: nothing unproven goes live.

Candidate and incumbent are judged on the same held-out frames in the same run, paired by frame. The
first student has no incumbent; it must beat the best constant depth clearly.

A mean hides a bad room, and a bad near field. So beside the gain itself, which must be more than
chance, there are checks of what must not get worse. A candidate is refused where one of them is
worse by more than is allowed, and worse at all in nine of ten bootstrap draws. What an image takes
needs no check: candidate and incumbent have the same architecture and input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tiekd_ros.core.settings import Settings, setting
from tiekd_ros.method.comparison import Change, PairedErrors
from tiekd_ros.method.metrics import NEAR_M, FrameMetrics


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
        "least relative improvement of AbsRel over the incumbent",
        minimum=0.0,
        maximum=1.0,
    )
    confidence_level: float = setting(
        0.8,
        "level of the bootstrap interval of that improvement, which must lie above zero; 0 = the "
        "mean is enough",
        minimum=0.0,
        maximum=0.999,
    )
    max_loss: float = setting(
        0.02,
        f"most that RMSE, AbsRel nearer than {NEAR_M:g} m and AbsRel on the frames of before the "
        "incumbent may get worse, relative",
        minimum=0.0,
        maximum=10.0,
    )
    max_detail_loss: float = setting(
        0.05,
        "most that AbsRel of the worst tenth of the frames and the outlines (boundary F1) may get "
        "worse, relative",
        minimum=0.0,
        maximum=10.0,
    )


_WORST = 0.1  # share of the frames
PROOF = 0.9
"""Share of the draws in which a loss has to be there; at level 0.8 a gain has to be in as many."""
_LEAST_F1 = 0.05  # of outlines that are not there anyway, nothing is lost
_MAX_SPREAD_LOSS = 0.3


@dataclass(frozen=True)
class Check:
    """One thing that a candidate was judged by, as it stands on its card.

    Attributes:
        name: of it.
        before: the incumbent's mean over the frames.
        after: the candidate's.
        change: relative, below 0 = worse: as `Change.relative`.
        allowed: the least change.
        passed: whether it was met.
        interval: ends of the bootstrap interval of the change.
    """

    name: str
    before: float
    after: float
    change: float
    allowed: float
    passed: bool
    interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.name} {self.before:.3f} -> {self.after:.3f} ({abs(self.change):.1%} "
            f"{'better' if self.change > 0 else 'worse'}, interval {low:+.1%} to {high:+.1%})"
        )


@dataclass(frozen=True)
class GateVerdict:
    """Accepted or not, why, and the scores behind it (means over held-out frames)."""

    accepted: bool
    reason: str
    before: FrameMetrics
    after: FrameMetrics
    baseline: str  # "incumbent" or "best constant"
    checks: tuple[Check, ...] = ()


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


def judge_against_incumbent(
    known: PairedErrors, new: PairedErrors, settings: GateSettings
) -> GateVerdict:
    """Judge a candidate by its errors and those of the student that is live.

    Frames whose labels both students find to be outliers do not count.

    Args:
        known: of frames of before the incumbent was trained, which show what it knows; may be
            empty.
        new: of the others; may be empty as well, but not both.
        settings: what is asked.

    Raises:
        BadDepthError: there is no frame.
    """
    known, new = known.without_outliers(), new.without_outliers()
    errors = known + new
    candidate, incumbent = errors.candidate_mean, errors.reference_mean
    gain = _gain(errors, settings)
    checks = (gain, *_losses(known, errors, settings))
    failed = [
        f"{check}, at most {-check.allowed:.1%} worse is allowed"
        for check in checks[1:]
        if not check.passed
    ]
    if not gain.passed:
        failed.insert(0, f"a gain of {gain.allowed:.1%} in AbsRel, and beyond chance, is asked")
    rmse = errors.ratio("rmse") - 1
    reason = f"held-out {gain}, RMSE {incumbent.rmse:.3f} -> {candidate.rmse:.3f} m ({rmse:+.1%})"
    return GateVerdict(
        not failed, "; ".join((reason, *failed)), incumbent, candidate, "incumbent", checks
    )


def _gain(errors: PairedErrors, settings: GateSettings) -> Check:
    change = errors.change("abs_rel")
    assert change is not None  # each frame has it
    low, high = change.interval(settings.confidence_level)
    gain, least = -change.relative, settings.min_gain
    certain = settings.confidence_level == 0 or -high > 0
    passed = gain >= least and certain and change.after <= change.before
    return Check("AbsRel", change.before, change.after, gain, least, passed, (-high, -low))


def _losses(known: PairedErrors, errors: PairedErrors, settings: GateSettings) -> Iterator[Check]:
    """Yield the checks of what must not get worse."""
    most, most_detail = settings.max_loss, settings.max_detail_loss
    level = settings.confidence_level

    def check(name: str, change: Change | None, most: float, *, larger: bool) -> Iterator[Check]:
        if change is None:
            return
        sign = 1 if larger else -1  # of what is better
        ends = sorted(sign * end for end in change.interval(level))
        drawn, better = sign * change.drawn, sign * change.relative
        lost = better < -most and float(np.mean(drawn < 0)) >= PROOF
        passed = not lost and not math.isnan(better)
        yield Check(name, change.before, change.after, better, -most, passed, (ends[0], ends[1]))

    near = f"AbsRel nearer than {NEAR_M:g} m"
    yield from check("RMSE", errors.change("rmse"), most, larger=False)
    yield from check(near, errors.change("near_abs_rel"), most, larger=False)
    yield from check("AbsRel on known frames", known.change("abs_rel"), most, larger=False)
    worst = errors.change_of_mean("abs_rel", worst=_WORST)
    yield from check("AbsRel of the worst tenth", worst, most_detail, larger=False)
    outlines = errors.change_of_mean("boundary_f1", least=_LEAST_F1)
    yield from check("boundary F1", outlines, most_detail, larger=True)
    yield from check("spread of depth", errors.change("spread"), _MAX_SPREAD_LOSS, larger=True)
