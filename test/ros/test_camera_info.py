"""The camera's calibration: which one an image gets, and what is said of those that do not fit."""

from __future__ import annotations

import pytest
from sensor_msgs.msg import CameraInfo, Image

from ros_helpers.camera import InputBench
from ros_helpers.messages import camera_info, image_message
from ros_helpers.waiting import wait_for
from tiekd_ros.core.errors import BadImageError
from tiekd_ros.nodes.camera import info_sync as camera_watch
from tiekd_ros.nodes.camera import input as camera_input
from tiekd_ros.nodes.camera.input import NotYetCalibratedError
from tiekd_ros.nodes.common.reporting import WARN


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera_input, "_INFO_PATIENCE_S", 0.0)


@pytest.mark.usefixtures("impatient")
def test_a_missing_camera_info_is_said_with_the_one_that_is_there(bench: InputBench) -> None:
    bench.listen("image:=cam/image_raw")
    bench.camera(CameraInfo, "cam/camera_info")
    bench.await_image(bench.camera(Image, "cam/image_raw"), image_message())
    text = bench.await_finding("no camera_info arrives on", "depth without it", level=WARN)
    assert f"remap image_info:={bench.namespace}/cam/camera_info" in text


def play(bench: InputBench, infos: list[CameraInfo], count: int = 20) -> None:
    """Publish images 0.1 s apart, each with the next of these calibrations."""
    camera, calibration = bench.camera(), bench.camera(CameraInfo, "image_info")
    for number in range(count):
        image = image_message(number, step_ns=100_000_000)
        bench.await_info(calibration, infos[number % len(infos)])
        bench.await_image(camera, image)


def stamped(number: int, k: list[float] | None = None) -> CameraInfo:
    info = camera_info(k)
    info.header = image_message(number, step_ns=100_000_000).header
    return info


def test_a_camera_info_of_each_images_stamp_is_fine(bench: InputBench) -> None:
    bench.listen()
    play(bench, [stamped(number) for number in range(20)])
    assert bench.await_check() == []
    assert bench.input.values()["camera_info synchronised"] == 1.0


def test_stamps_that_never_meet_are_reported_and_the_newest_calibration_is_taken(
    bench: InputBench,
) -> None:
    bench.listen()
    infos = [stamped(number) for number in range(20)]
    for info in infos:
        info.header.stamp.nanosec += 7_000_000
    play(bench, infos)
    bench.await_finding("camera_info never has an image's stamp", "7.0 ms", level=WARN)
    assert bench.input.frame(bench.images[-1]).model.k[0] == 60.0
    assert bench.input.values()["camera_info synchronised"] == 0.0


def test_a_changing_camera_info_is_reported_and_an_image_gets_that_of_its_stamp(
    bench: InputBench,
) -> None:
    bench.listen()
    zoomed = [[60.0 + n, 0.0, 47.5, 0.0, 61.0, 35.5, 0.0, 0.0, 1.0] for n in range(20)]
    play(bench, [stamped(number, zoomed[number]) for number in range(20)])
    bench.await_finding("camera_info changed (K[0] 78 -> 79; change 19)", level=WARN)
    by_stamp = [bench.input.frame(image).model.k[0] for image in bench.images[-5:]]
    assert by_stamp == sorted(by_stamp)
    assert by_stamp[-1] == 79.0
    assert by_stamp[0] < 79.0


def test_a_camera_info_that_stops_coming_is_named_with_its_publisher_until_it_comes_again(
    bench: InputBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(camera_watch, "RECENT_S", 1.5)
    bench.listen()
    camera, calibration = bench.camera(), bench.camera(CameraInfo, "image_info")
    bench.await_info(calibration, camera_info())

    def stopped() -> bool:
        text = f"on {bench.namespace}/image_info, the last one is used: {bench.namespace}/camera_2"
        return any("no camera_info since" in t and text in t for _, t in bench.findings)

    for _ in range(5):
        calibration.publish(camera_info())
    wait_for(
        stopped,
        "the finding",
        nudge=lambda: camera.publish(image_message()),
        explain=lambda: (bench.findings, bench.input.values()),
    )
    bench.await_info(calibration, camera_info())
    bench.await_no_finding("no camera_info since")


def test_another_cameras_calibration_shows_by_its_frame(bench: InputBench) -> None:
    bench.listen()
    other = camera_info()
    other.header.frame_id = "rear_camera"
    play(bench, [other], count=1)
    bench.await_finding("'test_camera'", "'rear_camera'", "remap image_info", level=WARN)


def test_two_calibrations_on_one_topic_are_named(bench: InputBench) -> None:
    bench.listen()
    bench.camera(CameraInfo, "image_info")
    bench.camera(CameraInfo, "image_info")
    bench.await_finding("2 publishers of", "image_info", level=WARN)


@pytest.mark.usefixtures("impatient")
def test_with_rectify_an_image_without_camera_info_is_not_used(
    bench: InputBench,
) -> None:
    bench.listen(rectify=True)
    bench.await_image(bench.camera(), image_message())
    with pytest.raises(BadImageError, match=r"rectify is on, and no camera_info.*rectify to false"):
        bench.input.frame(image_message())


def test_with_rectify_a_camera_info_may_take_its_time_at_the_start(bench: InputBench) -> None:
    bench.listen(rectify=True)
    bench.await_image(bench.camera(), image_message())
    with pytest.raises(NotYetCalibratedError):
        bench.input.frame(image_message())
    assert [text for _, text in bench.await_check() if "no camera_info" in text] == []


def test_images_that_are_rectified_by_their_name_get_a_calibration_without_distortion(
    bench: InputBench,
) -> None:
    bench.listen("image:=cam/image_rect")
    info = camera_info()
    info.d = [-0.3, 0.1, 0.0, 0.0, 0.0]
    info.p = [50.0, 0.0, 40.0, 0.0, 0.0, 51.0, 30.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    bench.await_info(bench.camera(CameraInfo, "image_info"), info)
    camera = bench.camera(Image, "cam/image_rect")
    seen = bench.input.frame(bench.await_image(camera, image_message())).model
    assert not any(seen.d)
    assert list(seen.k) == [50.0, 0.0, 40.0, 0.0, 51.0, 30.0, 0.0, 0.0, 1.0]
    assert [text for _, text in bench.await_check() if "rectified" in text] == []
