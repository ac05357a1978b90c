"""Labels that are good pictures of a wrong scale, and rooms that are only larger than the last.

A test passes when the first are refused with a reason fit for counting, and the second believed.
"""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest

from helpers.teachers import METRIC, ramp
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.labels import Label, StudentDepth
from tiekd_ros.teacher.errors import TeacherAnswerError
from tiekd_ros.teacher.protocol import TeacherIdentity
from tiekd_ros.teacher.trust import LabelJudge, TrustSettings, check_flip, log_factor

SUCCESSOR = TeacherIdentity("stub", "8", metric=True)
QUICK = {"history": 10, "min_history": 3, "settle": 0}


def judge_of(labels: int = 0, scale: float = 1.0, **settings) -> LabelJudge:
    """Return a judge that has believed so many labels of this scale."""
    judge = LabelJudge(TrustSettings(**{**QUICK, **settings}))
    for _ in range(labels):
        judge.judge(METRIC, ramp() * np.float32(scale))
    return judge


def seen(scale: float = 1.0, version: str = "000001") -> StudentDepth:
    """Return the depth of the same view that a student of up to 10 m sees."""
    depth = np.nan_to_num(ramp() * np.float32(scale), nan=10.0).clip(0.1, 10.0)
    return StudentDepth(depth, version, 0.1, 10.0)


def refusal(judge: LabelJudge, scale: float, student: StudentDepth | None = None) -> str:
    """Return why a judge refuses a label of this scale."""
    with pytest.raises(TeacherAnswerError) as refused:
        judge.judge(METRIC, ramp() * np.float32(scale), student)
    return refused.value.reason


def test_a_label_of_another_scale_is_doubted_once_there_is_a_history():
    for scale in (1000.0, 0.001, 5.0, 0.2):
        judge = judge_of(3)
        assert refusal(judge, scale) == "label_scale_jump"
        judge.judge(METRIC, ramp())  # the next good one is believed
    for scale in (3.5, 0.3, 1.0):
        judge_of(3).judge(METRIC, ramp() * np.float32(scale))
    judge_of(2).judge(METRIC, ramp() * 1000)
    judge_of(3, max_scale_jump=0.0).judge(METRIC, ramp() * 1000)
    judge = judge_of(3)
    judge.judge(METRIC, ramp() * 3)
    judge.judge(METRIC, ramp() * 9)  # beyond 4 times the first, not beyond 4 times the last
    words = r"3\.03e\+03 m.*3\.03 to 3\.03 m.*max_scale_jump = 4"
    with pytest.raises(TeacherAnswerError, match=words):
        judge_of(3).judge(METRIC, ramp() * 1000)


def judge_with(label: float, student: float, **settings) -> LabelJudge:
    """Return a judge that believed three labels of a scale, with a student's depth of another."""
    judge = judge_of(**settings)
    for _ in range(3):
        judge.judge(METRIC, ramp() * np.float32(label), seen(student))
    return judge


def test_a_change_that_the_student_sees_too_is_the_scene_and_else_it_is_the_teacher():
    judge = judge_with(0.3, 0.3)
    judge.judge(METRIC, ramp() * 1.5, seen(1.2))
    assert judge.snapshot().student_factor == pytest.approx(1.0, abs=0.2)
    assert refusal(judge_with(1.0, 1.0), 6.0, seen()) == "label_scale_jump"
    judge = judge_with(0.3, 0.08)  # a student that is always off by a factor tells them apart too
    judge.judge(METRIC, ramp() * 1.8, seen(0.45))
    assert refusal(judge, 20.0, seen(0.45)) == "label_against_student"


def test_a_label_far_from_the_student_is_doubted_even_where_labels_agree():
    judge = judge_of(3)
    assert refusal(judge, 1.0, seen(0.04)) == "label_against_student"
    judge.judge(METRIC, ramp(), seen(0.06))
    judge_of(3, max_student_factor=0.0).judge(METRIC, ramp(), seen(0.04))
    judge_of().judge(METRIC, ramp(), seen(0.04))  # not without a history


def test_what_lies_beyond_the_students_range_says_nothing():
    far = ramp() * 30  # 30 to 150 m; a student of 10 m says 10 everywhere
    assert log_factor(far, seen(30.0)) is None
    judge = judge_of(3, scale=30.0)
    judge.judge(METRIC, far, seen(30.0))
    assert math.isnan(judge.snapshot().student_factor)


def test_another_student_begins_its_factors_anew():
    judge = judge_with(1.0, 0.5)
    assert judge.snapshot().student_factor == pytest.approx(2.0, rel=0.05)
    judge.judge(METRIC, ramp(), seen(1.0, version="000002"))
    assert judge.snapshot().student_factor == pytest.approx(1.0, rel=0.05)


def test_another_teacher_is_said_and_has_a_history_of_its_own(caplog):
    assert judge_of().snapshot().teacher is None
    judge = judge_of(3)
    assert judge.snapshot().changes == 0
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


def test_settings_that_nothing_passes_are_refused():
    for settings, message in (
        ({"max_scale_jump": 0.5}, "max_scale_jump must be greater than 1"),
        ({"max_student_factor": 1.0}, "max_student_factor must be greater than 1"),
        ({"history": 5, "min_history": 6}, "min_history must be at most history = 5"),
        ({"settle": 1}, "settle must be 2 to history = 30, or 0 for never, got 1"),
        ({"settle": 31}, "settle must be 2 to history = 30, or 0 for never, got 31"),
    ):
        with pytest.raises(InvalidSettingError, match=message):
            TrustSettings(**settings)
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


def test_labels_too_long_ago_of_one_frame_or_of_another_unit_never_settle():
    judge = judge_of(3, settle=3, history=4)
    for _ in range(3):
        assert refusal(judge, 10.0) == "label_scale_jump"
        for _ in range(2):
            judge.judge(METRIC, ramp())
    judge = judge_of(3, settle=3)
    for _ in range(6):
        with pytest.raises(TeacherAnswerError):
            judge.judge(METRIC, ramp() * 10, frame_id=7)
    for scale in (100.0, 0.01, 1000.0, 21.0):
        judge = judge_of(3, settle=3)
        for _ in range(40):
            assert refusal(judge, scale) == "label_scale_jump"
        judge.judge(METRIC, ramp())
        assert judge.snapshot().settled == 0
    judge = judge_with(1.0, 1.0, settle=3)
    for _ in range(10):
        assert refusal(judge, 100.0, seen()) == "label_against_student"


def test_what_settled_is_told_until_there_is_a_history_again_and_counts_at_once():
    judge = judge_of(3, settle=2, history=4)
    assert not judge.snapshot().settled_lately
    assert refusal(judge, 10.0) == "label_scale_jump"
    for lately in (True, True, True, False):
        judge.judge(METRIC, ramp() * 10)
        assert judge.snapshot().settled == 1
        assert judge.snapshot().settled_lately == lately
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
    judge = judge_with(1.0, 1.0, settle=3, max_student_factor=3.0)
    for scale in (3.5, 0.27) * 2:
        assert refusal(judge, scale, seen()) == "label_against_student"
