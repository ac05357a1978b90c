"""Points and preview: what they show, for whom they are made, and who cannot be served."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, PointCloud2

from helpers.students import BINS, SIZE, promote_small
from ros_helpers.messages import HEIGHT, WIDTH, camera_info, header, image_message
from ros_helpers.peer import Peer, running
from ros_helpers.waiting import wait_for
from tiekd_ros.core.state import StateFolder
from tiekd_ros.nodes.common import qos
from tiekd_ros.nodes.common.conversions import image_to_depth, image_to_rgb, stamp_ns
from tiekd_ros.nodes.depth.node import DepthNode
from tiekd_ros.nodes.depth.points import read_cloud
from tiekd_ros.nodes.depth.preview import UNKNOWN, PreviewCanvas

NODE = "depth_node"


@pytest.fixture
def promoted(state: StateFolder) -> StateFolder:
    promote_small(state)
    return state


@pytest.fixture
def depth_node(peer: Peer, promoted: StateFolder) -> Iterator[DepthNode]:
    with running(DepthNode, peer, state_dir=str(promoted.root)) as node:
        yield node


class Listener:
    """Keeps what comes on a topic, by its stamp."""

    def __init__(self, peer: Peer, kind: Any, topic: str, profile: QoSProfile | int = 10) -> None:
        self._peer, self._topic = peer, topic
        self.heard: dict[int, Any] = {}
        self._subscription = peer.node.create_subscription(
            kind, topic, lambda m: self.heard.update({stamp_ns(m.header): m}), profile
        )

    def of(self, image: Image, *, calibrated: bool = True) -> Any:
        """Show the image until its message comes."""
        info = camera_info() if calibrated else None
        return wait_for(
            lambda: self.heard.get(stamp_ns(image.header)),
            self._topic,
            nudge=lambda: self._peer.show(image, info),
            explain=lambda: self._peer.diagnosis(NODE),
        )

    def stop(self) -> None:
        self._peer.node.destroy_subscription(self._subscription)


def count(peer: Peer, key: str) -> int:
    return int(peer.diagnosis(NODE).values.get(key, "-1"))


@pytest.mark.usefixtures("depth_node")
class TestPublished:
    def test_points_are_the_depth_image_in_space_with_its_header(self, peer: Peer) -> None:
        image = image_message(3)
        cloud = Listener(peer, PointCloud2, "points").of(image)
        depth = image_to_depth(peer.depth_of(image, camera_info()))
        assert cloud.header == image.header
        assert (cloud.width, cloud.height) == (WIDTH, HEIGHT)
        points = read_cloud(cloud)
        finite = np.isfinite(depth)
        np.testing.assert_array_equal(points.xyz[..., 2], np.where(finite, depth, np.nan))
        np.testing.assert_array_equal(points.rgb, image_to_rgb(image))
        assert cloud.is_dense == finite.all()

    def test_points_and_preview_have_the_networks_size_if_depth_has(self, peer: Peer) -> None:
        assert peer.set_parameter(NODE, "resolution", "network").successful
        image = image_message(3)
        cloud = Listener(peer, PointCloud2, "points").of(image)
        preview = Listener(peer, Image, "depth/preview").of(image)
        for message in (cloud, preview):
            assert (message.width, message.height) == (SIZE.width, SIZE.height)
        info = wait_for(
            lambda: peer.infos.get(stamp_ns(image.header)),
            "camera_info",
            nudge=lambda: peer.show(image, camera_info()),
        )
        seen = read_cloud(cloud).xyz[0, 0] @ info.k.reshape(3, 3).T
        if np.isfinite(seen).all():
            np.testing.assert_allclose(seen[:2] / seen[2], 0, atol=1e-3)

    def test_unsure_pixels_are_no_points_and_grey_in_the_preview(self, peer: Peer) -> None:
        assert peer.set_parameter(NODE, "min_confidence", 1.0).successful
        image = image_message(3)
        cloud = Listener(peer, PointCloud2, "points").of(image)
        preview = image_to_rgb(Listener(peer, Image, "depth/preview").of(image))
        depth = image_to_depth(peer.depth_of(image, camera_info()))
        unsure = np.isnan(depth)
        assert unsure.any()
        assert not cloud.is_dense
        assert np.isnan(read_cloud(cloud).xyz[unsure]).all()
        assert (preview[unsure] == UNKNOWN).all()

    def test_points_stay_metres_while_depth_is_millimetres(self, peer: Peer) -> None:
        assert peer.set_parameter(NODE, "encoding", "16UC1").successful
        image = image_message(3)
        points = read_cloud(Listener(peer, PointCloud2, "points").of(image))
        message = peer.depth_of(image, camera_info())
        assert message.encoding == "16UC1"
        depth = image_to_depth(message)
        np.testing.assert_allclose(points.xyz[..., 2], depth, atol=5.1e-4)  # NaN where depth is 0

    def test_the_preview_follows_its_parameters_and_diagnostics_state_its_range(
        self, peer: Peer
    ) -> None:
        preview = Listener(peer, Image, "depth/preview")
        shown = preview.of(image_message(1))
        assert (shown.encoding, shown.width, shown.height) == ("rgb8", WIDTH, HEIGHT)
        assert shown.header == image_message(1).header
        own = f"{BINS.min_depth_m:g} m (near) to {BINS.max_depth_m:g} m (far)"
        peer.await_value(NODE, "preview shows", f"{own} in turbo, unknown grey")
        for name, value in (("max_m", 3.0), ("min_m", 1.0), ("colormap", "viridis")):
            assert peer.set_parameter(NODE, f"preview_{name}", value).successful
        other = preview.of(image_message(2))
        peer.await_value(NODE, "preview shows", "1 m (near) to 3 m (far) in viridis, unknown grey")
        depth = image_to_depth(peer.depth_of(image_message(2), camera_info()))
        expected = PreviewCanvas().paint(depth, header(), (1.0, 3.0), "viridis")
        assert other.data == expected.data


@pytest.mark.usefixtures("depth_node")
def test_points_and_preview_are_made_only_while_somebody_listens(peer: Peer) -> None:
    peer.depth_of(image_message(0), camera_info())
    previews, clouds = "previews published", "point clouds published"
    listeners = {
        previews: Listener(peer, Image, "depth/preview"),
        clouds: Listener(peer, PointCloud2, "points"),
    }
    for number, (key, listener) in enumerate(listeners.items(), 1):
        listener.of(image_message(number))
        wait_for(lambda key=key: count(peer, key) > 0, f"{key} to count")
    for listener in listeners.values():
        listener.stop()
    for topic in ("depth/preview", "points"):
        wait_for(lambda topic=topic: peer.node.count_subscribers(topic) == 0, "nobody to listen")
    # A frame or two may still have found a subscriber that was leaving.
    peer.depth_of(image_message(7), camera_info())
    wait_for_report(peer)
    before = (count(peer, previews), count(peer, clouds))
    for number in range(10, 15):
        peer.depth_of(image_message(number), camera_info())
    wait_for_report(peer)
    assert (count(peer, previews), count(peer, clouds)) == before


def wait_for_report(peer: Peer) -> None:
    """Wait for diagnostics that know of all depth so far."""
    published = len(peer.depth)
    wait_for(lambda: count(peer, "depth published") >= published, "a report of all depth")


@pytest.mark.usefixtures("depth_node")
def test_a_listener_of_points_alone_wakes_the_network(peer: Peer) -> None:
    for subscription in list(peer.node.subscriptions):
        if subscription.topic_name.endswith(("/depth", "/camera_info")):
            peer.node.destroy_subscription(subscription)
    cloud = Listener(peer, PointCloud2, "points").of(image_message(1))
    assert cloud.width == WIDTH


@pytest.mark.usefixtures("depth_node")
@pytest.mark.parametrize(
    ("info", "reason"),
    [
        (None, "there are no points without camera_info; remap image_info"),
        (camera_info([0.0] * 9), "there are no points, for camera_info is uncalibrated"),
    ],
)
def test_without_calibration_there_are_no_points_and_diagnostics_say_why(
    peer: Peer, info: Any, reason: str
) -> None:
    points = Listener(peer, PointCloud2, "points")
    image = image_message(1)
    wait_for(
        lambda: reason in peer.diagnosis(NODE).message,
        "the reason",
        nudge=lambda: peer.show(image, info),
        explain=lambda: peer.diagnosis(NODE),
    )
    assert peer.diagnosis(NODE).level != DiagnosticStatus.OK
    assert not points.heard
    assert stamp_ns(image.header) in peer.depth
    points.of(image_message(2))
    wait_for(
        lambda: "there are no points" not in peer.diagnosis(NODE).message,
        "the end of it",
        nudge=lambda: peer.show(image_message(3), camera_info()),
    )


class TestServing:
    @pytest.mark.parametrize(
        ("profile", "offered", "reason"),
        [
            (
                QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL),
                "reliable",
                "asks for TRANSIENT_LOCAL, offered is VOLATILE",
            ),
            (
                QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE),
                "best_effort",
                "set output_reliability: reliable",
            ),
        ],
    )
    def test_a_subscriber_that_asks_for_more_than_is_offered_is_named_with_the_remedy(
        self,
        peer: Peer,
        promoted: StateFolder,
        monkeypatch: pytest.MonkeyPatch,
        profile: QoSProfile,
        offered: str,
        reason: str,
    ) -> None:
        monkeypatch.setattr(qos, "_GRAPH_LAG_S", 0.5)
        parameters = {"state_dir": str(promoted.root), "output_reliability": offered}
        with running(DepthNode, peer, **parameters):
            subscription = peer.node.create_subscription(
                PointCloud2, "points", lambda message: None, profile
            )
            said = f"{peer.namespace}/peer gets nothing of {peer.namespace}/points: "
            found = peer.await_diagnosis(NODE, said, DiagnosticStatus.WARN)
            assert reason in found.message.partition(said)[2]
            peer.node.destroy_subscription(subscription)
            wait_for(
                lambda: f"{peer.namespace}/points" not in peer.diagnosis(NODE).message,
                "the finding to go with its cause",
            )

    @pytest.mark.parametrize(
        ("chosen", "reliability", "kept"),
        [
            ({}, ReliabilityPolicy.RELIABLE, 2),
            (
                {"output_reliability": "best_effort", "output_depth": 7},
                ReliabilityPolicy.BEST_EFFORT,
                7,
            ),
        ],
    )
    def test_what_is_published_is_reliable_and_shallow_unless_chosen_otherwise(
        self,
        peer: Peer,
        promoted: StateFolder,
        chosen: dict[str, object],
        reliability: ReliabilityPolicy,
        kept: int,
    ) -> None:
        with running(DepthNode, peer, state_dir=str(promoted.root), **chosen) as node:
            depths = {each.topic_name: each.qos_profile.depth for each in node.publishers}
            for topic in ("depth", "camera_info", "confidence", "depth/preview", "points"):
                (info,) = peer.node.get_publishers_info_by_topic(f"{peer.namespace}/{topic}")
                assert info.qos_profile.reliability == reliability
                assert depths[f"{peer.namespace}/{topic}"] == kept  # which the graph does not tell
            profile = QoSProfile(depth=5, reliability=reliability)
            listener = Listener(peer, Image, "depth", profile)
            assert listener.of(image_message(1)).width == WIDTH
