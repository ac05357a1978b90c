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
from tiekd_ros.core.labels import Label
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
    past = Label(ramp(), METRIC.name, METRIC.version)
    judge = LabelJudge(TrustSettings(**QUICK), [past] * 3)
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


def test_a_student_is_needed_where_something_is_compared_with_it():
    off = {"max_scale_jump": 0.0, "max_student_factor": 0.0}
    assert TrustSettings().needs_student
    assert TrustSettings(max_scale_jump=0.0).needs_student
    assert not TrustSettings(student=False).needs_student
    assert not TrustSettings(**off).needs_student


# Doubted labels that agree with each other: a new place, a poor student, or another unit.


def test_labels_that_agree_with_each_other_long_enough_are_a_new_place(caplog):
    judge = judge_of(3, settle=4)
    for scale in (10.0, 11.0, 12.0):
        assert refusal(judge, scale) == "label_scale_jump"
    judge.judge(METRIC, ramp() * 11)
    assert "new place" in caplog.text
    judge.judge(METRIC, ramp() * 12)
    assert refusal(judge, 1.0) == "label_scale_jump"


def test_labels_that_do_not_agree_with_each_other_never_settle():
    judge = judge_of(3, settle=3)
    for scale in (1000.0, 0.001) * 4:
        assert refusal(judge, scale) == "label_scale_jump"


def test_a_robot_that_goes_to_and_fro_gets_both_its_places_believed(caplog):
    judge = judge_of(3, settle=4)
    for _ in range(3):
        assert refusal(judge, 10.0) == "label_scale_jump"
        judge.judge(METRIC, ramp())
    judge.judge(METRIC, ramp() * 10)
    for _ in range(20):
        judge.judge(METRIC, ramp())
        judge.judge(METRIC, ramp() * 10)
    assert caplog.text.count("new place") == 1


def test_only_the_last_answers_count():
    judge = judge_of(3, settle=3, history=4)
    for _ in range(3):
        assert refusal(judge, 10.0) == "label_scale_jump"
        for _ in range(2):
            judge.judge(METRIC, ramp())


def test_one_frame_that_is_asked_for_again_does_not_settle_by_itself():
    judge = judge_of(3, settle=3)
    for _ in range(6):
        with pytest.raises(TeacherAnswerError):
            judge.judge(METRIC, ramp() * 10, frame_id=7)


@pytest.mark.parametrize("scale", [100.0, 0.01, 1000.0, 21.0])
def test_another_unit_never_settles(scale):
    judge = judge_of(3, settle=3)
    for _ in range(40):
        assert refusal(judge, scale) == "label_scale_jump"
    judge.judge(METRIC, ramp())
    assert judge.snapshot().settled == 0


def test_another_unit_does_not_settle_against_the_student_either():
    judge = LabelJudge(TrustSettings(**{**QUICK, "settle": 3}))
    for _ in range(3):
        judge.judge(METRIC, ramp(), seen())
    for _ in range(10):
        assert refusal(judge, 100.0, seen()) == "label_against_student"


def test_what_settled_is_told_until_there_is_a_history_again():
    judge = judge_of(3, settle=2, history=4)
    assert not judge.snapshot().settled_lately
    assert refusal(judge, 10.0) == "label_scale_jump"
    for lately in (True, True, True, False):
        judge.judge(METRIC, ramp() * 10)
        assert judge.snapshot().settled == 1
        assert judge.snapshot().settled_lately == lately


def test_a_scale_that_settled_is_what_the_next_label_is_held_against_at_once():
    judge = judge_of(8, settle=2, min_history=8)
    assert refusal(judge, 10.0) == "label_scale_jump"
    judge.judge(METRIC, ramp() * 10)
    assert refusal(judge, 1000.0) == "label_scale_jump"


def test_a_student_that_every_label_contradicts_alike_is_overruled(caplog):
    judge = judge_of(3, settle=3)
    for _ in range(2):
        assert refusal(judge, 1.0, seen(0.04)) == "label_against_student"
    judge.judge(METRIC, ramp(), seen(0.04))
    assert "student 000001 is off by a factor of about 25" in caplog.text
    judge.judge(METRIC, ramp(), seen(0.04))
    judge.judge(METRIC, ramp(), seen(1.0))
    assert judge.snapshot().settled == 1
    assert refusal(judge, 1.0, seen(0.04, version="000002")) == "label_against_student"


def test_labels_that_contradict_the_student_each_in_another_way_do_not_settle():
    judge = LabelJudge(TrustSettings(**{**QUICK, "settle": 3, "max_student_factor": 3.0}))
    for _ in range(3):
        judge.judge(METRIC, ramp(), seen())
    for scale in (3.5, 0.27) * 2:
        assert refusal(judge, scale, seen()) == "label_against_student"
