"""Frames lost by swaps, on streams made by hand: a stall must never pass as a clean swap."""

from __future__ import annotations

import pytest

from tiekd_ros.demo.run import UNFINISHED_S, lost_by_swaps

RATE_HZ = 10
SWAP = 60.0
TAKES = 5.0  # from asking for a student to its announcement


def ns(seconds: float) -> int:
    return round(seconds * 1e9)


def stamps(begin: float, end: float) -> list[int]:
    """Return the stamps from begin to end in s, at the camera's rate."""
    return [ns(n / RATE_HZ) for n in range(round(begin * RATE_HZ), round(end * RATE_HZ))]


IMAGES = stamps(0, 120)


def lost(depths: list[int], images: list[int] = IMAGES, *swaps: float) -> int:
    return lost_by_swaps(
        images, depths, [(ns(swap - TAKES), ns(swap)) for swap in swaps or (SWAP,)]
    )


def test_a_swap_without_a_gap_costs_nothing():
    assert lost(stamps(20, 120)) == 0


@pytest.mark.parametrize("stall", [0.5, 1.5, 5.0])
def test_every_frame_of_a_stall_before_the_announcement_counts(stall):
    assert lost(stamps(20, SWAP - stall) + stamps(SWAP, 120)) == stall * RATE_HZ


@pytest.mark.parametrize("stall", [0.5, 1.5])
def test_every_frame_of_a_stall_after_the_announcement_counts(stall):
    assert lost(stamps(20, SWAP) + stamps(SWAP + stall, 120)) == stall * RATE_HZ


def test_a_stream_that_dies_at_the_swap_is_lost():
    assert lost(stamps(20, SWAP)) >= 3 * RATE_HZ


def test_a_stream_that_dies_at_a_swap_shortly_before_the_end_is_lost():
    images = stamps(0, SWAP + 2)
    assert lost(stamps(20, SWAP), images) == pytest.approx((2 - UNFINISHED_S) * RATE_HZ, abs=1)


def test_the_newest_images_may_still_be_on_their_way():
    assert lost(stamps(20, SWAP + 1.7), stamps(0, SWAP + 2)) == 0


def test_images_before_the_first_student_are_not_lost():
    assert lost(stamps(SWAP - TAKES / 2, 120)) == 0


def test_what_is_lost_far_from_a_swap_is_not_the_swaps():
    assert lost(stamps(20, 30) + stamps(31, 120)) == 0


def test_a_frame_near_two_swaps_is_lost_once():
    assert lost(stamps(20, 58) + stamps(59, 120), IMAGES, SWAP, SWAP + 1) == RATE_HZ


def test_without_depth_or_images_there_is_an_answer_too():
    assert lost([], []) == 0
    assert lost([], stamps(SWAP, SWAP + 2)) > 0
    assert lost_by_swaps(IMAGES, [], []) == 0
