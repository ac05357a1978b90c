"""When training is paused: readings of the depth node's p95, second by second."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from tiekd_ros.rounds.limits import LatencyGuard, ResourceSettings

NAN = math.nan


class Clock:
    """A guard that gets a reading each second; `.` = training runs after it, `P` = it is paused."""

    def __init__(self, **settings: Any) -> None:
        self.settings = ResourceSettings(**settings)
        self.guard = LatencyGuard(lambda: self.settings)
        self.now_s = 1000.0

    def read(self, *readings: float, training: bool = True, every_s: float = 1.0) -> str:
        """Return what is decided after each reading."""
        decided = ""
        for reading in readings:
            self.now_s += every_s
            self.guard.add_reading(reading, self.now_s, training=training)
            decided += ".P"[self.guard.should_pause(self.now_s, training=training)]
        return decided

    def silence(self, seconds: int, *, training: bool = True) -> str:
        """Return what is decided in each second without a reading."""
        decided = ""
        for _ in range(seconds):
            self.now_s += 1.0
            decided += ".P"[self.guard.should_pause(self.now_s, training=training)]
        return decided


@pytest.fixture
def fixed() -> Clock:
    return Clock(latency_budget_ms=40.0)


@pytest.mark.parametrize(
    ("readings", "decided", "said"),
    [
        ((20, 39, 41, 42), "...P", "paused: p95 42.0 ms, budget 40.0 ms"),
        ((42, 42, 41, 30, 30), ".PP..", "monitoring: p95 30.0 ms, budget 40.0 ms"),
        ((20, 90, 20, 90, 20), ".....", "monitoring"),  # an outlier is no reason
        ((50, 50, 39.5, 39.5, 36), ".PPP.", "monitoring"),  # just below is not enough
        ([60] * 75, "." + "P" * 10 + "." * 64, "not the cause"),
        ([60] * 15 + [20, 60, 60], "." + "P" * 10 + "." * 6 + "P", "paused"),  # below once
        ([60] * 2 + [39] * 12, "." + "P" * 10 + "...", "monitoring"),  # near it, not for ever
        ([NAN] * 30, "." * 30, "no latency known"),
        ([60] * 2 + [NAN] * 6, ".P" + "P" * 5 + ".", "no latency known"),
    ],
)
def test_training_is_paused_over_the_budget_while_that_helps(fixed, readings, decided, said):
    assert fixed.read(*readings) == decided
    assert fixed.guard.describe().startswith(said)


def test_a_report_right_after_another_says_nothing_new(fixed):
    assert fixed.read(60) == "."
    assert fixed.read(60, 60, every_s=0.01) == ".."
    assert fixed.guard.p95_ms == 60
    assert fixed.read(30) == "."
    assert fixed.read(60, every_s=0.1) == "."  # not even where it says something else
    assert fixed.read(60, 60) == ".P"
    often = Clock(latency_budget_ms=40.0)
    assert often.read(*[60] * 4, every_s=0.3) == "...P"
    clock = Clock()
    clock.read(20, 20, 20, 20, training=False, every_s=0.01)
    assert clock.guard.budget_ms is None
    clock.read(20, 20, training=False)
    assert clock.guard.budget_ms == pytest.approx(25)


def test_the_automatic_budget_comes_from_before_the_round():
    clock = Clock()
    clock.read(20, 21, 20, 200, 20, training=False)
    assert clock.guard.budget_ms == pytest.approx(1.25 * 20)
    assert clock.read(24, 26, 26) == "..P"
    assert clock.guard.budget_ms == pytest.approx(1.25 * 20)  # training does not raise it
    clock.read(*[24] * 7, training=False)  # nor what the node still remembers of it
    assert clock.guard.budget_ms == pytest.approx(1.25 * 20)
    clock.read(*[30] * 30, training=False)  # another student, for instance
    assert clock.guard.budget_ms == pytest.approx(37.5)
    fast = Clock()
    fast.read(1.0, 1.0, 1.0, training=False)
    assert fast.guard.budget_ms == pytest.approx(2.0)  # leaves room for noise
    unknown = Clock()
    assert unknown.read(*[900] * 30) == "." * 30
    assert unknown.guard.describe() == "no latency known"


def test_without_a_node_or_a_round_nothing_is_paused(fixed):
    assert fixed.silence(30) == "." * 30
    assert fixed.read(60, 60) == ".P"
    assert fixed.silence(6).startswith("PPPP")
    assert fixed.silence(1) == "."
    assert fixed.read(60, 60) == ".P"
    assert fixed.silence(1, training=False) + fixed.silence(1) == ".."
    fixed.read(60, 60, 60, training=False)  # does not count against the next round
    assert fixed.read(60) == "."


def test_the_guard_can_be_switched_off_and_its_budget_changed_at_any_time(fixed):
    assert fixed.read(60, 60) == ".P"
    fixed.settings = dataclasses.replace(fixed.settings, guard=False)
    assert fixed.read(60, 60, 60) == "..."
    assert fixed.guard.describe() == "off"
    fixed.settings = ResourceSettings(latency_budget_ms=70.0)
    assert fixed.read(60, 60, 60) == "..."
