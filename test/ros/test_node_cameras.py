"""Both nodes with cameras and calibrations as they really come: late, compressed, distorted."""

from __future__ import annotations

import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from rclpy.lifecycle import LifecycleNode
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, RegionOfInterest

from ros_helpers.camera import compressed_message
from ros_helpers.companion import STEP_NS, log_image, log_pictures, logging_companion, stats
from ros_helpers.messages import (
    FIRST_NS,
    HEIGHT,
    WIDTH,
    K,
    camera_info,
    distorted_info,
    image_message,
)
from ros_helpers.peer import Peer, running
from ros_helpers.waiting import wait_for
from tiekd_ros.core.state import StateFolder
from tiekd_ros.framelog import FrameStore, Recorder
from tiekd_ros.nodes.camera import input as camera_input
from tiekd_ros.nodes.common import qos
from tiekd_ros.nodes.common.conversions import image_to_float, stamp_ns
from tiekd_ros.nodes.common.managed import ManagedNode
from tiekd_ros.nodes.companion.node import CompanionNode
from tiekd_ros.nodes.depth import node as depth_node
from tiekd_ros.nodes.depth.node import DepthNode
from tiekd_ros.nodes.depth.points import PointCanvas, read_cloud

DEPTH, COMPANION = "depth_node", "companion_node"
ACTIVATE = Transition.TRANSITION_ACTIVATE
pytestmark = pytest.mark.usefixtures("promoted")


def stamped(image: Image, focal: float) -> CameraInfo:
    info = camera_info([focal, *K[1:]])
    info.header = image.header
    return info


@pytest.mark.parametrize(("kind", "name"), [(DepthNode, DEPTH), (CompanionNode, COMPANION)])
def test_an_activation_that_fails_again_and_again_leaves_no_subscription(
    peer: Peer, state: StateFolder, kind: type[ManagedNode], name: str
) -> None:
    node: LifecycleNode = kind(
        namespace=peer.namespace,
        context=peer.context,
        cli_args=["--ros-args", "-r", "image_info:=image"],
        parameter_overrides=[
            Parameter("state_dir", value=str(state.root)),
            Parameter("autostart", value=False),
        ],
        use_global_arguments=False,
    )
    try:
        node.trigger_configure()
        before = sorted(s.topic_name for s in node.subscriptions)
        for _ in range(2):
            node.trigger_activate()
            assert sorted(s.topic_name for s in node.subscriptions) == before
        node.publish_report()
        text = peer.await_diagnosis(name, "cannot activate").message
    finally:
        node.release()
        node.destroy_node()
    for word in (f"{peer.namespace}/image ", "msg/CameraInfo", "msg/Image", "remap image"):
        assert word in text


def test_a_calibration_without_a_size_is_taken_for_the_images_and_said(
    peer: Peer, state: StateFolder
) -> None:
    info, image = camera_info(), image_message()
    info.width = info.height = 0
    with running(DepthNode, peer, state_dir=str(state.root)):
        sibling = peer.info_of(image, info)
        cloud = peer.message_of(image, peer.listen(PointCloud2, "points"), info)
        peer.await_diagnosis(DEPTH, "says 0 x 0 pixels", DiagnosticStatus.WARN)
    assert (sibling.width, sibling.height) == (WIDTH, HEIGHT)
    assert read_cloud(cloud).xyz.shape == (HEIGHT, WIDTH, 3)


