"""Rates, percentiles and shares, as diagnostics tell them and hold them against limits."""

from __future__ import annotations

import math

import pytest

from tiekd_ros.nodes.common.reporting import Percentiles, Rate, Share


def test_a_rate_is_that_of_the_last_seconds() -> None:
    rate = Rate(window_s=5.0)
    assert rate.value(0.0) == 0
    rate.tick(0.0)
    assert rate.value(1.0) == 1 / 5
    for tick in range(1, 101):
        rate.tick(tick / 10)
    assert rate.value(10.0) == pytest.approx(10.0)
    assert rate.value(12.5) == pytest.approx(10.0)  # by the events that are left
    assert rate.value(15.1) == 0
    assert rate.total == 101


def test_percentiles_are_of_the_last_values_and_unknown_without_any() -> None:
    percentiles = Percentiles(window=10, window_s=5.0)
    assert math.isnan(percentiles.at(50, 0.0))
    for now, value in enumerate([1000.0, 1000.0, *range(10)]):
        percentiles.add(value, float(now))
    assert percentiles.at(50, 6.0) == 4.5  # ten are kept
    assert percentiles.at(0, 11.0) == 4.0  # none older than five seconds
    assert math.isnan(percentiles.at(50, 17.0))


@pytest.fixture
def share() -> Share:
    return Share(window_s=10.0)


def test_it_is_what_grew_within_the_window(share: Share) -> None:
    for now, part, whole in ((0.0, 0, 0), (5.0, 40, 100), (12.0, 40, 200), (14.0, 70, 200)):
        share.add(now, part, whole)
    assert share.value() == 0.3


def test_it_is_unknown_where_the_whole_did_not_grow(share: Share) -> None:
    for now in (0.0, 1.0):
        share.add(now, 0, 7)
    assert math.isnan(share.value())


def test_a_part_that_is_counted_anew_is_no_negative_share(share: Share) -> None:
    share.add(0.0, 50, 100)
    share.add(1.0, 0, 200)
    assert share.value() == 0
