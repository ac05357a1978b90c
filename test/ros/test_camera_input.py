"""The camera's topics: any quality of service and transport; what cannot work is named."""

from __future__ import annotations

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
from ros_helpers.waiting import wait_for
from tiekd_ros.nodes.camera import input as camera_input
from tiekd_ros.nodes.camera.topic import compressed_topic
from tiekd_ros.nodes.common import qos as qos_events
from tiekd_ros.nodes.common.reporting import ERROR, WARN


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


@pytest.mark.parametrize("asked", ["reliable", "best_effort"])
def test_a_reliable_camera_is_heard_whichever_reliability_is_asked_for(
    bench: InputBench, asked: str
) -> None:
    bench.listen(input_reliability=asked)
    bench.await_image(bench.camera(), image_message())


@pytest.mark.parametrize(
    ("setting", "asked", "profile", "offered"),
    [
        ("input_reliability", "reliable", quality(BEST_EFFORT), "best_effort"),
        ("input_durability", "transient_local", quality(), "volatile"),
    ],
)
def test_a_camera_that_cannot_be_heard_is_named_with_the_setting_that_would_do(
    bench: InputBench, setting: str, asked: str, profile: Any, offered: str
) -> None:
    bench.listen(**{setting: asked})
    camera = bench.camera(profile=profile)
    text = bench.await_finding(f"{bench.namespace}/camera_", "not received", level=ERROR)
    for word in (f"offers {offered}", f"{asked} is requested", f"set {setting} to auto"):
        assert word in text
    camera.publish(image_message())
    bench.await_check()
    assert not bench.images
    bench.remove(camera)
    bench.await_no_finding("not received")


@pytest.mark.parametrize(
    ("asked", "offered", "policy"),
    [
        (quality(RELIABLE), quality(BEST_EFFORT), "RELIABILITY"),
        (quality(RELIABLE, LATCHED), quality(RELIABLE), "DURABILITY"),
    ],
)
def test_the_middleware_tells_which_policy_does_not_fit(
    bench: InputBench, asked: Any, offered: Any, policy: str
) -> None:
    bench.listen()
    told: list[str] = []
    qos_events.subscribe(
        bench.input._node, Image, "other", print, asked, on_mismatch=told.append, on_lost=print
    )
    bench.camera(Image, "other", offered)
    assert wait_for(lambda: told, "the event") == [policy]


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
import rclpy.node, rclpy.event_handler as new
old = types.ModuleType("rclpy.qos_event")
names = ("PublisherEventCallbacks", "SubscriptionEventCallbacks", "UnsupportedEventTypeError")
for name in names:
    setattr(old, name, getattr(new, name))
sys.modules["rclpy.qos_event"], sys.modules["rclpy.event_handler"] = old, None
from tiekd_ros.nodes.common import qos
assert qos.SubscriptionEventCallbacks is old.SubscriptionEventCallbacks
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
def test_compressed_images_are_heard_beside_the_remapped_topic(
    bench: InputBench, make: Any
) -> None:
    bench.listen("image:=cam/image_raw", image_transport="compressed")
    sent = make(3)
    camera = bench.camera(CompressedImage, "cam/image_raw/compressed")
    view = bench.input.frame(bench.await_image(camera, sent))
    difference = np.abs(view.image.astype(int) - picture(3, 96, 72).astype(int))
    assert view.image.shape == (72, 96, 3)
    assert difference.max() == 0 if make is png_message else difference.mean() < 8


@pytest.mark.parametrize(
    ("remapping", "topic"),
    [
        ("image:=/cam/image_raw", "/cam/image_raw/compressed"),
        ("image:=/cam/image_raw/compressed", "/cam/image_raw/compressed"),
        ("image/compressed:=/cam/jpeg", "/cam/jpeg"),
    ],
)
def test_the_topic_of_compressed_images_follows_what_is_remapped(
    bench: InputBench, remapping: str, topic: str
) -> None:
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
    text = bench.await_finding(who, "sensor_msgs/msg/CompressedImage", level=ERROR)
    assert remedy in text


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


# Stamps and the log.


@pytest.mark.usefixtures("impatient")
def test_stamps_that_go_back_are_counted_and_their_images_come(bench: InputBench) -> None:
    bench.listen()
    camera = bench.camera()
    for number in (5, 6, 0, 1):
        bench.await_image(camera, image_message(number))
    assert bench.input.values()["image stamps went back"] == 1


def test_images_without_stamps_are_reported(bench: InputBench) -> None:
    bench.listen()
    camera = bench.camera()
    for _ in range(10):
        image = image_message()
        image.header.stamp.sec = image.header.stamp.nanosec = 0
        bench.await_image(camera, image)
    bench.await_finding("no stamps", level=WARN)


def test_a_finding_is_logged_when_it_appears_and_not_every_second(
    bench: InputBench, capfd: pytest.CaptureFixture[str]
) -> None:
    bench.listen(input_reliability="reliable")
    bench.camera(profile=quality(BEST_EFFORT))
    finding = bench.await_finding(f"{bench.namespace}/camera_1", "not received: it offers")
    logged: list[str] = []

    def read() -> bool:
        logged.append(capfd.readouterr().err)
        return finding in "".join(logged)

    wait_for(read, "the finding in the log")
    for _ in range(5):
        bench.await_check()
    read()
    assert "".join(logged).count(finding) == 1
