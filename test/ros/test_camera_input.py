"""The camera's topics: any quality of service and transport; what cannot work is named."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from helpers.children import run_python
from helpers.teachers import picture
from ros_helpers.camera import (
    BEST_EFFORT,
    LATCHED,
    RELIABLE,
    VOLATILE,
    InputBench,
    compressed_message,
    png_message,
    quality,
)
from ros_helpers.messages import camera_info, image_message
from ros_helpers.peer import Peer
from ros_helpers.waiting import await_log, wait_for
from tiekd_ros.core.errors import BadImageError
from tiekd_ros.nodes.camera import info_sync
from tiekd_ros.nodes.camera import input as camera_input
from tiekd_ros.nodes.camera.input import FindingLog, NotYetCalibratedError
from tiekd_ros.nodes.camera.topic import (
    CameraTopic,
    Quality,
    compressed_topic,
    why_no_image,
    why_no_info,
)
from tiekd_ros.nodes.common import qos as qos_events
from tiekd_ros.nodes.common.reporting import ERROR, OK, WARN


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera_input, "_SILENCE_S", 0.3)
    monkeypatch.setattr(camera_input, "_INFO_PATIENCE_S", 0.0)


# Quality of service.


@pytest.mark.parametrize(
    ("reliability", "durability", "asked"),
    [
        (RELIABLE, VOLATILE, "reliable, volatile, depth 3"),
        (BEST_EFFORT, VOLATILE, "best_effort, volatile, depth 3"),
        (RELIABLE, LATCHED, "reliable, transient_local, depth 3"),
    ],
)
def test_by_itself_the_subscription_takes_the_quality_that_the_camera_offers(
    bench: InputBench, reliability: Any, durability: Any, asked: str
) -> None:
    bench.listen(input_depth=3)
    camera = bench.camera(profile=quality(reliability, durability))
    wait_for(lambda: bench.input.values()["image quality of service"] == asked, asked)
    bench.await_image(camera, image_message())
    assert not [text for _, text in bench.await_check() if "not received" in text]


def test_a_reliable_camera_is_received_best_effort_too(bench: InputBench) -> None:
    bench.listen(input_reliability="best_effort")
    bench.await_image(bench.camera(), image_message())


@pytest.mark.parametrize(
    ("setting", "asked", "profile", "offered"),
    [
        ("input_reliability", "reliable", quality(BEST_EFFORT), "best_effort"),
        ("input_durability", "transient_local", quality(), "volatile"),
    ],
)
def test_a_camera_that_cannot_be_received_is_named_with_the_setting_that_would_do(
    bench: InputBench,
    capfd: pytest.CaptureFixture[str],
    setting: str,
    asked: str,
    profile: Any,
    offered: str,
) -> None:
    bench.listen(**{setting: asked})
    camera = bench.camera(profile=profile)
    text = bench.await_finding(f"{bench.namespace}/camera_", "not received", level=ERROR)
    for word in (f"offers {offered}", f"{asked} is requested", f"set {setting} to auto"):
        assert word in text
    await_log(capfd, text)
    camera.publish(image_message())
    bench.await_check()
    assert not bench.images
    bench.remove(camera)
    bench.await_no_finding("not received")


def test_the_middleware_tells_which_policy_does_not_fit(bench: InputBench) -> None:
    bench.listen()
    for topic, asked, offered, policy in (
        ("one", quality(RELIABLE), quality(BEST_EFFORT), "RELIABILITY"),
        ("other", quality(RELIABLE, LATCHED), quality(RELIABLE), "DURABILITY"),
    ):
        told: list[str] = []
        events = {"on_mismatch": told.append, "on_lost": print}
        qos_events.subscribe(bench.input._node, Image, topic, print, asked, **events)
        bench.camera(Image, topic, offered)
        assert wait_for(lambda told=told: told, "the event") == [policy]


def test_a_middleware_without_these_events_is_listened_to_all_the_same(
    bench: InputBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(qos_events.SubscriptionEventCallbacks):  # type: ignore[misc, valid-type]
        def create_event_handlers(self, *arguments: Any) -> list[Any]:
            raise qos_events.UnsupportedEventTypeError("no such event")

    monkeypatch.setattr(qos_events, "SubscriptionEventCallbacks", Refusing)
    bench.listen()
    bench.await_image(bench.camera(), image_message())


def test_on_humble_the_events_come_from_their_old_module() -> None:
    code = """
