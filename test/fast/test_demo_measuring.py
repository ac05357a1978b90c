"""Students are compared over the same stretch of the camera's path, away from any swap."""

from __future__ import annotations

import pytest

from tiekd_ros.demo.steps import LEAST_S, SETTLE_S, measured_seconds, measured_turn


@pytest.mark.parametrize("turn_s", [0.7, 10.0, 24.0, 25.0, 60.0])
def test_whole_turns_are_measured_and_no_more_than_needed(turn_s):
    seconds = measured_seconds(turn_s)
    assert seconds / turn_s == pytest.approx(round(seconds / turn_s))
    assert seconds >= LEAST_S
    assert seconds == turn_s or seconds < LEAST_S + turn_s


def test_frames_before_and_just_after_a_swap_are_nobodys():
    for since in (-3.0, 0.0, SETTLE_S - 0.01):
        assert measured_turn(since, 60.0) is None


def test_the_first_turn_begins_when_the_swap_has_settled_and_takes_its_time():
    assert measured_turn(SETTLE_S, 60.0) == 0
    assert measured_turn(SETTLE_S + 59.9, 60.0) == 0
    assert measured_turn(SETTLE_S + 60.1, 60.0) == 1