def test_points_that_fail_do_not_hide_that_depth_flows(
    peer: Peer, state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("no such points")

    monkeypatch.setattr(PointCanvas, "paint", fail)
    peer.listen(PointCloud2, "points")
    info = camera_info()
    with running(DepthNode, peer, state_dir=str(state.root)):
        peer.depth_of(image_message(), info)
        peer.await_diagnosis(DEPTH, "no such points", None, image_message(1), info)
        peer.depth_of(image_message(2), info)
        peer.await_above(DEPTH, "depth rate [Hz]", 0, image_message(3), info)


def test_a_region_of_interest_that_is_binned_too_gives_depths_calibration(
    peer: Peer, state: StateFolder
) -> None:
    info = camera_info([240.0, 0.0, 150.0, 0.0, 240.0, 110.0, 0.0, 0.0, 1.0], 320, 240)
    info.roi = RegionOfInterest(x_offset=64, y_offset=48, width=2 * WIDTH, height=2 * HEIGHT)
    info.binning_x = info.binning_y = 2
    with running(DepthNode, peer, state_dir=str(state.root)):
        sibling = peer.info_of(image_message(), info)
    assert (sibling.width, sibling.height) == (WIDTH, HEIGHT)
    assert sibling.k.tolist() == [120.0, 0.0, 42.75, 0.0, 120.0, 30.75, 0.0, 0.0, 1.0]
    assert sibling.p.reshape(3, 4)[:, :3].flatten().tolist() == sibling.k.tolist()
    assert (sibling.binning_x, sibling.roi) == (0, RegionOfInterest())


def test_a_camera_info_that_comes_just_after_its_image_is_used_for_it(
    peer: Peer, state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depth_node, "PATIENCE_S", 5.0)  # on a busy machine all takes longer
    images = peer.node.create_publisher(Image, "image", qos.RELIABLE)
    infos = peer.node.create_publisher(CameraInfo, "image_info", qos.RELIABLE)
    found = []
    with running(DepthNode, peer, state_dir=str(state.root)):
        peer.depth_of(image_message(0), stamped(image_message(0), 60.0))
        for number in range(1, 9):
            image = image_message(number)
            info = stamped(image, 60.0 + number)

            def show(image: Image = image, info: CameraInfo = info) -> None:
                images.publish(image)
                time.sleep(0.003)
                infos.publish(info)

            stamp = stamp_ns(image.header)
            sibling = wait_for(lambda at=stamp: peer.infos.get(at), "camera_info", nudge=show)
            found.append(sibling.k[0])
    assert found == [60.0 + number for number in range(1, 9)]


def test_a_bag_that_starts_again_with_another_calibration_gives_depth_that(
    peer: Peer, state: StateFolder
) -> None:
    with running(DepthNode, peer, state_dir=str(state.root)):
        for focal in (60.0, 80.0):
            peer.infos.clear()
            for number in range(3):
                image = image_message(number)
                assert peer.info_of(image, stamped(image, focal)).k[0] == focal


def test_when_the_clock_jumps_back_stamps_of_before_say_nothing_any_more(
    peer: Peer, state: StateFolder
) -> None:
    image = image_message(0)
    with running(DepthNode, peer, state_dir=str(state.root), use_sim_time=True) as node:
        peer.set_clock(node, 100)
        assert peer.info_of(image, stamped(image, 60.0)).k[0] == 60.0
        wait_for(
            lambda: peer.diagnosis(DEPTH).values.get("camera_info changes") == "1",
            "another camera_info",
            nudge=lambda: peer._info_pub.publish(stamped(image_message(1), 61.0)),
        )
        peer.infos.clear()
        peer.set_clock(node, 50)
        assert peer.message_of(image, peer.infos).k[0] == 61.0


def test_when_the_clock_jumps_back_the_companion_takes_an_old_stamp_for_new(
    peer: Peer, state: StateFolder
) -> None:
    with logging_companion(peer, state, use_sim_time=True) as node:
        for count, seconds in ((1, 100), (2, 50)):
            peer.set_clock(node, seconds)
            peer.await_above(COMPANION, "frames offered", count - 1, image_message(), camera_info())
            peer.await_value(COMPANION, "frames offered", str(count))


def test_the_companion_outlives_a_frame_that_fails(
    peer: Peer, state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError("too large")

    with logging_companion(peer, state):
        with monkeypatch.context() as broken:
            broken.setattr(Recorder, "record", fail)
            fault = "not logged: MemoryError: too large"
            peer.await_diagnosis(COMPANION, fault, None, image_message(), camera_info())
        log_pictures(peer, state, (1, 2))
    assert stats(state).total == 2


def test_depth_of_compressed_images_has_their_header_and_one_that_is_cut_off_is_reported(
    peer: Peer, state: StateFolder
) -> None:
    camera = peer.node.create_publisher(CompressedImage, "image/compressed", qos.RELIABLE)
    cut, image = compressed_message(0), compressed_message(1)
    cut.data = cut.data[:-200]
    with running(DepthNode, peer, state_dir=str(state.root), image_transport="compressed"):
        wait_for(
            lambda: "cut off" in peer.diagnosis(DEPTH).message,
            "the diagnosis",
            nudge=lambda: camera.publish(cut),
        )
        assert not peer.depth
        depth = wait_for(
            lambda: peer.depth.get(stamp_ns(image.header)),
            "depth",
            nudge=lambda: camera.publish(image),
            explain=lambda: peer.diagnosis(DEPTH),
        )
    assert depth.header == image.header
    assert (depth.width, depth.height) == (96, 72)


def test_a_lens_is_reported_and_depth_keeps_its_calibration(peer: Peer, state: StateFolder) -> None:
    with running(DepthNode, peer, state_dir=str(state.root)):
        info = peer.info_of(image_message(), distorted_info())
        peer.await_diagnosis(DEPTH, "not rectified: the lens moves", DiagnosticStatus.WARN)
    assert list(info.d) == list(distorted_info().d)
    assert info.k.tolist() == distorted_info().k.tolist()


def test_rectified_depth_has_a_pinhole_calibration_and_no_depth_where_nothing_was_seen(
    peer: Peer, state: StateFolder
) -> None:
    with running(DepthNode, peer, state_dir=str(state.root), rectify=True):
        # Without camera_info there is nothing to rectify by, and an image as it is would be wrong.
        missing = "rectify is on, and no camera_info has come"
        peer.await_diagnosis(DEPTH, missing, None, image_message())
        assert not peer.depth
        metres = image_to_float(peer.depth_of(image_message(1), distorted_info()))
        info = peer.info_of(image_message(1), distorted_info())
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
    with logging_companion(peer, state, use_sim_time=True):
        log_image(peer, state, unstamped, camera_info())
    with FrameStore(state.frames, read_only=True) as store:
        (frame,) = store.unlabelled(1)
    assert frame.stamp_ns > FIRST_NS


def test_stamps_that_go_back_do_not_stop_logging(peer: Peer, state: StateFolder) -> None:
    with logging_companion(peer, state):
        log_pictures(peer, state, (50, 51))
        log_pictures(peer, state, (1, 2, 3))  # other pictures, long before
        peer.await_value(COMPANION, "image stamps went back", "1")
    assert stats(state).total == 5


def test_a_frame_is_logged_rectified_with_its_pinhole_calibration_and_a_border_is_named(
    peer: Peer, state: StateFolder
) -> None:
    image = image_message(1, step_ns=STEP_NS)
    with logging_companion(peer, state, rectify=True):
        log_image(peer, state, image, distorted_info())
        peer.await_diagnosis(COMPANION, "neither depth nor a label", DiagnosticStatus.WARN)
        peer.await_above(COMPANION, "invalid share of rectified images", 0.1)
    with FrameStore(state.frames, read_only=True) as store:
        (frame,) = store.unlabelled(1)
    assert frame.intrinsics is not None
    assert frame.intrinsics.as_tuple() == (30.0, 30.0, 47.5, 35.5)


def test_compressed_images_are_logged(peer: Peer, state: StateFolder) -> None:
    camera = peer.node.create_publisher(CompressedImage, "image/compressed", qos.RELIABLE)
    with logging_companion(peer, state, image_transport="compressed"):
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
