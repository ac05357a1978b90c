"""Doubted labels that agree with each other: a new place, a poor student, or another unit.

A test passes when the first two are believed in the end, and told of, and the last never is.
"""

from __future__ import annotations

import pytest

from helpers.teachers import METRIC, ramp
from helpers.trust import QUICK, judge_of, refusal, seen
from tiekd_ros.teacher.errors import TeacherAnswerError
from tiekd_ros.teacher.trust import LabelJudge, TrustSettings


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
