"""Both nodes with calibrations as cameras really send them: late, without a size, cut, changed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from rclpy.lifecycle import LifecycleNode
from rclpy.parameter import Parameter
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, RegionOfInterest

from helpers.students import small_student
from ros_helpers.companion import LOGGING, STEP_NS, log_image, log_pictures, stats
from ros_helpers.messages import HEIGHT, WIDTH, K, camera_info, image_message
from ros_helpers.peer import Peer, running
from ros_helpers.waiting import wait_for
from tiekd_ros.core.state import StateFolder
from tiekd_ros.framelog import Recorder
from tiekd_ros.nodes.common import qos
from tiekd_ros.nodes.common.conversions import stamp_ns
from tiekd_ros.nodes.common.managed import ManagedNode
from tiekd_ros.nodes.companion.node import CompanionNode
from tiekd_ros.nodes.depth import node as depth_node
from tiekd_ros.nodes.depth.node import DepthNode
from tiekd_ros.nodes.depth.points import PointCanvas, read_cloud
from tiekd_ros.student.registry import StudentRegistry

DEPTH, COMPANION = "depth_node", "companion_node"
ACTIVATE = Transition.TRANSITION_ACTIVATE


@pytest.fixture(autouse=True)
def live_student(state: StateFolder) -> None:
    registry = StudentRegistry(state.students)
    registry.promote(registry.add(small_student()).version)


def sibling_of(peer: Peer, image: Image, show: Callable[[], Any]) -> CameraInfo:
    """Show an image until the camera_info of its depth has come."""
    return wait_for(
        lambda: peer.infos.get(stamp_ns(image.header)),
        "camera_info",
        nudge=show,
        explain=lambda: peer.diagnosis(DEPTH),
    )


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
    clouds: list[PointCloud2] = []
    peer.node.create_subscription(PointCloud2, "points", clouds.append, 10)
    info, image = camera_info(), image_message()
    info.width = info.height = 0
    with running(DepthNode, peer, state_dir=str(state.root), runtime="torch"):
        sibling = sibling_of(peer, image, lambda: peer.show(image, info))
        cloud = wait_for(lambda: clouds, "points", nudge=lambda: peer.show(image, info))[0]
        peer.await_diagnosis(DEPTH, "says 0 x 0 pixels", DiagnosticStatus.WARN)
    assert (sibling.width, sibling.height) == (WIDTH, HEIGHT)
    assert read_cloud(cloud).xyz.shape == (HEIGHT, WIDTH, 3)


def test_points_that_fail_do_not_hide_that_depth_flows(
    peer: Peer, state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("no such points")

    monkeypatch.setattr(PointCanvas, "paint", fail)
    peer.node.create_subscription(PointCloud2, "points", print, 10)
    with running(DepthNode, peer, state_dir=str(state.root), runtime="torch"):
        peer.depth_of(image_message(), camera_info())
        wait_for(
            lambda: "no such points" in peer.diagnosis(DEPTH).message,
            "the fault",
            nudge=lambda: peer.show(image_message(1), camera_info()),
        )
        peer.depth_of(image_message(2), camera_info())
        wait_for(
            lambda: float(peer.diagnosis(DEPTH).values.get("depth rate [Hz]", "0")) > 0,
            "depth's rate",
            nudge=lambda: peer.show(image_message(3), camera_info()),
            explain=lambda: peer.diagnosis(DEPTH),
        )


def test_a_region_of_interest_that_is_binned_too_gives_depths_calibration(
    peer: Peer, state: StateFolder
) -> None:
    info = camera_info([240.0, 0.0, 150.0, 0.0, 240.0, 110.0, 0.0, 0.0, 1.0], 320, 240)
    info.roi = RegionOfInterest(x_offset=64, y_offset=48, width=2 * WIDTH, height=2 * HEIGHT)
    info.binning_x = info.binning_y = 2
    image = image_message()
    with running(DepthNode, peer, state_dir=str(state.root), runtime="torch"):
        sibling = sibling_of(peer, image, lambda: peer.show(image, info))
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
    with running(DepthNode, peer, state_dir=str(state.root), runtime="torch"):
        peer.depth_of(image_message(0), stamped(image_message(0), 60.0))
        for number in range(1, 9):
            image = image_message(number)
            info = stamped(image, 60.0 + number)

            def show(image: Image = image, info: CameraInfo = info) -> None:
                images.publish(image)
                time.sleep(0.003)
                infos.publish(info)

            found.append(float(sibling_of(peer, image, show).k[0]))
    assert found == [60.0 + number for number in range(1, 9)]


def test_a_bag_that_starts_again_with_another_calibration_gives_depth_that(
    peer: Peer, state: StateFolder
) -> None:
    with running(DepthNode, peer, state_dir=str(state.root), runtime="torch"):
        for focal in (60.0, 80.0):
            peer.infos.clear()
            for number in range(3):
                image = image_message(number)
                info = stamped(image, focal)

                def show(image: Image = image, info: CameraInfo = info) -> None:
                    peer.show(image, info)

                assert sibling_of(peer, image, show).k[0] == focal


def test_when_the_clock_jumps_back_stamps_of_before_say_nothing_any_more(
    peer: Peer, state: StateFolder
) -> None:
    clock = peer.node.create_publisher(Clock, "/clock", 10)
    image = image_message(0)
    later = stamped(image_message(1), 61.0)

    def tell(seconds: int) -> Callable[[], None]:
        return lambda: clock.publish(Clock(clock=Time(seconds=seconds).to_msg()))

    settings = {"state_dir": str(state.root), "runtime": "torch", "use_sim_time": True}
    with running(DepthNode, peer, **settings) as node:
        now = node.get_clock().now
        wait_for(lambda: now().nanoseconds == 100e9, "100 s", nudge=tell(100))
        info = stamped(image, 60.0)
        assert sibling_of(peer, image, lambda: peer.show(image, info)).k[0] == 60.0
        wait_for(
            lambda: peer.diagnosis(DEPTH).values.get("camera_info changes") == "1",
            "another camera_info",
            nudge=lambda: peer._info_pub.publish(later),
        )
        peer.infos.clear()
        wait_for(lambda: now().nanoseconds == 50e9, "50 s", nudge=tell(50))
        assert sibling_of(peer, image, lambda: peer.show(image)).k[0] == 61.0


def test_when_the_clock_jumps_back_the_companion_takes_an_old_stamp_for_new(
    peer: Peer, state: StateFolder
) -> None:
    clock = peer.node.create_publisher(Clock, "/clock", 10)
    settings = {"state_dir": str(state.root), "use_sim_time": True, **LOGGING}

    def offered(count: int, seconds: int) -> None:
        def nudge() -> None:
            clock.publish(Clock(clock=Time(seconds=seconds).to_msg()))
            peer.show(image_message(), camera_info())

        wait_for(
            lambda: peer.diagnosis(COMPANION).values.get("frames offered") == str(count),
            f"{count} offered frames",
            nudge=nudge,
            explain=lambda: peer.diagnosis(COMPANION),
        )

    with running(CompanionNode, peer, **settings) as node:
        now = node.get_clock().now
        tell = Clock(clock=Time(seconds=100).to_msg())
        wait_for(lambda: now().nanoseconds == 100e9, "100 s", nudge=lambda: clock.publish(tell))
        offered(1, 100)
        offered(2, 50)


def test_the_companion_outlives_a_frame_that_fails(
    peer: Peer, state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError("too large")

    with running(CompanionNode, peer, state_dir=str(state.root), **LOGGING):
        with monkeypatch.context() as broken:
            broken.setattr(Recorder, "record", fail)
            wait_for(
                lambda: "not logged: MemoryError: too large" in peer.diagnosis(COMPANION).message,
                "the fault",
                nudge=lambda: peer.show(image_message(), camera_info()),
            )
        log_pictures(peer, state, (1, 2))
    assert stats(state).total == 2


def test_frames_whose_border_was_not_seen_are_named(peer: Peer, state: StateFolder) -> None:
    info = camera_info()
    info.d = [-0.3, 0.05, 0.0, 0.0, 0.0]
    info.p = [30.0, 0.0, 47.5, 0.0, 0.0, 30.0, 35.5, 0.0, 0.0, 0.0, 1.0, 0.0]
    image = image_message(1, step_ns=STEP_NS)
    with running(CompanionNode, peer, state_dir=str(state.root), rectify=True, **LOGGING):
        log_image(peer, state, image, info)
        peer.await_diagnosis(COMPANION, "neither depth nor a label", DiagnosticStatus.WARN)
        assert float(peer.diagnosis(COMPANION).values["invalid share of rectified images"]) > 0.1
