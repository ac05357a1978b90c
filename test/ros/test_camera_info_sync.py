"""Which calibration belongs to an image, by the stamps, and when it is said that none does."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import pytest
from sensor_msgs.msg import CameraInfo

from ros_helpers.messages import K, camera_info, header
from ros_helpers.messages import image_message as image_of
from tiekd_ros.nodes.camera.info_sync import CameraInfoSync
from tiekd_ros.nodes.common.conversions import stamp_ns

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


def see(sync: CameraInfoSync, number: int, now: float) -> None:
    sync.add_image(image_of(number, step_ns=STEP_NS), now)


def focal_of(sync: CameraInfoSync, number: int, patience_s: float = 0.0) -> float:
    info = sync.model_for(stamp(number), patience_s)
    assert info is not None
    return float(info.k[0])


def test_stamps_that_never_meet_are_found_at_any_rate() -> None:
    for rate, apart_ns in itertools.product((2, 10, 30, 60, 120), (0, 2_000_000)):
        sync, step_ns = CameraInfoSync(), 10**9 // rate
        image, count = image_of(), 10 * rate
        for number in range(count):
            now = 100.0 + number / rate
            image.header = header(number, step_ns)
            info = info_of(number, 60.0, step_ns)
            info.header.stamp.nanosec += apart_ns
            sync.add_info(info, now)
            sync.add_image(image, now)
        texts = [text for _, text in sync.findings(100.0 + count / rate)]
        assert len(texts) == (1 if apart_ns else 0)
        assert all("never has an image's stamp (the nearest is 2.0 ms" in text for text in texts)
        assert sync.synchronised_share() == (0.0 if apart_ns else 1.0)


def after(do: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(LATER_S, do)
    timer.start()
    return timer


def test_an_image_waits_for_the_camera_info_that_comes_after_it() -> None:
    sync = CameraInfoSync()
    see(sync, 0, 0.0)
    sync.add_info(info_of(0, 60.0), 0.0)
    for number in range(1, 6):
        see(sync, number, float(number))
        info = info_of(number, 60.0 + number)
        timer = after(lambda info=info, now=number: sync.add_info(info, now))  # type: ignore[misc]
        assert focal_of(sync, number, LONG_S) == 60.0 + number
        timer.join()
    assert sync.matched_share() == 1.0


def test_without_patience_the_newest_comes_at_once_and_the_share_says_so() -> None:
    sync = CameraInfoSync()
    for number in range(4):
        see(sync, number, float(number))
        if number:
            assert focal_of(sync, number) == 60.0 + number - 1
        sync.add_info(info_of(number, 60.0 + number), float(number))
    assert focal_of(sync, 3) == 63.0
    assert sync.matched_share() == 0.25


def test_nothing_is_waited_for_where_stamps_do_not_meet() -> None:
    sync = CameraInfoSync()
    sync.add_info(info_of(-5, 60.0), 0.0)  # latched, for all images
    found: list[float] = []

    def ask() -> None:
        for number in range(5):
            see(sync, number, float(number))
            found.append(focal_of(sync, number, 10 * LONG_S))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(LONG_S)
    assert found == [60.0] * 5


def play(sync: CameraInfoSync, focal: float, start: float) -> list[float]:
    """Let five images come, each with its camera_info after it; return their focal lengths."""
    found = []
    for number in range(5):
        now = start + number
        see(sync, number, now)
        info = info_of(number, focal)
        timer = after(lambda info=info, now=now: sync.add_info(info, now))  # type: ignore[misc]
        found.append(focal_of(sync, number, LONG_S) if sync.newest else 0.0)
        timer.join()
    return found


def test_a_bag_that_starts_again_with_another_calibration_gets_that() -> None:
    sync = CameraInfoSync()
    play(sync, 60.0, 0.0)
    assert play(sync, 80.0, 10.0) == [80.0] * 5
    assert play(sync, 60.0, 20.0) == [60.0] * 5
    assert sync.jumps == 2
    sync.forget()  # when the clock jumped too
    assert play(sync, 90.0, 30.0) == [90.0] * 5


def test_the_first_camera_info_is_waited_for_where_asked() -> None:
    sync = CameraInfoSync()
    see(sync, 0, 0.0)
    assert sync.model_for(stamp(0), LONG_S) is None
    timer = after(lambda: sync.add_info(info_of(0, 70.0), 0.0))
    found = sync.model_for(stamp(0), first_s=LONG_S)
    timer.join()
    assert found is not None
    assert found.k[0] == 70.0


def test_no_call_waits_once_it_is_closed() -> None:
    sync = CameraInfoSync()
    found: list[CameraInfo | None] = []
    thread = threading.Thread(
        target=lambda: found.append(sync.model_for(stamp(0), first_s=10 * LONG_S)), daemon=True
    )
    thread.start()
    sync.close()
    thread.join(LONG_S)
    assert found == [None]


def test_camera_infos_that_came_before_the_loops_first_image_are_kept() -> None:
    sync = CameraInfoSync()
    for focal, start in ((60.0, 0.0), (80.0, 10.0)):
        for number in range(5):
            sync.add_info(info_of(number, focal), start + number)
            see(sync, number, start + number + 0.5)
            assert focal_of(sync, number) == focal


def test_when_time_jumps_the_stamps_are_forgotten_and_the_newest_calibration_stays() -> None:
    sync = CameraInfoSync()
    see(sync, 0, 0.0)
    sync.add_info(info_of(0, 60.0), 0.0)
    sync.add_info(info_of(1, 61.0), 1.0)
    assert focal_of(sync, 0) == 60.0
    sync.forget()
    assert focal_of(sync, 0) == 61.0


def stream(sync: CameraInfoSync, times: list[float], *, infos: bool) -> None:
    """Let images come at these times, each after its camera_info if they have one."""
    for now in times:
        number = round(now * 10)
        if infos:
            sync.add_info(info_of(number, 60.0), now)
        see(sync, number, now)


def tenths(start: float, end: float) -> list[float]:
    return [number / 10 for number in range(round(start * 10), round(end * 10))]


def test_a_camera_info_that_stops_coming_while_images_go_on_is_missed() -> None:
    sync = CameraInfoSync()
    stream(sync, tenths(0, 3), infos=True)
    assert sync.infos_silent_s(3.0) is None
    stream(sync, tenths(3, 35), infos=False)
    assert sync.infos_silent_s(35.0) == pytest.approx(32.1)
    stream(sync, tenths(35, 36), infos=True)
    assert sync.infos_silent_s(36.0) is None


def test_a_latched_camera_info_is_not_missed() -> None:
    for sent in ([0.0], [0.0, 0.1], [0.0, 4.0, 8.0]):
        sync = CameraInfoSync()
        for now in sent:
            sync.add_info(info_of(0, 60.0), now)
        stream(sync, tenths(10, 50), infos=False)
        assert sync.infos_silent_s(50.0) is None


def test_a_camera_that_pauses_or_stops_misses_no_camera_info() -> None:
    sync = CameraInfoSync()
    stream(sync, tenths(0, 3), infos=True)
    assert sync.infos_silent_s(40.0) is None
    see(sync, 400, 40.0)  # it goes on, and the camera_info is on its way
    assert sync.infos_silent_s(40.1) is None
    stream(sync, tenths(40.2, 46), infos=False)
    assert sync.infos_silent_s(46.0) == pytest.approx(43.1)


def test_a_calibration_that_changed_once_is_said_for_some_seconds_and_counted() -> None:
    sync = CameraInfoSync()
    for now in range(30):
        sync.add_info(info_of(now, 60.0 if now < 10 else 70.0), float(now))
        texts = [text for _, text in sync.findings(now + 0.5)]
        assert len(texts) == (10 <= now < 20)
        assert all("look for a second publisher" in text for text in texts)
    assert sync.changes == 1
