"""The canary of a promoted student: what speaks against it, and what is done then."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.method.comparison import PairedErrors
from tiekd_ros.method.metrics import DepthMetrics
from tiekd_ros.rounds.canary import CanarySettings, judge_canary
from tiekd_ros.rounds.plan import RoundPlan
from tiekd_ros.rounds.round_log import CanaryRecord, CanaryState, RoundRecord, RoundState


def scored(error: float, count: int = 1) -> list[DepthMetrics]:
    """Return the metrics of frames whose AbsRel is a tenth of this, and RMSE this."""
    values = {field.name: 0.5 for field in dataclasses.fields(DepthMetrics)}
    return [DepthMetrics(**{**values, "rmse": error, "abs_rel": 0.1 * error})] * count


@pytest.mark.parametrize(
    ("watched", "worse"),
    [
        (scored(1.0, 10), False),
        (scored(0.5, 10), False),  # better
        (scored(1.04, 10), False),  # within the tolerance
        (scored(1.06, 10), True),
        (scored(1.3, 7) + scored(1.0, 3), True),
        (scored(1.3, 6) + scored(1.0, 4), False),  # worse in the mean, and on too few of them
        (scored(1.0, 9) + scored(50.0), False),  # one frame is no proof, however wrong
        (scored(1.01, 9) + scored(50.0), False),  # nor with others that are a trifle worse
        (scored(1.06, 7) + scored(0.5, 3), False),  # most are worse, others better by more
    ],
)
def test_a_student_is_worse_where_mean_and_most_frames_say_so(watched, worse):
    assert judge_canary(PairedErrors(watched, scored(1.0, 10)), CanarySettings()).worse is worse


def test_tolerance_and_support_are_settings_and_the_verdict_says_its_numbers():
    for bad, settings, worse in (
        (7, {"tolerance": 0.25}, False),
        (7, {"support": 0.75}, False),
        (6, {"support": 0.6}, True),
    ):
        errors = PairedErrors(scored(1.3, bad) + scored(1.0, 10 - bad), scored(1.0, 10))
        assert judge_canary(errors, CanarySettings(**settings)).worse is worse
    found = judge_canary(PairedErrors(scored(1.2, 10), scored(1.0, 10)), CanarySettings())
    assert found.frames == 10
    assert "on 10 frames since its promotion" in found.reason
    assert "AbsRel 0.100 -> 0.120 (+20.0%), RMSE 1.000 -> 1.200 m (+20.0%)" in found.reason
    assert "more than 5.0% worse on 100% of them (65% would be needed)" in found.reason
    assert (found.before.rmse, found.after.rmse) == pytest.approx((1.0, 1.2))


def share_found_worse(factor: float, alike: int = 1) -> float:
    """Return how often a student is found worse whose errors are really these times as large.

    Both students' errors scatter by a tenth from frame to frame, each in its own way; `alike`
    frames in a row say the same.
    """
    rng, found, count = np.random.default_rng(0), 0, 300
    for _ in range(count):
        both = np.exp(rng.normal(0.0, 0.1, (2, 32 // alike))).repeat(alike, axis=1)
        watched, before = (
            [scored(float(error))[0] for error in one] for one in (both[0] * factor, both[1])
        )
        found += judge_canary(PairedErrors(watched, before), CanarySettings()).worse
    return found / count


def test_chance_is_not_taken_for_proof_and_proof_is_found():
    assert share_found_worse(1.0) <= 0.01
    assert share_found_worse(1.0, alike=4) <= 0.06
    assert share_found_worse(1.2) >= 0.97


def test_bad_settings_are_refused_by_name():
    for values, message in (
        ({"frames": 3}, "frames must be between 4 and 10000, got 3"),
        ({"tolerance": -0.1}, "tolerance must be between 0 and 10, got -0.1"),
        ({"support": 0.4}, "support must be between 0.5 and 1, got 0.4"),
    ):
        with pytest.raises(InvalidSettingError, match=f"canary.*{message}"):
            RoundPlan.from_mapping({"canary": values})


def test_a_record_with_the_names_of_before_is_read():
    text = json.dumps(
        {
            "number": 3, "state": "accepted", "resting": False, "rested_seconds": 1.5,
            "watch": {"predecessor": "000001", "after_id": 7, "state": "ended well"},
        }
    )  # fmt: skip
    record = RoundRecord.from_json(text)
    assert (record.state, record.paused_seconds) == (RoundState.PROMOTED, 1.5)
    assert record.canary == CanaryRecord("000001", 7, state=CanaryState.KEPT)
    assert RoundRecord.from_json(record.to_json()) == record