import sys, types
import rclpy.lifecycle, rclpy.node, rclpy.event_handler as new
old = types.ModuleType("rclpy.qos_event")
names = ("PublisherEventCallbacks", "SubscriptionEventCallbacks", "UnsupportedEventTypeError")
for name in names:
    setattr(old, name, getattr(new, name))
sys.modules["rclpy.qos_event"], sys.modules["rclpy.event_handler"] = old, None
from tiekd_ros.nodes.common import qos
from tiekd_ros.nodes.depth import output
assert qos.SubscriptionEventCallbacks is old.SubscriptionEventCallbacks
assert output.PublisherEventCallbacks is old.PublisherEventCallbacks
assert output.UnsupportedEventTypeError is old.UnsupportedEventTypeError
"""
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr


def test_a_latched_camera_info_that_came_before_is_received(bench: InputBench) -> None:
    publisher = bench.camera(CameraInfo, "image_info", quality(RELIABLE, LATCHED))
    publisher.publish(camera_info())
    bench.listen()
    info = wait_for(lambda: bench.input.model, "the camera_info")
    assert info.k[0] == camera_info().k[0]


# Transports.


@pytest.mark.parametrize("make", [compressed_message, png_message])
def test_compressed_images_are_received_beside_the_remapped_topic(
    bench: InputBench, make: Any
) -> None:
    bench.listen("image:=cam/image_raw", image_transport="compressed")
    sent = make(3)
    camera = bench.camera(CompressedImage, "cam/image_raw/compressed")
    view = bench.input.frame(bench.await_image(camera, sent))
    difference = np.abs(view.image.astype(int) - picture(3, 96, 72).astype(int))
    assert view.image.shape == (72, 96, 3)
    assert difference.max() == 0 if make is png_message else difference.mean() < 8


def test_the_topic_of_compressed_images_follows_what_is_remapped(bench: InputBench) -> None:
    for remapping, topic in (
        ("image:=/cam/image_raw", "/cam/image_raw/compressed"),
        ("image:=/cam/image_raw/compressed", "/cam/image_raw/compressed"),
        ("image/compressed:=/cam/jpeg", "/cam/jpeg"),
    ):
        assert compressed_topic(bench.node("listener", [remapping])) == topic


@pytest.mark.parametrize(
    ("topic", "remedy"),
    [
        ("cam/compressed", "set image_transport to compressed"),
        ("jpegs", "set image_transport to compressed and remap image/compressed:="),
    ],
)
def test_compressed_images_on_the_raw_topic_are_named_with_the_remedy(
    bench: InputBench, topic: str, remedy: str
) -> None:
    bench.listen(f"image:={topic}")
    bench.camera(CompressedImage, topic)
    who = f"{bench.namespace}/camera_1"
    bench.await_finding(who, "sensor_msgs/msg/CompressedImage", remedy, level=ERROR)


def test_another_type_beside_the_camera_is_only_a_warning(bench: InputBench) -> None:
    bench.listen()
    camera = bench.camera()
    bench.camera(CameraInfo, "image")
    bench.await_finding("sensor_msgs/msg/CameraInfo, not as sensor_msgs/msg/Image", level=WARN)
    bench.await_image(camera, image_message())


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("asked", "kind", "topic", "remedy"),
    [
        ("raw", CompressedImage, "image/compressed", "set image_transport to compressed"),
        ("compressed", Image, "image", "set image_transport to raw"),
        ("raw", Image, "cam/image_raw", "remap image:={}/cam/image_raw"),
        ("compressed", CompressedImage, "jpegs", "remap image/compressed:={}/jpegs"),
        ("compressed", CompressedImage, "cam/compressed", "remap image:={}/cam"),
        ("raw", CompressedImage, "c/x/compressed", "to compressed and remap image:={}/c/x"),
        ("compressed", Image, "cam/image_raw", "to raw and remap image:={}/cam/image_raw"),
    ],
)
def test_where_nothing_is_published_the_topic_or_transport_that_has_images_is_named(
    bench: InputBench, asked: str, kind: Any, topic: str, remedy: str
) -> None:
    bench.listen(image_transport=asked)
    bench.camera(kind, topic)
    bench.await_finding("no image arrives on", remedy.format(bench.namespace), level=WARN)


@pytest.mark.usefixtures("impatient")
def test_a_camera_that_stops_is_told_from_one_that_was_never_there(bench: InputBench) -> None:
    bench.listen()
    bench.await_finding("no image arrives on")
    camera = bench.camera()
    bench.await_image(camera, image_message())
    bench.await_finding("no image arrives for ", f"{bench.namespace}/camera_1 publishes it")


def test_two_cameras_on_one_topic_are_named(bench: InputBench) -> None:
    bench.listen()
    one, two = bench.camera(), bench.camera(profile=quality(BEST_EFFORT))
    # Fast DDS does not always tell in time which node a publisher is of: one name will do.
    bench.await_finding("2 publishers of", f"{bench.namespace}/camera_", level=WARN)
    for camera in (one, two):  # best effort serves both
        bench.await_image(camera, image_message())


# Stamps.


def test_stamps_that_go_back_are_counted_and_missing_ones_reported(bench: InputBench) -> None:
    bench.listen()
    camera = bench.camera()
    for number in (5, 6, 0, 1):
        bench.await_image(camera, image_message(number))
    assert bench.input.values()["image stamps went back"] == 1
    for _ in range(10):
        image = image_message()
        image.header.stamp.sec = image.header.stamp.nanosec = 0
        bench.await_image(camera, image)
    bench.await_finding("no stamps", level=WARN)


def test_a_camera_that_is_not_received_is_an_error_where_no_other_is(
    bench: InputBench,
) -> None:
    received = bench.camera(profile=quality(RELIABLE))
    bench.camera(profile=quality(BEST_EFFORT))
    node = bench.node("listener")
    topic = CameraTopic(
        node, Image, f"{bench.namespace}/image", Quality("reliable", "auto", 5), print
    )

    def levels() -> list[bytes]:
        topic.check()
        unmatched = "is not received: it offers best_effort, reliable is requested"
        return [level for level, text in topic.findings() if unmatched in text]

    wait_for(lambda: levels() == [WARN], "a warning", explain=levels)
    bench.remove(received)
    wait_for(lambda: levels() == [ERROR], "an error", explain=levels)


def test_the_camera_nearest_in_namespace_is_named_first(bench: InputBench) -> None:
    asked = f"{bench.namespace}/front/left/image"
    for camera in ("a", "front/left", "front"):
        bench.camera(Image, f"{camera}/image_rect")
        bench.camera(CameraInfo, f"{camera}/camera_info")
    node = bench.node("listener")
    image = CameraTopic(node, Image, asked, Quality("auto", "auto", 5), print)
    info = CameraTopic(node, CameraInfo, f"{asked}_info", Quality("auto", "auto", 5), print)
    nearest = [f"{bench.namespace}/{camera}" for camera in ("front/left", "front", "a")]
    for name, why in (
        ("image_rect", lambda: why_no_image(node, image)),
        ("camera_info", lambda: why_no_info(node, info, asked)),
    ):
        named = f"there are {', '.join(f'{camera}/{name}' for camera in nearest)}"
        wait_for(lambda named=named, why=why: named in why(), named, explain=why)
    assert f"remap image:={nearest[0]}/image_rect" in why_no_image(node, image)


# The camera_info.


@pytest.mark.usefixtures("impatient")
def test_a_missing_camera_info_is_said_with_the_one_that_is_there(bench: InputBench) -> None:
    bench.listen("image:=cam/image_raw")
    bench.camera(CameraInfo, "cam/camera_info")
    bench.await_image(bench.camera(Image, "cam/image_raw"), image_message())
    text = bench.await_finding("no camera_info arrives on", "depth without it", level=WARN)
    assert f"remap image_info:={bench.namespace}/cam/camera_info" in text


def play(bench: InputBench, infos: list[CameraInfo]) -> None:
    """Publish images 0.1 s apart, each with the next of these calibrations."""
    camera, calibration = bench.camera(), bench.camera(CameraInfo, "image_info")
    for number, info in enumerate(infos):
        bench.await_info(calibration, info)
        bench.await_image(camera, image_message(number, step_ns=100_000_000))


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
    assert by_stamp[0] < by_stamp[-1] == 79.0


def test_a_camera_info_that_stops_coming_is_named_with_its_publisher_until_it_comes_again(
    bench: InputBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(info_sync, "RECENT_S", 1.5)
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


def test_another_cameras_calibration_shows_by_its_frame_or_as_a_second_publisher(
    bench: InputBench,
) -> None:
    bench.listen()
    other = camera_info()
    other.header.frame_id = "rear_camera"
    play(bench, [other])
    bench.await_finding("'test_camera'", "'rear_camera'", "remap image_info", level=WARN)
    bench.camera(CameraInfo, "image_info")
    bench.await_finding("2 publishers of", "image_info", level=WARN)


def test_with_rectify_an_image_without_camera_info_is_not_used_and_that_is_said_after_a_while(
    bench: InputBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.listen(rectify=True)
    bench.await_image(bench.camera(), image_message())
    with pytest.raises(NotYetCalibratedError):
        bench.input.frame(image_message())
    assert [text for _, text in bench.await_check() if "no camera_info" in text] == []
    monkeypatch.setattr(camera_input, "_INFO_PATIENCE_S", 0.0)
    with pytest.raises(BadImageError, match=r"rectify is on, and no camera_info.*rectify to false"):
        bench.input.frame(image_message())


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


# The log.


class Log:
    """A FindingLog with a clock of its own, and what it logged."""

    def __init__(self, peer: Peer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
        self._log, self._capfd, self._now = FindingLog(peer.node), capfd, 0.0
        clock = SimpleNamespace(monotonic=lambda: self._now)
        monkeypatch.setattr(camera_input, "time", clock)

    def after(self, seconds: float, *findings: tuple[bytes, str]) -> list[str]:
        """Note the findings at that time; return severities and texts of what was logged."""
        self._now = 1000.0 + seconds
        self._log.add(findings)
        lines = self._capfd.readouterr().err.splitlines()
        return [f"{line.partition(']')[0][1:]} {line.rpartition(']: ')[2]}" for line in lines]


def test_a_finding_is_logged_when_it_has_lasted_a_second_and_again_each_minute(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    log, finding = Log(peer, monkeypatch, capfd), (WARN, "no image arrives")
    told = {seconds: log.after(seconds, finding) for seconds in (0.0, 0.9, 1.1, 2.0, 61.0, 61.2)}
    assert [seconds for seconds, lines in told.items() if lines] == [1.1, 61.2]
    assert told[1.1] == told[61.2] == ["WARN no image arrives"]
    brief = (ERROR, "a publisher is not received")  # what goes at once is not logged
    assert [log.after(100.0, brief), log.after(100.5), log.after(101.5, brief)] == [[], [], []]
    assert log.after(102.6, brief) == ["ERROR a publisher is not received"]


def test_other_numbers_do_not_make_another_finding(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    log = Log(peer, monkeypatch, capfd)
    assert log.after(0.0, (WARN, "no image for 3 s"), (OK, "all is well")) == []
    assert log.after(2.0, (WARN, "no image for 5 s"), (OK, "all is well")) == [
        "WARN no image for 5 s"
    ]
    assert log.after(3.0, (WARN, "no image for 6 s")) == []
    assert log.after(4.0, (WARN, "no image for 7 s"), (WARN, "no camera_info")) == []
    assert log.after(5.1, (WARN, "no image for 8 s"), (WARN, "no camera_info")) == [
        "WARN no camera_info"
    ]
