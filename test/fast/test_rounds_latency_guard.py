"""When training rests: readings of the depth node's p95, second by second."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from tiekd_ros.rounds.limits import LatencyGuard, ResourceSettings


class Clock:
    """A guard that hears a reading each second, and what it decided."""

    def __init__(self, **settings: Any) -> None:
        self.settings = ResourceSettings(**settings)
        self.guard = LatencyGuard(lambda: self.settings)
        self.now_s = 1000.0

    def hear(self, *readings: float, training: bool = True, every_s: float = 1.0) -> list[bool]:
        """Return after each reading whether training rests."""
        decided = []
        for reading in readings:
            self.now_s += every_s
            self.guard.add_reading(reading, self.now_s, training=training)
            decided.append(self.guard.should_pause(self.now_s, training=training))
        return decided

    def silence(self, seconds: int, *, training: bool = True) -> bool:
        """Ask each second without a reading; return the last decision."""
        for _ in range(seconds):
            self.now_s += 1.0
            rests = self.guard.should_pause(self.now_s, training=training)
        return rests


@pytest.fixture
def fixed() -> Clock:
    return Clock(latency_budget_ms=40.0)


def test_training_rests_over_the_budget_and_goes_on_below_it(fixed):
    assert fixed.hear(20, 39, 41, 42) == [False, False, False, True]
    assert fixed.guard.describe() == "paused: p95 42.0 ms, budget 40.0 ms"
    assert fixed.hear(41, 30, 30) == [True, False, False]
    assert fixed.guard.describe() == "monitoring: p95 30.0 ms, budget 40.0 ms"


def test_one_outlier_is_no_reason_to_rest(fixed):
    assert not any(fixed.hear(20, 90, 20, 90, 20))


def test_a_report_right_after_another_says_nothing_new(fixed):
    assert fixed.hear(60) == [False]
    assert fixed.hear(60, 60, every_s=0.01) == [False, False]
    assert fixed.guard.p95_ms == 60
    assert fixed.hear(30) == [False]
    assert fixed.hear(60, every_s=0.1) == [False]  # not even where it says something else
    assert fixed.hear(60, 60) == [False, True]


def test_a_node_that_reports_more_often_is_heard_about_once_a_second(fixed):
    assert fixed.hear(*[60] * 4, every_s=0.3) == [False, False, False, True]


def test_reports_of_the_same_moment_make_no_automatic_budget():
    clock = Clock()
    clock.hear(20, 20, 20, 20, training=False, every_s=0.01)
    assert clock.guard.budget_ms is None
    clock.hear(20, 20, training=False)
    assert clock.guard.budget_ms == pytest.approx(25)


def test_just_below_the_budget_training_still_rests(fixed):
    assert fixed.hear(50, 50, 39.5, 39.5, 36) == [False, True, True, True, False]


def test_training_that_is_not_the_cause_goes_on_until_the_latency_was_below_once(fixed):
    rests = fixed.hear(*[60] * 15)
    assert rests == [False] + [True] * 10 + [False] * 4
    assert fixed.guard.state == "not the cause"
    assert not any(fixed.hear(*[60] * 60))
    assert fixed.hear(20, 60, 60) == [False, False, True]


def test_a_latency_that_stays_near_its_budget_does_not_keep_training_for_ever(fixed):
    assert fixed.hear(60, 60)[-1]
    assert not fixed.hear(*[39] * 12)[-1]
    assert fixed.guard.state == "monitoring"


def test_the_automatic_budget_comes_from_before_the_round():
    clock = Clock()
    clock.hear(20, 21, 20, 200, 20, training=False)
    assert clock.guard.budget_ms == pytest.approx(1.25 * 20)
    assert clock.hear(24, 26, 26) == [False, False, True]
    assert clock.guard.budget_ms == pytest.approx(1.25 * 20)  # training does not raise it


def test_a_fast_nodes_automatic_budget_leaves_room_for_noise():
    clock = Clock()
    clock.hear(1.0, 1.0, 1.0, training=False)
    assert clock.guard.budget_ms == pytest.approx(2.0)


def test_what_the_node_still_remembers_of_a_round_is_no_calm_latency():
    clock = Clock()
    clock.hear(20, 20, 20, 20, training=False)
    clock.hear(24, 24)
    clock.hear(*[24] * 7, training=False)
    assert clock.guard.budget_ms == pytest.approx(25)
    clock.hear(*[30] * 30, training=False)  # another student, for instance
    assert clock.guard.budget_ms == pytest.approx(37.5)


def test_without_a_latency_from_before_nothing_rests():
    clock = Clock()
    assert not any(clock.hear(*[900] * 30))
    assert clock.guard.describe() == "no latency known"


def test_without_readings_nothing_rests(fixed):
    assert not fixed.silence(30)
    assert not any(fixed.hear(*[math.nan] * 30))


def test_training_goes_on_when_the_node_is_gone(fixed):
    assert fixed.hear(60, 60)[-1]
    assert fixed.silence(4)
    assert not fixed.silence(2)
    assert fixed.hear(60, 60) == [False, True]


def test_training_goes_on_when_the_node_has_nothing_to_measure(fixed):
    assert fixed.hear(60, 60)[-1]
    assert not fixed.hear(*[math.nan] * 6)[-1]


def test_the_end_of_a_round_ends_its_rest(fixed):
    assert fixed.hear(60, 60)[-1]
    assert not fixed.silence(1, training=False)
    assert not fixed.silence(1)


def test_a_slow_node_before_the_round_does_not_count_against_it(fixed):
    fixed.hear(60, 60, 60, training=False)
    assert fixed.hear(60) == [False]


def test_the_guard_can_be_switched_off_and_its_budget_changed_at_any_time(fixed):
    assert fixed.hear(60, 60)[-1]
    fixed.settings = dataclasses.replace(fixed.settings, guard=False)
    assert not any(fixed.hear(60, 60, 60))
    assert fixed.guard.describe() == "off"
    fixed.settings = ResourceSettings(latency_budget_ms=70.0)
    assert not any(fixed.hear(60, 60, 60))
