"""Both nodes with cameras of another kind: compressed, bent by a lens, with stamps that go back."""

from __future__ import annotations

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import CameraInfo, CompressedImage

from helpers.students import small_student
from ros_helpers.camera import compressed_message
from ros_helpers.companion import LOGGING, STEP_NS, log_image, log_pictures, stats
from ros_helpers.messages import FIRST_NS, camera_info, image_message
from ros_helpers.peer import Peer, running
from ros_helpers.waiting import wait_for
from tiekd_ros.core.state import StateFolder
from tiekd_ros.framelog import FrameStore
from tiekd_ros.nodes.camera import input as camera_input
from tiekd_ros.nodes.common import qos
from tiekd_ros.nodes.common.conversions import image_to_float, stamp_ns
from tiekd_ros.nodes.companion.node import CompanionNode
from tiekd_ros.nodes.depth.node import DepthNode
from tiekd_ros.student.registry import StudentRegistry

DEPTH, COMPANION = "depth_node", "companion_node"


@pytest.fixture(autouse=True)
def live_student(state: StateFolder) -> None:
    registry = StudentRegistry(state.students)
    registry.promote(registry.add(small_student()).version)


def bent() -> CameraInfo:
    """Return a wide lens whose rectified image shows what it did not see."""
    info = camera_info()
    info.d = [-0.3, 0.05, 0.0, 0.0, 0.0]
    info.p = [30.0, 0.0, 47.5, 0.0, 0.0, 30.0, 35.5, 0.0, 0.0, 0.0, 1.0, 0.0]
    return info


def test_depth_of_compressed_images_has_their_header(peer: Peer, state: StateFolder) -> None:
    camera = peer.node.create_publisher(CompressedImage, "image/compressed", qos.RELIABLE)
    image = compressed_message(1)
    with running(DepthNode, peer, state_dir=str(state.root), image_transport="compressed"):
        depth = wait_for(
            lambda: peer.depth.get(stamp_ns(image.header)),
            "depth",
            nudge=lambda: camera.publish(image),
            explain=lambda: peer.diagnosis(DEPTH),
        )
    assert depth.header == image.header
    assert (depth.width, depth.height) == (96, 72)


def test_a_compressed_image_that_is_cut_off_is_reported(peer: Peer, state: StateFolder) -> None:
    camera = peer.node.create_publisher(CompressedImage, "image/compressed", qos.RELIABLE)
    image = compressed_message(1)
    image.data = image.data[:-200]
    with running(DepthNode, peer, state_dir=str(state.root), image_transport="compressed"):
        wait_for(
            lambda: "cut off" in peer.diagnosis(DEPTH).message,
            "the diagnosis",
            nudge=lambda: camera.publish(image),
        )
    assert not peer.depth


def test_a_lens_is_reported_and_depth_keeps_its_calibration(peer: Peer, state: StateFolder) -> None:
    with running(DepthNode, peer, state_dir=str(state.root)):
        image = image_message()
        peer.depth_of(image, bent())
        info = wait_for(
            lambda: peer.infos.get(stamp_ns(image.header)),
            "camera_info",
            nudge=lambda: peer.show(image, bent()),
        )
        peer.await_diagnosis(DEPTH, "not rectified: the lens moves", DiagnosticStatus.WARN)
    assert list(info.d) == list(bent().d)
    assert info.k.tolist() == bent().k.tolist()


def test_rectified_depth_has_a_pinhole_calibration_and_no_depth_where_nothing_was_seen(
    peer: Peer, state: StateFolder
) -> None:
    with running(DepthNode, peer, state_dir=str(state.root), rectify=True):
        image = image_message()
        # Without camera_info there is nothing to rectify by, and an image as it is would be wrong.
        wait_for(
            lambda: "rectify is on, and no camera_info has come" in peer.diagnosis(DEPTH).message,
            "the diagnosis",
            nudge=lambda: peer.show(image),
        )
        assert not peer.depth
        metres = image_to_float(peer.depth_of(image_message(1), bent()))
        info = wait_for(
            lambda: peer.infos.get(stamp_ns(image_message(1).header)),
            "camera_info",
            nudge=lambda: peer.show(image_message(1), bent()),
        )
    assert not any(info.d)
    assert info.k.reshape(3, 3).tolist() == info.p.reshape(3, 4)[:, :3].tolist()
    assert info.k[0] == 30.0
    assert np.isnan(metres[0]).all()
    assert np.isnan(metres[:, 0]).all()
    assert not np.isnan(metres[20:50, 30:60]).any()


def test_stamps_that_go_back_do_not_stop_depth(peer: Peer, state: StateFolder) -> None:
    with running(DepthNode, peer, state_dir=str(state.root)):
        for number in (500, 501, 3, 4, 0):
            depth = peer.depth_of(image_message(number), camera_info())
            assert depth.header == image_message(number).header
        peer.await_value(DEPTH, "image stamps went back", "2")


def test_with_use_sim_time_and_no_clock_both_nodes_work(peer: Peer, state: StateFolder) -> None:
    with running(DepthNode, peer, state_dir=str(state.root), use_sim_time=True):
        peer.depth_of(image_message(1), camera_info())
        peer.await_value(DEPTH, "state", "active")
    unstamped = image_message(2)
    unstamped.header.stamp.sec = unstamped.header.stamp.nanosec = 0
    with running(CompanionNode, peer, state_dir=str(state.root), use_sim_time=True, **LOGGING):
        log_image(peer, state, unstamped, camera_info())
    with FrameStore(state.frames, read_only=True) as store:
        (frame,) = store.unlabelled(1)
    assert frame.stamp_ns > FIRST_NS


def test_stamps_that_go_back_do_not_stop_logging(peer: Peer, state: StateFolder) -> None:
    with running(CompanionNode, peer, state_dir=str(state.root), **LOGGING):
        log_pictures(peer, state, (50, 51))
        log_pictures(peer, state, (1, 2, 3))  # other pictures, long before
        peer.await_value(COMPANION, "image stamps went back", "1")
    assert stats(state).total == 5


def test_a_frame_is_logged_rectified_with_the_pinhole_calibration(
    peer: Peer, state: StateFolder
) -> None:
    image = image_message(1, step_ns=STEP_NS)
    with running(CompanionNode, peer, state_dir=str(state.root), rectify=True, **LOGGING):
        log_image(peer, state, image, bent())
    with FrameStore(state.frames, read_only=True) as store:
        (frame,) = store.unlabelled(1)
    assert frame.intrinsics is not None
    assert frame.intrinsics.as_tuple() == (30.0, 30.0, 47.5, 35.5)


def test_compressed_images_are_logged(peer: Peer, state: StateFolder) -> None:
    camera = peer.node.create_publisher(CompressedImage, "image/compressed", qos.RELIABLE)
    parameters = {"state_dir": str(state.root), "image_transport": "compressed", **LOGGING}
    with running(CompanionNode, peer, **parameters):
        wait_for(
            lambda: stats(state).total == 1,
            "the frame",
            nudge=lambda: camera.publish(compressed_message(1)),
            explain=lambda: peer.diagnosis(COMPANION),
        )


def test_a_camera_that_is_not_there_is_said_by_both_nodes(
    peer: Peer, state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(camera_input, "_SILENCE_S", 0.5)
    for kind, name in ((DepthNode, DEPTH), (CompanionNode, COMPANION)):
        with running(kind, peer, state_dir=str(state.root), input_reliability="reliable"):
            # The peer's own camera publishes; it sends nothing.
            text = peer.await_diagnosis(name, "no image arrives on", DiagnosticStatus.WARN).message
        assert f"{peer.namespace}/peer publishes it" in text
