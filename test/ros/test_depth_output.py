"""Points and preview: what they show, for whom they are made, and who cannot be served."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import Image, PointCloud2

from helpers.students import BINS, SIZE
from ros_helpers.messages import HEIGHT, WIDTH, camera_info, header, image_message
from ros_helpers.peer import Peer, running
from ros_helpers.waiting import wait_for
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.settings import setting_info
from tiekd_ros.core.state import StateFolder
from tiekd_ros.nodes.common import qos
from tiekd_ros.nodes.common.conversions import image_to_depth, image_to_rgb, stamp_ns
from tiekd_ros.nodes.common.qos import PublisherEventCallbacks, UnsupportedEventTypeError
from tiekd_ros.nodes.common.settings import DepthSettings
from tiekd_ros.nodes.depth import output as depth_output
from tiekd_ros.nodes.depth.node import DepthNode
from tiekd_ros.nodes.depth.output import OutputTopic
from tiekd_ros.nodes.depth.points import read_cloud
from tiekd_ros.nodes.depth.preview import (
    UNKNOWN,
    PreviewCanvas,
    describe_range,
    preview_range,
    read_range,
    with_scale,
)

NODE = "depth_node"
INFO = camera_info()


def await_count(peer: Peer, key: str) -> int:
    """Return a count of diagnostics that know of all depth so far."""
    peer.await_above(NODE, "depth published", len(peer.depth) - 1)
    return int(peer.diagnosis(NODE).values[key])


@pytest.mark.usefixtures("depth_node")
def test_points_are_the_depth_image_in_space_with_its_header(peer: Peer) -> None:
    image = image_message(3)
    cloud = peer.message_of(image, peer.listen(PointCloud2, "points"), INFO)
    depth = image_to_depth(peer.depth_of(image, INFO))
    assert cloud.header == image.header
    assert (cloud.width, cloud.height) == (WIDTH, HEIGHT)
    points = read_cloud(cloud)
    finite = np.isfinite(depth)
    np.testing.assert_array_equal(points.xyz[..., 2], np.where(finite, depth, np.nan))
    np.testing.assert_array_equal(points.rgb, image_to_rgb(image))
    assert cloud.is_dense == finite.all()


@pytest.mark.usefixtures("depth_node")
def test_points_and_preview_have_the_networks_size_if_depth_has(peer: Peer) -> None:
    assert peer.set_parameter(NODE, "resolution", "network").successful
    image = image_message(3)
    cloud = peer.message_of(image, peer.listen(PointCloud2, "points"), INFO)
    preview = peer.message_of(image, peer.listen(Image, "depth/preview"), INFO)
    for message in (cloud, preview):
        assert (message.width, message.height) == (SIZE.width, SIZE.height)
    info = peer.info_of(image, INFO)
    seen = read_cloud(cloud).xyz[0, 0] @ info.k.reshape(3, 3).T
    if np.isfinite(seen).all():
        np.testing.assert_allclose(seen[:2] / seen[2], 0, atol=1e-3)


@pytest.mark.usefixtures("depth_node")
def test_unsure_pixels_are_no_points_and_grey_in_the_preview(peer: Peer) -> None:
    assert peer.set_parameter(NODE, "min_confidence", 1.0).successful
    image = image_message(3)
    cloud = peer.message_of(image, peer.listen(PointCloud2, "points"), INFO)
    preview = image_to_rgb(peer.message_of(image, peer.listen(Image, "depth/preview"), INFO))
    depth = image_to_depth(peer.depth_of(image, INFO))
    unsure = np.isnan(depth)
    assert unsure.any()
    assert not cloud.is_dense
    assert np.isnan(read_cloud(cloud).xyz[unsure]).all()
    assert (preview[unsure] == UNKNOWN).all()


@pytest.mark.usefixtures("depth_node")
def test_points_stay_metres_while_depth_is_millimetres(peer: Peer) -> None:
    assert peer.set_parameter(NODE, "encoding", "16UC1").successful
    image = image_message(3)
    points = read_cloud(peer.message_of(image, peer.listen(PointCloud2, "points"), INFO))
    message = peer.depth_of(image, INFO)
    assert message.encoding == "16UC1"
    depth = image_to_depth(message)
    np.testing.assert_allclose(points.xyz[..., 2], depth, atol=5.1e-4)  # NaN where depth is 0


@pytest.mark.usefixtures("depth_node")
def test_the_preview_follows_its_parameters_and_diagnostics_state_its_range(peer: Peer) -> None:
    previews = peer.listen(Image, "depth/preview")
    shown = peer.message_of(image_message(1), previews, INFO)
    assert (shown.encoding, shown.width, shown.height) == ("rgb8", WIDTH, HEIGHT)
    assert shown.header == image_message(1).header
    own = f"{BINS.min_depth_m:g} m (near) to {BINS.max_depth_m:g} m (far)"
    peer.await_value(NODE, "preview shows", f"{own} in turbo, unknown grey")
    for name, value in (("max_m", 3.0), ("min_m", 1.0), ("colormap", "viridis")):
        assert peer.set_parameter(NODE, f"preview_{name}", value).successful
    other = peer.message_of(image_message(2), previews, INFO)
    peer.await_value(NODE, "preview shows", "1 m (near) to 3 m (far) in viridis, unknown grey")
    depth = image_to_depth(peer.depth_of(image_message(2), INFO))
    expected = PreviewCanvas().paint(depth, header(), (1.0, 3.0), "viridis")
    assert other.data == expected.data


@pytest.mark.usefixtures("depth_node")
def test_points_and_preview_are_made_only_while_they_have_subscribers(peer: Peer) -> None:
    peer.depth_of(image_message(0), INFO)
    made = {"previews published": "depth/preview", "point clouds published": "points"}
    for number, (key, topic) in enumerate(made.items(), 1):
        kind = PointCloud2 if topic == "points" else Image
        peer.message_of(image_message(number), peer.listen(kind, topic), INFO)
        peer.await_above(NODE, key)
    peer.stop_listening(*made.values())
    for topic in made.values():
        wait_for(lambda topic=topic: peer.node.count_subscribers(topic) == 0, "no subscriber")
    # A frame or two may still have found a subscriber that was leaving.
    peer.depth_of(image_message(7), INFO)
    before = [await_count(peer, key) for key in made]
    for number in range(10, 15):
        peer.depth_of(image_message(number), INFO)
    assert [await_count(peer, key) for key in made] == before


@pytest.mark.usefixtures("depth_node")
def test_a_subscriber_of_points_alone_wakes_the_network(peer: Peer) -> None:
    peer.stop_listening("depth", "camera_info")
    clouds = peer.listen(PointCloud2, "points")
    assert peer.message_of(image_message(1), clouds, INFO).width == WIDTH


@pytest.mark.usefixtures("depth_node")
def test_without_calibration_there_are_no_points_and_diagnostics_say_why(peer: Peer) -> None:
    for number, (info, reason) in enumerate(
        (
            (None, "there are no points without camera_info; remap image_info"),
            (camera_info([0.0] * 9), "there are no points, for camera_info is uncalibrated"),
        )
    ):
        points, image = peer.listen(PointCloud2, "points"), image_message(number)
        said = peer.await_diagnosis(NODE, reason, None, image, info)
        assert said.level != DiagnosticStatus.OK
        assert not points
        assert stamp_ns(image.header) in peer.depth
    peer.message_of(image_message(2), points, INFO)
    wait_for(
        lambda: "there are no points" not in peer.diagnosis(NODE).message,
        "the end of it",
        nudge=lambda: peer.show(image_message(3), INFO),
    )


@pytest.mark.usefixtures("promoted")
def test_a_subscriber_that_asks_for_more_than_is_offered_is_named_with_the_remedy(
    peer: Peer, state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qos, "_GRAPH_LAG_S", 0.5)
    for profile, offered, reason in (
        (qos.LATCHED, "reliable", "asks for TRANSIENT_LOCAL, offered is VOLATILE"),
        (qos.RELIABLE, "best_effort", "set output_reliability: reliable"),
    ):
        with running(DepthNode, peer, state_dir=str(state.root), output_reliability=offered):
            peer.listen(PointCloud2, "points", profile)
            said = f"{peer.namespace}/peer gets nothing of {peer.namespace}/points: "
            found = peer.await_diagnosis(NODE, said, DiagnosticStatus.WARN)
            assert reason in found.message.partition(said)[2]
            peer.stop_listening("points")
            wait_for(
                lambda: f"{peer.namespace}/points" not in peer.diagnosis(NODE).message,
                "the finding to go with its cause",
            )


@pytest.mark.usefixtures("promoted")
def test_what_is_published_is_reliable_and_shallow_unless_chosen_otherwise(
    peer: Peer, state: StateFolder
) -> None:
    own = {"output_reliability": "best_effort", "output_depth": 7}
    cases = (({}, "RELIABLE", 2), (own, "BEST_EFFORT", 7))
    for number, (chosen, reliability, kept) in enumerate(cases):
        with running(DepthNode, peer, state_dir=str(state.root), **chosen) as node:
            depths = {each.topic_name: each.qos_profile.depth for each in node.publishers}
            for topic in ("depth", "camera_info", "confidence", "depth/preview", "points"):
                (info,) = node.get_publishers_info_by_topic(f"{peer.namespace}/{topic}")
                assert info.qos_profile.reliability.name == reliability
                assert depths[f"{peer.namespace}/{topic}"] == kept  # which the graph does not tell
            received = peer.listen(Image, "depth", qos.profile(reliability))
            assert peer.message_of(image_message(number), received, INFO).width == WIDTH


def test_a_middleware_without_these_events_is_published_on_all_the_same(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(PublisherEventCallbacks):  # type: ignore[misc, valid-type]
        def create_event_handlers(self, *arguments: Any) -> list[Any]:
            raise UnsupportedEventTypeError("no such event")

    monkeypatch.setattr(depth_output, "PublisherEventCallbacks", Refusing)
    node = LifecycleNode(
        "talker", namespace=peer.namespace, context=peer.context, use_global_arguments=False
    )
    received: list[DiagnosticStatus] = []
    peer.node.create_subscription(DiagnosticStatus, "words", received.append, 10)
    try:
        topic = OutputTopic(node, DiagnosticStatus, "words", qos.RELIABLE)
        node.trigger_configure()
        node.trigger_activate()
        wait_for(
            lambda: received,
            "a message",
            nudge=lambda: topic.publish(DiagnosticStatus(name="here")),
        )
        assert topic.findings() == []
        topic.close()
    finally:
        node.destroy_node()
    assert {each.name for each in received} == {"here"}


# The preview's colours and range.


(COLORMAPS,) = (
    setting_info(field).choices
    for field in dataclasses.fields(DepthSettings)
    if field.name == "preview_colormap"
)


def colours(depth: list[float], ends: tuple[float, float] = (1.0, 5.0)) -> np.ndarray:
    values = np.array([depth], np.float32)
    before = values.copy()
    with np.errstate(invalid="raise"):  # what NaN is as an integer, each processor decides
        rgb = image_to_rgb(PreviewCanvas().paint(values, header(), ends, "turbo"))
    np.testing.assert_array_equal(values, before)
    return rgb[0]


def test_near_is_red_far_is_blue_unknown_is_grey_and_beyond_the_ends_are_their_colours() -> None:
    near, far, unknown = colours([1.2, 4.8, np.nan]).astype(int)
    assert near[0] > 2 * max(near[1:])
    assert far[2] > 2 * max(far[:2]) or far[2] > far[0] + 60
    assert tuple(unknown) == UNKNOWN
    shown = colours([1.0, 0.2, -np.inf, 5.0, 70.0, np.inf])
    assert (shown[:3] == shown[0]).all()
    assert (shown[3:] == shown[3]).all()
    assert (shown[0] != shown[3]).any()


def test_no_depth_looks_unknown_in_any_colour_map() -> None:
    depth = np.linspace(1, 5, 1000, dtype=np.float32)[None]
    for colormap in COLORMAPS:
        shown = image_to_rgb(PreviewCanvas().paint(depth, header(), (1.0, 5.0), colormap))
        assert np.abs(shown.astype(int) - UNKNOWN).sum(axis=-1).min() > 12
        assert len(np.unique(shown[0], axis=0)) > 200


def test_the_previews_range_is_that_of_the_depth_unless_it_is_chosen() -> None:
    assert preview_range(DepthSettings(), BINS) == (BINS.min_depth_m, BINS.max_depth_m)
    cut = DepthSettings(min_range_m=0.5, max_range_m=4.0)
    assert preview_range(cut, BINS) == (0.5, 4.0)
    assert preview_range(DepthSettings(preview_min_m=1.0, preview_max_m=3.0), BINS) == (1.0, 3.0)
    near, far = preview_range(DepthSettings(preview_min_m=50.0), BINS)  # beyond the student's range
    assert near < far
    with pytest.raises(InvalidSettingError, match=r"preview_max_m must be greater .* 3 m .* 2 m"):
        DepthSettings(preview_min_m=3.0, preview_max_m=2.0)


@pytest.mark.parametrize("width", [32, 640])
def test_the_scale_shows_the_colours_of_the_depths_below_the_picture(width: int) -> None:
    picture = np.full((20, width, 3), 77, np.uint8)
    sheet = with_scale(picture, 1.0, 5.0, "turbo")
    np.testing.assert_array_equal(sheet[:20, :width], picture)
    bar = sheet[24]
    expected = colours([1.0, 3.0, 5.0]).astype(int)
    shown = bar[[0, len(bar) // 2, -1]].astype(int)
    np.testing.assert_allclose(shown, expected, atol=4)
    ink = (sheet[36:] < 100).all(axis=-1).any(axis=0)
    third = len(ink) // 3
    assert all(part.any() for part in (ink[:third], ink[third : 2 * third], ink[2 * third :]))


def test_what_the_preview_shows_can_be_read_again() -> None:
    assert read_range(describe_range(0.25, 12.5, "viridis")) == (0.25, 12.5, "viridis")
    assert read_range("nothing yet") is None
