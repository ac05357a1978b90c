"""Judges of labels, and what a live student sees: what the tests of trust share."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.teachers import METRIC, ramp
from tiekd_ros.teacher.errors import TeacherAnswerError
from tiekd_ros.teacher.trust import LabelJudge, StudentView, TrustSettings

QUICK = {"history": 10, "min_history": 3, "settle": 0}


def judge_of(labels: int = 0, scale: float = 1.0, **settings) -> LabelJudge:
    """Return a judge that has believed so many labels of this scale."""
    judge = LabelJudge(TrustSettings(**{**QUICK, **settings}))
    for _ in range(labels):
        judge.judge(METRIC, ramp() * np.float32(scale))
    return judge


def seen(scale: float = 1.0, version: str = "000001", most: float = 10.0) -> StudentView:
    """Return what a student sees of the same view."""
    depth = np.nan_to_num(ramp() * np.float32(scale), nan=most).clip(0.1, most)
    return StudentView(depth, version, 0.1, most)


def refusal(judge: LabelJudge, scale: float, student: StudentView | None = None) -> str:
    """Return why a judge refuses a label of this scale."""
    with pytest.raises(TeacherAnswerError) as refused:
        judge.judge(METRIC, ramp() * np.float32(scale), student)
    return refused.value.reason
