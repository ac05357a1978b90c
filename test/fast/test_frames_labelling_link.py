"""What the labeller's log says of a teacher that does not answer."""

from __future__ import annotations

import logging

import pytest

from helpers.labelling import TeacherDownError
from tiekd_ros.framelog import LabellerSettings
from tiekd_ros.framelog.labeller import TeacherLink


def said_by(link: TeacherLink, caplog: pytest.LogCaptureFixture) -> list[int]:
    """Return the levels of what a failure makes the link say."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "tiekd_ros"):
        link.fail(TeacherDownError("no answer"))
    return [record.levelno for record in caplog.records]


def test_a_teacher_without_an_answer_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert said_by(TeacherLink(LabellerSettings()), caplog) == [logging.WARNING]


def test_while_a_teacher_may_still_be_starting_it_is_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    link = TeacherLink(LabellerSettings(starting_s=3600.0))
    assert said_by(link, caplog) == [logging.INFO]
    assert link.state == "down"


def test_one_that_has_answered_is_started(caplog: pytest.LogCaptureFixture) -> None:
    link = TeacherLink(LabellerSettings(starting_s=3600.0))
    link.answered()
    assert said_by(link, caplog) == [logging.WARNING]
