"""The verdicts of gate and canary, the frames they judge by, and a round's start by itself."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest

from helpers.frames import samples
from helpers.students import BINS, small_student
from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.errors import BadDepthError, InvalidSettingError, RoundRefusedError
from tiekd_ros.core.settings import Settings
from tiekd_ros.framelog import LabelledSpan
from tiekd_ros.method.comparison import PairedErrors, compare, constant_predictor, student_predictor
from tiekd_ros.method.first_student import (
    StudentSettings,
    first_bins,
    first_input_size,
    median_focal,
)
from tiekd_ros.method.metrics import FrameMetrics, best_constant, frame_metrics, mean_metrics
from tiekd_ros.method.samples import Sample
from tiekd_ros.rounds.canary import CanarySettings, judge_canary
from tiekd_ros.rounds.gate import (
    GateSettings,
    GateVerdict,
    judge_against_incumbent,
    judge_first,
)
from tiekd_ros.rounds.plan import RoundPlan, RoundSettings, check_enough, choose_frames
from tiekd_ros.rounds.round_log import (
    CanaryRecord,
    CanaryState,
    RoundKind,
    RoundRecord,
    RoundState,
)
from tiekd_ros.rounds.triggers import (
    DueRound,
    TriggerFacts,
    automatic_triggers,
    describe_next,
    due_round,
)
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime

PERFECT = FrameMetrics(0, 0, 0, 0, 0, 0, 1, 1, 1)
NONE = PairedErrors([], [])


def paired(candidate: tuple[float, float], reference: tuple[float, float]) -> PairedErrors:
    """Return the errors of one frame, each (RMSE, AbsRel)."""
    one, other = (
        dataclasses.replace(PERFECT, rmse=rmse, abs_rel=abs_rel)
        for rmse, abs_rel in (candidate, reference)
    )
    return PairedErrors([one], [other])


def test_a_first_student_must_beat_the_best_constant_clearly():
    for rmse, abs_rel, accepted in (
        (0.8, 0.40, True),  # both at the margin
        (0.9, 0.34, True),  # their mean below it
        (0.8, 0.41, False),
        (0.1, 0.50, False),  # one much better, the other no better
        (1.0, 0.05, False),
        (math.nan, 0.1, False),
    ):
        verdict = judge_first(paired((rmse, abs_rel), (1.0, 0.5)), GateSettings())
        assert verdict.accepted is accepted, verdict
        assert verdict.baseline == "best constant"
        assert f"RMSE {rmse:.3f} against 1.000 m" in verdict.reason


def test_a_candidate_must_be_better_than_the_incumbent_and_lose_nothing():
    for rmse, abs_rel, accepted in (
        (0.99, 0.0990, True),  # both a little better
        (1.00, 0.1000, False),  # the same is not better
        (0.90, 0.0997, False),  # 0.3 %: below min_gain
        (1.019, 0.0900, True),  # RMSE within max_loss
        (1.025, 0.0800, False),
        (0.80, 0.1025, False),  # RMSE is no AbsRel
        (1.10, math.nan, False),
    ):
        errors = paired((rmse, abs_rel), (1.0, 0.1))
        verdict = judge_against_incumbent(NONE, errors, GateSettings())
        assert verdict.accepted is accepted, verdict
        assert verdict.baseline == "incumbent"
        assert "1.000 ->" in verdict.reason


GOOD = dataclasses.replace(
    PERFECT, rmse=1.0, abs_rel=0.1, near_abs_rel=0.05, boundary_f1=0.3, spread=0.9
)
BETTER = dataclasses.replace(GOOD, rmse=0.9, abs_rel=0.09)


def verdict_on(candidates: list[FrameMetrics], **settings: float) -> GateVerdict:
    """Judge against an incumbent that is GOOD on every frame; the first half is known to it."""
    half, count = len(candidates) // 2, len(candidates)
    known, new = (
        PairedErrors(candidates[part], [GOOD] * len(candidates[part]))
        for part in (slice(half), slice(half, count))
    )
    return judge_against_incumbent(known, new, GateSettings(**settings))


@pytest.mark.parametrize(
    ("candidates", "refusal"),
    [
        ([BETTER] * 20, None),
        (
            [dataclasses.replace(BETTER, abs_rel=0.06)] * 3
            + [dataclasses.replace(BETTER, abs_rel=0.104)] * 17,  # better in the mean
            "a gain of 0.5% in AbsRel, and beyond chance, is asked",
        ),
        ([dataclasses.replace(BETTER, rmse=1.03)] * 20, "RMSE 1.000 -> 1.030 (3.0% worse"),
        (
            [dataclasses.replace(BETTER, near_abs_rel=0.06)] * 20,
            "AbsRel nearer than 2 m 0.050 -> 0.060 (20.0% worse, interval -20.0%",
        ),
        (
            [dataclasses.replace(BETTER, abs_rel=0.104)] * 10
            + [dataclasses.replace(BETTER, abs_rel=0.05)] * 10,
            "AbsRel on known frames 0.100 -> 0.104",
        ),
        (
            ([BETTER] * 5 + [dataclasses.replace(BETTER, abs_rel=0.11)] * 2) * 3,
            "AbsRel of the worst tenth 0.100 -> 0.110",
        ),
        ([dataclasses.replace(BETTER, boundary_f1=0.27)] * 20, "boundary F1 0.300 -> 0.270"),
        ([dataclasses.replace(BETTER, spread=0.5)] * 20, "spread of depth 0.900 -> 0.500"),
    ],
    ids=["good", "chance", "rmse", "near", "known", "worst", "outlines", "spread"],
)  # fmt: skip
def test_each_loss_refuses_a_better_candidate_with_its_numbers(candidates, refusal):
    verdict = verdict_on(candidates)
    assert verdict.accepted is (refusal is None), verdict.reason
    failed = [check for check in verdict.checks if not check.passed]
    assert len(failed) == (refusal is not None)
    assert (refusal or "AbsRel 0.100 -> 0.090 (10.0% better") in verdict.reason
    assert [check.name for check in verdict.checks] == [
        "AbsRel", "RMSE", "AbsRel nearer than 2 m", "AbsRel on known frames",
        "AbsRel of the worst tenth", "boundary F1", "spread of depth",
    ]  # fmt: skip


def test_what_the_labels_do_not_tell_is_not_asked_and_a_loss_by_chance_is_none():
    blind = dataclasses.replace(BETTER, near_abs_rel=math.nan, boundary_f1=math.nan)
    reference = dataclasses.replace(GOOD, near_abs_rel=math.nan, boundary_f1=math.nan)
    verdict = judge_against_incumbent(NONE, PairedErrors([blind], [reference]), GateSettings())
    assert verdict.accepted
    assert [check.name for check in verdict.checks] == [
        "AbsRel", "RMSE", "AbsRel of the worst tenth", "spread of depth",
    ]  # fmt: skip
    # 4 % worse near by in the mean, from three frames of twenty: they may have been any.
    unlucky = [dataclasses.replace(BETTER, near_abs_rel=0.05 * f) for f in (1.9, 1.9, 1.9)]
    lucky = [dataclasses.replace(BETTER, near_abs_rel=0.045)] * 17
    assert verdict_on(lucky[:9] + unlucky + lucky[9:]).accepted
    assert "boundary_f1" not in verdict.after.as_dict()  # no NaN in a card


def test_a_near_thing_that_is_missed_and_a_collapsed_depth_are_measured():
    truth = np.full((48, 64), 4.0, np.float32)
    truth[16:32, 16:32] = 1.8
    truth[0] = np.nan
    missed = frame_metrics(np.full_like(truth, 8.0), truth, 0.1, 10.0)
    assert missed.near_abs_rel == pytest.approx(8.0 / 1.8 - 1)
    assert missed.spread == pytest.approx(0.0, abs=1e-5)
    exact = frame_metrics(np.nan_to_num(truth, nan=1.0), truth, 0.1, 10.0)
    assert (exact.near_abs_rel, exact.boundary_f1, exact.spread) == (0.0, 1.0, 1.0)
    wide = frame_metrics(np.nan_to_num(truth**2 / 4.0, nan=1.0), truth, 0.1, 10.0)
    assert wide.spread == 1.0  # too much is no gain, and to correct it no loss
    assert np.isnan(frame_metrics(truth[:8], truth[:8], 0.1, 10.0).near_abs_rel)


def test_frames_without_anything_to_compare_are_told():
    with pytest.raises(BadDepthError, match="valid pixel"):
        judge_against_incumbent(NONE, NONE, GateSettings())


def share_that_goes_live(gain: float, frames: int = 36) -> float:
    """Return how often a candidate goes live whose errors are really smaller by this.

    Errors scatter by a tenth from frame to frame, alike in each four that follow each other.
    """
    rng, live = np.random.default_rng(0), 0
    for _ in range(100):
        noise = np.exp(rng.normal(0.0, 0.1, frames // 4)).repeat(4)
        live += verdict_on(
            [dataclasses.replace(BETTER, abs_rel=0.1 * (1 - gain) * n) for n in noise]
        ).accepted
    return live / 100


def test_chance_goes_live_seldom_and_a_gain_mostly():
    assert share_that_goes_live(0.0) <= 0.12
    assert share_that_goes_live(-0.05) <= 0.02
    assert share_that_goes_live(0.15) >= 0.8


def test_a_label_that_both_find_odd_says_nothing_and_one_that_the_candidate_misses_does():
    def errors(odd: float) -> list[FrameMetrics]:
        usual = [dataclasses.replace(PERFECT, rmse=0.1, abs_rel=0.1) for _ in range(12)]
        usual[5] = dataclasses.replace(PERFECT, rmse=odd, abs_rel=odd)
        return usual

    assert len(PairedErrors(errors(0.9), errors(0.8)).without_outliers()) == 11
    for one, other in ((0.9, 0.1), (0.1, 0.9), (0.14, 0.14), (0.1, 0.1)):
        assert len(PairedErrors(errors(one), errors(other)).without_outliers()) == 12
    hard = [dataclasses.replace(PERFECT, abs_rel=0.1 if n < 12 else 0.9) for n in range(24)]
    assert len(PairedErrors(hard, hard).without_outliers()) == 24  # a place that is new to both
    assert len(PairedErrors(hard[10:14], hard[10:14]).without_outliers()) == 4  # too few to tell
    assert len(NONE.without_outliers()) == 0


def test_margins_are_settings():
    easy = GateSettings(first_margin=1.0, min_gain=0.0, max_loss=1.0)
    assert judge_first(paired((0.99, 0.49), (1.0, 0.5)), easy).accepted
    assert not judge_against_incumbent(NONE, paired((1.0, 0.1), (1.0, 0.1)), easy).accepted
    anything = dataclasses.replace(easy, confidence_level=0.0)
    assert judge_against_incumbent(NONE, paired((1.0, 0.1), (1.0, 0.1)), anything).accepted
    strict = GateSettings(min_gain=1.0)
    assert not judge_against_incumbent(NONE, paired((0.1, 0.01), (1.0, 0.1)), strict).accepted


# The errors that both judge by.


def test_errors_are_paired_by_frame_within_the_range_and_their_means_are_plain():
    runtime, seen, done = TorchRuntime(small_student()), samples(3), []
    student, constant = student_predictor(runtime), constant_predictor(seen, BINS)
    found = compare(student, constant, seen, BINS, on_frame=done.append)
    value = best_constant([s.depth for s in seen], 0.1, 10.0)
    each = [frame_metrics(runtime.predict(s.image).depth, s.depth, 0.1, 10.0) for s in seen]
    other = [frame_metrics(np.full_like(s.depth, value), s.depth, 0.1, 10.0) for s in seen]
    assert (found.candidate, found.reference, done) == (each, other, [1, 2, 3])
    assert (found.candidate_mean, found.reference_mean) == (mean_metrics(each), mean_metrics(other))
    assert found.ratio("rmse") == mean_metrics(each).rmse / mean_metrics(other).rmse


def test_frames_without_a_known_pixel_are_passed_over_but_not_all_of_them():
    blank = Sample(np.zeros((64, 96, 3), np.uint8), np.full((64, 96), np.nan, np.float32))
    seen = samples(3)
    constant = constant_predictor(seen, BINS)
    assert compare(constant, constant, [blank, *seen], BINS) == compare(
        constant, constant, seen, BINS
    )
    assert len(compare(constant, constant, iter([seen[0], blank, *seen]), BINS, most=2)) == 2
    with pytest.raises(BadDepthError, match="valid pixel"):
        judge_first(compare(constant, constant, [blank], BINS), GateSettings())


# The frames that are judged by, and what a first student is.


def test_half_the_places_go_to_the_newest_and_the_rest_to_a_draw_of_the_older():
    assert choose_frames([3, 1, 2], 3, seed=0) == [3, 1, 2]  # all, while they are few
    ids = list(range(100, 200))
    for limit in (1, 2, 9, 10):
        chosen = choose_frames(ids, limit, seed=1)
        newest = (limit + 1) // 2
        assert len(set(chosen)) == limit
        assert chosen[-newest:] == ids[-newest:]
        assert all(i in ids[:-newest] for i in chosen[:-newest])
        assert chosen == choose_frames(ids, limit, seed=1)
    assert choose_frames(ids, 50, seed=1) != choose_frames(ids, 50, seed=2)


def test_too_few_frames_are_refused_with_the_numbers():
    for train, held_out in ((39, 4), (40, 3), (0, 0)):
        with pytest.raises(RoundRefusedError) as refused:
            check_enough(train, held_out, RoundSettings())
        assert f"{train} for training (need 40)" in str(refused.value)
        assert f"{held_out} held out (need 4)" in str(refused.value)
    check_enough(40, 4, RoundSettings())


def test_the_first_range_holds_the_labels_or_is_taken_as_given():
    for deepest, far in ((2.0, 10.0), (10.0, 10.0), (15.0, 20.0), (75.0, 80.0), (250.0, 200.0)):
        depth = np.linspace(0.5, deepest, 64 * 64, dtype=np.float32).reshape(64, 64)
        depth[0] = np.nan
        assert first_bins([depth], StudentSettings()).max_depth_m == far
    stray = np.full((64, 640), 4.0, np.float32)
    stray[0, :100] = 150.0  # 0.2 % do not stretch it
    assert first_bins([stray], StudentSettings()).max_depth_m == 10.0
    unknown = [np.full((8, 8), np.nan, np.float32)]
    bins = first_bins(unknown, StudentSettings(max_depth_m=33.0, min_depth_m=0.3, bins=65))
    assert (bins.count, bins.min_depth_m, bins.max_depth_m) == (65, 0.3, 33.0)
    for depths in ([], unknown):
        with pytest.raises(RoundRefusedError, match="look at the teacher"):
            first_bins(depths, StudentSettings())


def test_input_and_focal_length_of_a_first_student_are_the_cameras():
    assert first_input_size(480, 640, StudentSettings(pixels=4096)) == InputSize(64, 96)
    image, depth = np.zeros((64, 96, 3), np.uint8), np.ones((64, 96), np.float32)
    seen = [Sample(image, depth, Intrinsics(f, 2 * f, 1, 1)) for f in (50.0, 60.0, 900.0)]
    assert median_focal([*seen, Sample(image, depth)]) == (60.0, 120.0)
    assert median_focal([Sample(image, depth)]) is None


def test_a_plan_survives_its_way_to_the_worker_and_a_mistake_is_refused_by_name():
    plan = RoundPlan.from_mapping({"train": {"iterations": 7}, "gate": {"min_gain": 0.5}})
    assert plan.train.iterations == 7
    assert RoundPlan.from_mapping(plan.as_dict()) == plan
    for groups, message in (
        ({"trian": {}}, "unknown group of settings 'trian': known are distill, student, train"),
        ({"train": {"iteration": 1}}, "unknown setting 'iteration'"),
        ({"train": {"iterations": 0}}, "iterations must be between 1"),
        ({"canary": {"frames": 3}}, "canary.frames must be between 4 and 10000, got 3"),
        ({"canary": {"tolerance": -0.1}}, "canary.tolerance must be between 0 and 10, got -0.1"),
    ):
        with pytest.raises(InvalidSettingError, match=message):
            RoundPlan.from_mapping(groups)


# What speaks against a promoted student.


def scored(error: float, count: int = 1) -> list[FrameMetrics]:
    """Return the metrics of frames whose AbsRel is a tenth of this, and RMSE this."""
    values = {field.name: 0.5 for field in dataclasses.fields(FrameMetrics)}
    return [FrameMetrics(**{**values, "rmse": error, "abs_rel": 0.1 * error})] * count


@pytest.mark.parametrize(
    ("promoted", "worse"),
    [
        (scored(1.0, 10), False),
        (scored(0.5, 10), False),  # better
        (scored(1.04, 10), False),  # within the tolerance
        (scored(1.06, 10), True),
        (scored(1.3, 7) + scored(1.0, 3), True),
        (scored(1.3, 3) + scored(1.0, 7), False),  # worse in the mean, but few frames say so
        (scored(1.0, 9) + scored(50.0), False),  # one frame is no proof, however wrong
        (scored(1.06, 7) + scored(0.5, 3), False),  # most are worse, others better by more
    ],
)
def test_a_student_is_worse_where_nearly_all_draws_of_the_frames_say_so(promoted, worse):
    assert judge_canary(PairedErrors(promoted, scored(1.0, 10)), CanarySettings()).worse is worse


def test_the_tolerance_is_a_setting_and_the_verdict_says_its_numbers():
    errors = PairedErrors(scored(1.2, 10), scored(1.0, 10))
    assert not judge_canary(errors, CanarySettings(tolerance=0.25)).worse
    found = judge_canary(errors, CanarySettings())
    assert (found.frames, found.worse) == (10, True)
    assert "on 10 frames since its promotion AbsRel 0.100 -> 0.120 (+20.0%" in found.reason
    assert "RMSE 1.000 -> 1.200 m (+20.0%, interval +20.0% to +20.0%)" in found.reason
    assert found.reason.endswith("clearly more than 5.0% worse")
    assert (found.before.rmse, found.after.rmse) == pytest.approx((1.0, 1.2))
    far = [dataclasses.replace(one, abs_rel=0.1) for one in scored(1.2, 10)]
    assert judge_canary(PairedErrors(far, scored(1.0, 10)), CanarySettings()).worse


def share_found_worse(factor: float, alike: int = 1) -> float:
    """Return how often a student is found worse whose errors are really these times as large.

    Both students' errors scatter by a tenth from frame to frame, each in its own way; `alike`
    frames in a row say the same.
    """
    rng, found, count = np.random.default_rng(0), 0, 300
    for _ in range(count):
        both = np.exp(rng.normal(0.0, 0.1, (2, 32 // alike))).repeat(alike, axis=1)
        after, before = (
            [scored(float(error))[0] for error in one] for one in (both[0] * factor, both[1])
        )
        found += judge_canary(PairedErrors(after, before), CanarySettings()).worse
    return found / count


def test_chance_is_not_taken_for_proof_and_proof_is_found():
    assert share_found_worse(1.0) <= 0.01
    assert share_found_worse(1.0, alike=4) <= 0.06
    assert share_found_worse(1.2) >= 0.97


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


def facts(plan: RoundPlan, **known: Any) -> TriggerFacts:
    """Return facts of a companion with a student; what is not given must not be read."""

    def unread() -> Any:
        raise AssertionError("read without need")

    read = dict.fromkeys(("new_labels", "labelled", "last_calibration", "drift"), unread)
    usual = {"now_s": 0.0, "plan": plan, "has_student": True, "refused": lambda most: 0}
    return TriggerFacts(**{**usual, "charging": False, **read, **known})


def test_a_period_starts_a_round_once_with_enough_new_labels():
    triggers = automatic_triggers(0.0)

    def due(now_s: float, labels: int, period_s: float = 10.0) -> str | None:
        plan = RoundPlan(distill=RoundSettings(period_s=period_s, min_new_labels=5))
        found = due_round(triggers, facts(plan, now_s=now_s, new_labels=lambda: labels))
        return None if found is None else found.reason

    assert due(9.9, 5) is None
    assert due(10.0, 4) is None  # over without enough of them: it begins anew
    assert due(19.9, 5) is None
    assert due(20.0, 5) == "period: 5 new labels"
    assert due(21.0, 5) is None
    for trigger in triggers:
        trigger.on_start(25.0)  # by a call, for instance
    assert due(34.9, 9) is None
    assert due(35.0, 9) == "period: 9 new labels"
    assert due(1e9, 10**6, period_s=0.0) is None


def test_drift_starts_a_round_with_enough_labels_within_the_budget():
    def due(now_s: float, labels: int, text: str | None = "it drifts", **distill) -> str | None:
        plan = RoundPlan(distill=RoundSettings(**{"drift": True, "min_new_labels": 5, **distill}))
        known = facts(plan, now_s=now_s, new_labels=lambda: labels, drift=lambda: text)
        found = due_round(triggers, known)
        return None if found is None else found.reason

    triggers = automatic_triggers(0.0)
    assert due(1.0, 5) == "drift: it drifts; 5 new labels"
    assert due(1.0, 4) is None
    assert due(1.0, 5, None) is None
    assert due(1.0, 5, drift=False) is None
    for trigger in triggers:
        trigger.on_start(2.0)
    assert due(3.0, 9, max_per_hour=1) is None
    assert due(3.0, 9, max_per_hour=2) is not None
    assert due(3700.0, 9, max_per_hour=1) is not None


def test_refused_rounds_are_tried_again_with_more_labels_and_drift_does_not_wait():
    def due(labels: int, refused: int, **distill) -> str | None:
        plan = RoundPlan(distill=RoundSettings(min_new_labels=5, period_s=1.0, **distill))
        found = due_round(automatic_triggers(0.0), asked(plan, labels, refused))
        return None if found is None else found.reason

    def asked(plan: RoundPlan, labels: int, refused: int) -> TriggerFacts:
        return facts(
            plan, now_s=2.0, new_labels=lambda: labels, drift=lambda: "it drifts",
            refused=lambda most: min(refused, most),
        )  # fmt: skip

    for refused, needed in ((0, 5), (1, 10), (2, 20), (9, 40)):
        assert due(needed, refused) == f"period: {needed} new labels"
        assert due(needed - 1, refused) is None
    assert due(5, 9, drift=True) == "drift: it drifts; 5 new labels"
    plan = RoundPlan(distill=RoundSettings(min_new_labels=5, period_s=1.0, drift=True))
    text = describe_next(automatic_triggers(0.0), asked(plan, 7, 1))
    assert text == "by period, 10 new labels after refusals or by drift, 5 (now 7)"
    nothing = describe_next(automatic_triggers(0.0), asked(RoundPlan(), 7, 1))
    assert nothing == "none: rounds start when distill is called"


def test_without_a_charger_only_a_person_starts_a_round_where_that_is_asked():
    distill = RoundSettings(period_s=1.0, drift=True, only_while_charging=True)
    for charging, expected in ((False, None), (True, "drift: it drifts; 50 new labels")):
        triggers = automatic_triggers(0.0)
        known = facts(
            RoundPlan(distill=distill), now_s=2.0, new_labels=lambda: 50, charging=charging,
            drift=lambda: "it drifts",
        )  # fmt: skip
        found = due_round(triggers, known)
        assert (None if found is None else found.reason) == expected
        assert ("held back: the robot does not charge" in describe_next(triggers, known)) == (
            not charging
        )


def test_the_first_labels_start_a_calibration_and_after_a_refusal_twice_as_many():
    triggers = automatic_triggers(0.0)
    before: RoundRecord | None = None

    def due(labels: int, seconds: float = 10.0, **groups: Settings) -> DueRound | None:
        known = facts(
            RoundPlan(**groups),
            has_student=False,
            labelled=lambda: LabelledSpan(labels, seconds),
            last_calibration=lambda: before,
        )
        return due_round(triggers, known)

    assert due(11) is None
    assert due(12, seconds=3.0) is None  # one view
    assert due(12) == (RoundKind.CALIBRATION, "first labels: 12")
    assert due(12) is not None  # until one was tried
    assert due(500, distill=RoundSettings(first_labels=0)) is None
    assert due(500, student=StudentSettings(start="random")) is None
    assert due(5, distill=RoundSettings(first_labels=5)) is not None
    before = RoundRecord(1, kind=RoundKind.CALIBRATION, state=RoundState.REFUSED, labels=14)
    assert due(27) is None
    assert due(28) is not None
    assert due_round(triggers, facts(RoundPlan())) is None  # asks for nothing
