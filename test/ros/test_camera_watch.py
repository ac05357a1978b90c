"""Which calibration belongs to an image, by the stamps, and when it is said that none does."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sensor_msgs.msg import CameraInfo

from ros_helpers.messages import K, camera_info, header
from ros_helpers.messages import image_message as image_of
from tiekd_ros.nodes.camera_watch import CameraWatch
from tiekd_ros.nodes.conversions import stamp_ns

STEP_NS = 100_000_000
LATER_S = 0.003
LONG_S = 20.0
"""Far longer than a camera_info takes; only where none comes is it all waited for."""


def info_of(number: int, focal: float, step_ns: int = STEP_NS) -> CameraInfo:
    info = camera_info([focal, *K[1:]])
    info.header = header(number, step_ns)
    return info


def stamp(number: int) -> int:
    return stamp_ns(header(number, STEP_NS))


def see(watch: CameraWatch, number: int, now: float) -> None:
    watch.saw_image(image_of(number, step_ns=STEP_NS), now)


def focal_of(watch: CameraWatch, number: int, patience_s: float = 0.0) -> float:
    info = watch.info_for(stamp(number), patience_s)
    assert info is not None
    return float(info.k[0])


@pytest.mark.parametrize("rate", [2, 10, 30, 60, 120])
@pytest.mark.parametrize("apart_ns", [0, 2_000_000])
def test_stamps_that_never_meet_are_found_at_any_rate(rate: int, apart_ns: int) -> None:
    watch, step_ns = CameraWatch(), 10**9 // rate
    image, count = image_of(), 10 * rate
    for number in range(count):
        now = 100.0 + number / rate
        image.header = header(number, step_ns)
        info = info_of(number, 60.0, step_ns)
        info.header.stamp.nanosec += apart_ns
        watch.saw_info(info, now)
        watch.saw_image(image, now)
    texts = [text for _, text in watch.findings(100.0 + count / rate)]
    assert len(texts) == (1 if apart_ns else 0)
    assert all("never has an image's stamp (the nearest is 2.0 ms" in text for text in texts)
    assert watch.synchronised() == (0.0 if apart_ns else 1.0)


def after(do: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(LATER_S, do)
    timer.start()
    return timer


def test_an_image_waits_for_the_camera_info_that_comes_after_it() -> None:
    watch = CameraWatch()
    see(watch, 0, 0.0)
    watch.saw_info(info_of(0, 60.0), 0.0)
    for number in range(1, 6):
        see(watch, number, float(number))
        info = info_of(number, 60.0 + number)
        timer = after(lambda info=info, now=number: watch.saw_info(info, now))  # type: ignore[misc]
        assert focal_of(watch, number, LONG_S) == 60.0 + number
        timer.join()
    assert watch.exact() == 1.0


def test_who_must_not_wait_gets_the_newest_at_once_and_the_share_says_so() -> None:
    watch = CameraWatch()
    for number in range(4):
        see(watch, number, float(number))
        if number:
            assert focal_of(watch, number) == 60.0 + number - 1
        watch.saw_info(info_of(number, 60.0 + number), float(number))
    assert focal_of(watch, 3) == 63.0
    assert watch.exact() == 0.25


def test_nothing_is_waited_for_where_stamps_do_not_meet() -> None:
    watch = CameraWatch()
    watch.saw_info(info_of(-5, 60.0), 0.0)  # latched, for all images
    found: list[float] = []

    def ask() -> None:
        for number in range(5):
            see(watch, number, float(number))
            found.append(focal_of(watch, number, 10 * LONG_S))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(LONG_S)
    assert found == [60.0] * 5


def play(watch: CameraWatch, focal: float, start: float) -> list[float]:
    """Let five images come, each with its camera_info after it; return their focal lengths."""
    found = []
    for number in range(5):
        now = start + number
        see(watch, number, now)
        info = info_of(number, focal)
        timer = after(lambda info=info, now=now: watch.saw_info(info, now))  # type: ignore[misc]
        found.append(focal_of(watch, number, LONG_S) if watch.newest else 0.0)
        timer.join()
    return found


def test_a_bag_that_starts_again_with_another_calibration_gets_that() -> None:
    watch = CameraWatch()
    play(watch, 60.0, 0.0)
    # The first image of a loop cannot be told from one whose camera_info does not come.
    assert play(watch, 80.0, 10.0)[1:] == [80.0] * 4
    assert watch.jumps == 1


def test_camera_infos_that_came_before_the_loops_first_image_are_kept() -> None:
    watch = CameraWatch()
    for focal, start in ((60.0, 0.0), (80.0, 10.0)):
        for number in range(5):
            watch.saw_info(info_of(number, focal), start + number)
            see(watch, number, start + number + 0.5)
            assert focal_of(watch, number) == focal


def test_when_time_jumps_the_stamps_are_forgotten_and_the_newest_calibration_stays() -> None:
    watch = CameraWatch()
    see(watch, 0, 0.0)
    watch.saw_info(info_of(0, 60.0), 0.0)
    watch.saw_info(info_of(1, 61.0), 1.0)
    assert focal_of(watch, 0) == 60.0
    watch.forget()
    assert focal_of(watch, 0) == 61.0
