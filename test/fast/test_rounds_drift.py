"""Drift: noticed soon where labels disagree with the student, and not where they scatter."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tiekd_ros.core.labels import StudentDepth
from tiekd_ros.rounds.drift import DriftDetector
from tiekd_ros.teacher.protocol import TeacherIdentity
from tiekd_ros.teacher.trust import LabelJudge


def scattered(count: int, mean: float, seed: int) -> np.ndarray:
    """Return AbsRel of labels as real ones are: ln scatters by 0.35, alike in each four."""
    rng = np.random.default_rng(seed)
    blocks = np.exp(rng.normal(0.0, 0.3, -(-count // 4))).repeat(4)[:count]
    own = np.exp(rng.normal(0.0, 0.18, count))
    return mean * blocks * own / math.exp(0.5 * (0.3**2 + 0.18**2))


def detector(usual: float | None = 0.1) -> DriftDetector:
    return DriftDetector(lambda version: usual)


def labels_until_found(found: DriftDetector, errors: np.ndarray) -> int | None:
    for number, error in enumerate(errors, start=1):
        found.add("000001", error)
        if found.found("000001"):
            return number
    return None


def test_a_student_twice_as_wrong_is_noticed_within_30_labels_and_scatter_is_not():
    late = [labels_until_found(detector(), scattered(30, 0.2, seed)) for seed in range(100)]
    assert sum(number is not None for number in late) >= 98
    assert np.median([number for number in late if number]) < 15
    alarms = [labels_until_found(detector(), scattered(1000, 0.1, seed)) for seed in range(100)]
    assert sum(number is not None for number in alarms) <= 50  # one in two thousand labels
    one_lie = detector()
    for error in (0.1, 9.0, 0.1, 9.0, 0.1, 0.1):
        one_lie.add("000001", error)
    assert one_lie.found("000001") is None


def test_what_is_told_and_when_it_begins_anew():
    found = detector(0.1)
    assert math.isnan(found.disagreement)
    assert labels_until_found(found, np.full(20, 0.4)) == 5
    assert found.found("000001") == (
        "labels disagree with student 000001 by AbsRel 0.40, 0.10 when it went live"
    )
    assert found.disagreement == pytest.approx(0.4)
    found.restart()
    assert found.found("000001") is None
    assert labels_until_found(found, np.full(20, 0.4)) == 5  # it still is so
    assert found.found("000002") is None  # another student went live
    found.add("000002", 0.1)
    assert found.found("000001") is None
    unscored = detector(None)  # compared with its first labels
    assert labels_until_found(unscored, np.full(40, 0.4)) is None
    assert labels_until_found(unscored, np.full(40, 1.2)) == 5


def test_labels_that_are_believed_are_compared_with_the_student():
    told = []
    judge = LabelJudge(on_compared=lambda *each: told.append(each))
    teacher = TeacherIdentity("exact", "1", metric=True)
    depth = np.full((48, 64), 2.0, np.float32)
    depth[:4] = np.nan
    student = StudentDepth(np.full((48, 64), 2.5, np.float32), "000007", 0.1, 10.0)
    judge.judge(teacher, depth, student)
    judge.judge(teacher, depth)  # no student is live
    far = depth.copy()
    far[20:] = 30.0  # beyond what the student knows: it says nothing there
    judge.judge(teacher, far, student)
    assert told == [("000007", pytest.approx(0.25))] * 2
