"""Bad images and calibrations: depth_node says what is wrong, and the stream goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import CameraInfo, Image

from helpers.students import promote_small
from ros_helpers.messages import camera_info, header, image_message
from ros_helpers.peer import Peer, running
from ros_helpers.waiting import wait_for
from tiekd_ros.core.state import StateFolder
from tiekd_ros.nodes.common.conversions import image_to_float, rgb_to_image, stamp_ns
from tiekd_ros.nodes.depth.node import DepthNode

NODE = "depth_node"


@pytest.fixture(autouse=True)
def depth_node(peer: Peer, state: StateFolder) -> Iterator[DepthNode]:
    promote_small(state)
    with running(DepthNode, peer, state_dir=str(state.root)) as node:
        yield node


def unsupported() -> Image:
    image = image_message(1)
    image.encoding = "nv24"
    return image


def empty() -> Image:
    return Image(header=header(1), encoding="rgb8")


def truncated() -> Image:
    image = image_message(1)
    image.data = image.data[: len(image.data) // 2]
    return image


def short_step() -> Image:
    image = image_message(1)
    image.step = 7
    return image


def odd_yuv() -> Image:
    image = image_message(1, width=96)
    image.encoding, image.width, image.step = "uyvy", 95, 95 * 2
    return image


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (unsupported, "nv24"),
        (empty, "0 x 0 pixels"),
        (truncated, "truncated"),
        (short_step, "step is 7"),
        (odd_yuv, "95 x 72 uyvy"),
    ],
)
def test_a_bad_image_is_reported_and_the_stream_goes_on(
    peer: Peer, make: Callable[[], Image], reason: str
) -> None:
    peer.depth_of(image_message(0), camera_info())
    bad = make()
    peer.show(bad)
    report = peer.await_diagnosis(NODE, reason, DiagnosticStatus.ERROR)
    assert int(report.values["images refused"]) >= 1
    peer.depth_of(image_message(2), camera_info())
    assert stamp_ns(bad.header) not in peer.depth


def test_a_padded_image_gives_the_depth_of_the_same_image_without_padding(peer: Peer) -> None:
    plain = image_message(1)
    rows = np.frombuffer(plain.data, np.uint8).reshape(plain.height, plain.step)
    padded = image_message(2)
    padded.data = np.pad(rows, ((0, 0), (0, 12)), constant_values=0xEE).tobytes()
    padded.step = plain.step + 12
    one, other = peer.depth_of(plain), peer.depth_of(padded)
    np.testing.assert_array_equal(image_to_float(one), image_to_float(other))


def test_without_camera_info_depth_flows_and_diagnostics_say_what_is_missing(peer: Peer) -> None:
    peer.depth_of(image_message())
    peer.await_diagnosis(NODE, "no camera_info arrives", DiagnosticStatus.WARN)
    assert not peer.infos


def test_with_zero_intrinsics_depth_flows_and_diagnostics_say_uncalibrated(peer: Peer) -> None:
    peer.depth_of(image_message(), CameraInfo(width=96, height=72))
    peer.await_diagnosis(NODE, "uncalibrated", DiagnosticStatus.WARN)


def test_a_calibration_for_another_size_is_scaled_and_reported(peer: Peer) -> None:
    doubled = camera_info([120.0, 0.0, 95.5, 0.0, 122.0, 71.5, 0.0, 0.0, 1.0], 192, 144)
    image = image_message()
    peer.depth_of(image, doubled)
    peer.await_diagnosis(NODE, "camera_info is for 192 x 144", DiagnosticStatus.WARN)
    info = wait_for(
        lambda: peer.infos.get(stamp_ns(image.header)),
        "camera_info",
        nudge=lambda: peer.show(image, doubled),
    )
    assert (info.width, info.height) == (96, 72)
    assert list(info.k) == [60.0, 0.0, 47.5, 0.0, 61.0, 35.5, 0.0, 0.0, 1.0]


def test_the_image_size_may_change_while_running(peer: Peer) -> None:
    sizes = [(96, 72), (128, 48), (32, 30), (320, 240), (96, 72)]
    for number, (width, height) in enumerate(sizes):
        image = image_message(number, width=width, height=height)
        depth = peer.depth_of(image, camera_info(width=width, height=height))
        assert (depth.width, depth.height) == (width, height)


def test_an_image_smaller_than_the_networks_input_gets_depth(peer: Peer) -> None:
    tiny = rgb_to_image(np.full((2, 3, 3), 90, np.uint8), header())
    depth = peer.depth_of(tiny)
    assert (depth.width, depth.height) == (3, 2)
