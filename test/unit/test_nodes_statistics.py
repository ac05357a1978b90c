"""Shares of counts, as diagnostics hold them against limits."""

from __future__ import annotations

import math

import pytest

from tiekd_ros.nodes.statistics import Share


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
