"""Judges of labels, and a live student's depth: what the tests of trust share."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.teachers import METRIC, ramp
from tiekd_ros.core.labels import StudentDepth
from tiekd_ros.teacher.errors import TeacherAnswerError
from tiekd_ros.teacher.trust import LabelJudge, TrustSettings

QUICK = {"history": 10, "min_history": 3, "settle": 0}


def judge_of(labels: int = 0, scale: float = 1.0, **settings) -> LabelJudge:
    """Return a judge that has believed so many labels of this scale."""
    judge = LabelJudge(TrustSettings(**{**QUICK, **settings}))
    for _ in range(labels):
        judge.judge(METRIC, ramp() * np.float32(scale))
    return judge


def seen(scale: float = 1.0, version: str = "000001", most: float = 10.0) -> StudentDepth:
    """Return a student's depth of the same view."""
    depth = np.nan_to_num(ramp() * np.float32(scale), nan=most).clip(0.1, most)
    return StudentDepth(depth, version, 0.1, most)


def refusal(judge: LabelJudge, scale: float, student: StudentDepth | None = None) -> str:
    """Return why a judge refuses a label of this scale."""
    with pytest.raises(TeacherAnswerError) as refused:
        judge.judge(METRIC, ramp() * np.float32(scale), student)
    return refused.value.reason
