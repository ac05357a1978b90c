"""Labels that are good pictures of a wrong scale, and rooms that are only larger than the last.

A test passes when the first are refused with a reason fit for counting, and the second believed.
"""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest

from helpers.teachers import METRIC, ramp
from helpers.trust import QUICK, judge_of, refusal, seen
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.teacher.errors import TeacherAnswerError
from tiekd_ros.teacher.protocol import TeacherIdentity
from tiekd_ros.teacher.trust import LabelJudge, TrustSettings, check_flip, log_factor

SUCCESSOR = TeacherIdentity("stub", "8", metric=True)


@pytest.mark.parametrize("scale", [1000.0, 0.001, 5.0, 0.2])
def test_a_label_of_another_scale_is_doubted(scale):
    judge = judge_of(3)
    assert refusal(judge, scale) == "label_scale_jump"
    judge.judge(METRIC, ramp())  # the next good one is believed


@pytest.mark.parametrize("scale", [3.5, 0.3, 1.0])
def test_a_label_within_the_factor_is_believed(scale):
    judge_of(3).judge(METRIC, ramp() * np.float32(scale))


def test_nothing_is_doubted_before_there_is_enough_history():
    judge = judge_of(2)
    judge.judge(METRIC, ramp() * 1000)


def test_a_place_of_near_and_far_views_widens_what_is_usual():
    judge = judge_of(3)
    judge.judge(METRIC, ramp() * 3)
    judge.judge(METRIC, ramp() * 9)  # beyond 4 times the first, not beyond 4 times the last


def test_the_message_says_both_depths_and_the_setting():
    with pytest.raises(
        TeacherAnswerError, match=r"3\.03e\+03 m.*3\.03 to 3\.03 m.*max_scale_jump = 4"
    ):
        judge_of(3).judge(METRIC, ramp() * 1000)


def test_a_change_that_the_student_sees_too_is_the_scene():
    judge = LabelJudge(TrustSettings(**QUICK))
    for _ in range(3):
        judge.judge(METRIC, ramp() * 0.3, seen(0.3))
    judge.judge(METRIC, ramp() * 1.5, seen(1.2))
    assert judge.snapshot().student_factor == pytest.approx(1.0, abs=0.2)


def test_a_change_that_the_student_does_not_see_is_the_teacher():
    judge = LabelJudge(TrustSettings(**QUICK))
    for _ in range(3):
        judge.judge(METRIC, ramp(), seen())
    assert refusal(judge, 6.0, seen()) == "label_scale_jump"


def test_a_student_that_is_always_off_by_a_factor_still_tells_scene_from_teacher():
    judge = LabelJudge(TrustSettings(**QUICK))
    for _ in range(3):
        judge.judge(METRIC, ramp() * 0.3, seen(0.08))
    judge.judge(METRIC, ramp() * 1.8, seen(0.45))
    assert refusal(judge, 20.0, seen(0.45)) == "label_against_student"


def test_a_label_far_from_the_student_is_doubted_even_where_labels_agree():
    judge = judge_of(3)
    assert refusal(judge, 1.0, seen(0.04)) == "label_against_student"
    judge.judge(METRIC, ramp(), seen(0.06))
    free = judge_of(3, max_student_factor=0.0)
    free.judge(METRIC, ramp(), seen(0.04))


def test_a_student_is_not_held_against_labels_without_history():
    judge_of().judge(METRIC, ramp(), seen(0.04))


def test_what_lies_beyond_the_students_range_says_nothing():
    far = ramp() * 30  # 30 to 150 m; a student of 10 m says 10 everywhere
    assert log_factor(far, seen(30.0)) is None
    judge = judge_of(3, scale=30.0)
    judge.judge(METRIC, far, seen(30.0))
    assert math.isnan(judge.snapshot().student_factor)


def test_another_student_begins_its_factors_anew():
    judge = LabelJudge(TrustSettings(**QUICK))
    for _ in range(3):
        judge.judge(METRIC, ramp(), seen(0.5))
    assert judge.snapshot().student_factor == pytest.approx(2.0, rel=0.05)
    judge.judge(METRIC, ramp(), seen(1.0, version="000002"))
    assert judge.snapshot().student_factor == pytest.approx(1.0, rel=0.05)


def test_zero_believes_any_scale():
    judge_of(3, max_scale_jump=0.0).judge(METRIC, ramp() * 1000)


def test_another_teacher_is_said_and_has_a_history_of_its_own(caplog):
    judge = judge_of(3)
    judge.judge(SUCCESSOR, ramp() * 10)
    assert "changed from stub 7 to stub 8" in caplog.text
    state = judge.snapshot()
    assert (state.teacher, state.changes, state.compared) == (SUCCESSOR, 1, 1)
    assert state.median_m == pytest.approx(30, rel=0.05)


def test_two_teachers_that_take_turns_keep_their_histories_and_are_one_change():
    judge = judge_of(3)
    for _ in range(4):
        judge.judge(SUCCESSOR, ramp() * 3)
        judge.judge(METRIC, ramp())
    assert judge.snapshot().changes == 1
    assert refusal(judge, 1000.0) == "label_scale_jump"
    with pytest.raises(TeacherAnswerError, match="scale_jump"):
        judge.judge(SUCCESSOR, ramp() * 1000)
    for number in range(20):
        judge.judge(TeacherIdentity("stub", f"9.{number}", metric=True), ramp())
    assert judge.snapshot().compared == 1


def test_labels_of_an_earlier_process_count():
    judge = LabelJudge(TrustSettings(**QUICK))
    for _ in range(3):
        judge.remember(METRIC, ramp())
    assert refusal(judge, 1000.0) == "label_scale_jump"
    assert judge.snapshot().compared == 3


def test_the_first_teacher_is_no_change():
    assert judge_of(1).snapshot().changes == 0
    assert judge_of().snapshot().teacher is None


def test_many_threads_may_ask_it():
    judge = judge_of()

    def ask() -> None:
        for _ in range(200):
            judge.judge(METRIC, ramp(), seen())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert judge.snapshot().compared == QUICK["history"]


def test_the_depth_of_a_mirrored_image_is_the_mirrored_depth():
    settings = TrustSettings(max_flip_difference=0.1)
    depth = ramp()
    check_flip(depth, depth[:, ::-1] * np.float32(1.05), settings)
    for mirrored in (depth, depth[:, ::-1] * 2, np.full_like(depth, np.nan), depth[:24]):
        with pytest.raises(TeacherAnswerError) as refused:
            check_flip(depth, mirrored, settings)
        assert refused.value.reason == "label_flip"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_scale_jump": 0.5}, "max_scale_jump must be greater than 1"),
        ({"max_student_factor": 1.0}, "max_student_factor must be greater than 1"),
        ({"history": 5, "min_history": 6}, "min_history must be at most history = 5"),
        ({"settle": 1}, "settle must be 2 to history = 30, or 0 for never, got 1"),
        ({"settle": 31}, "settle must be 2 to history = 30, or 0 for never, got 31"),
    ],
)
def test_settings_that_nothing_passes_are_refused(settings, message):
    with pytest.raises(InvalidSettingError, match=message):
        TrustSettings(**settings)
