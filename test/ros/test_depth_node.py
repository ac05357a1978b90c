"""What depth_node publishes, and its lifecycle, in a thread of this process."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition

from helpers.students import BINS, SIZE, promote_small
from ros_helpers.messages import FRAME_ID, HEIGHT, WIDTH, camera_info, image_message
from ros_helpers.peer import ACTIVE, INACTIVE, UNCONFIGURED, Peer, running
from ros_helpers.waiting import wait_for
from tiekd_ros.core.state import StateFolder
from tiekd_ros.nodes.common.conversions import image_to_float, stamp_ns
from tiekd_ros.nodes.depth.node import DepthNode

NODE = "depth_node"


@pytest.fixture
def promoted(state: StateFolder) -> str:
    """Return the version of a small student that is live in the state folder."""
    return promote_small(state)


@pytest.fixture
def depth_node(peer: Peer, state: StateFolder, promoted: str) -> Iterator[DepthNode]:
    with running(DepthNode, peer, state_dir=str(state.root)) as node:
        yield node


@pytest.mark.usefixtures("depth_node")
class TestRunning:
    def test_depth_is_metres_at_the_images_size_with_its_stamp_and_frame(self, peer: Peer) -> None:
        image = image_message(5)
        depth = peer.depth_of(image, camera_info())
        assert depth.header == image.header
        assert depth.header.frame_id == FRAME_ID
        assert (depth.encoding, depth.width, depth.height) == ("32FC1", WIDTH, HEIGHT)
        metres = image_to_float(depth)
        known = metres[np.isfinite(metres)]
        assert known.size > 0
        assert known.min() >= BINS.min_depth_m
        assert known.max() <= BINS.max_depth_m

    def test_camera_info_has_the_depths_stamp_and_the_cameras_matrix(self, peer: Peer) -> None:
        depth = peer.depth_of(image_message(5), camera_info())
        stamp = stamp_ns(depth.header)
        info = wait_for(
            lambda: peer.infos.get(stamp),
            "camera_info",
            nudge=lambda: peer.show(image_message(5), camera_info()),
        )
        assert info.header == depth.header
        assert (info.width, info.height) == (WIDTH, HEIGHT)
        assert list(info.k) == list(camera_info().k)

    def test_confidence_is_published_for_whoever_listens(self, peer: Peer) -> None:
        image = image_message(1)
        peer.depth_of(image)
        assert peer.node.count_publishers("confidence") == 1
        peer.listen_to_confidence()
        confidence = wait_for(
            lambda: peer.confidence.get(stamp_ns(image.header)),
            "confidence",
            nudge=lambda: peer.show(image),
        )
        assert (confidence.encoding, confidence.width, confidence.height) == (
            "32FC1", WIDTH, HEIGHT,
        )  # fmt: skip
        values = image_to_float(confidence)
        assert np.isfinite(values).all()
        assert values.min() >= 0
        assert values.max() <= 1

    def test_diagnostics_name_student_rates_latency_and_what_was_lost(
        self, peer: Peer, promoted: str
    ) -> None:
        peer.depth_of(image_message(), camera_info())
        peer.await_value(NODE, "student", promoted)
        report = peer.await_diagnosis(NODE, "publishing depth", DiagnosticStatus.OK)
        assert int(report.values["depth published"]) >= 1
        assert float(report.values["latency p50 [ms]"]) > 0
        for key in ("image rate [Hz]", "depth rate [Hz]", "dropped (newest wins)", "swaps"):
            assert key in report.values

    def test_deactivated_it_is_silent_and_activated_it_goes_on(
        self, peer: Peer, depth_node: DepthNode
    ) -> None:
        peer.depth_of(image_message(1), camera_info())
        assert peer.state_of(NODE) == ACTIVE
        assert peer.change_state(NODE, Transition.TRANSITION_DEACTIVATE)
        assert peer.state_of(NODE) == INACTIVE
        peer.await_diagnosis(NODE, "not active", DiagnosticStatus.WARN)
        peer.show(image_message(2), camera_info())
        assert peer.change_state(NODE, Transition.TRANSITION_ACTIVATE)
        peer.depth_of(image_message(3), camera_info())
        assert stamp_ns(image_message(2).header) not in peer.depth

    def test_cleaned_up_and_configured_again_it_gives_depth(self, peer: Peer) -> None:
        peer.take_down_and_up(NODE)
        peer.depth_of(image_message(), camera_info())

    def test_shut_down_from_active_it_ends_its_work(self, peer: Peer) -> None:
        assert peer.change_state(NODE, Transition.TRANSITION_ACTIVE_SHUTDOWN)
        assert peer.state_of(NODE) == "finalized"


def test_unconfigured_it_waits_for_a_lifecycle_manager(
    peer: Peer, state: StateFolder, promoted: str
) -> None:
    with running(DepthNode, peer, until=UNCONFIGURED, state_dir=str(state.root)):
        assert peer.state_of(NODE) == UNCONFIGURED
        assert peer.change_state(NODE, Transition.TRANSITION_CONFIGURE)
        assert peer.change_state(NODE, Transition.TRANSITION_ACTIVATE)
        peer.depth_of(image_message())


def test_a_state_folder_that_cannot_be_made_fails_configure(peer: Peer, state: StateFolder) -> None:
    blocked = state.root / "a_file"
    blocked.write_text("in the way")
    with running(DepthNode, peer, until=UNCONFIGURED, state_dir=str(blocked / "state")):
        assert not peer.change_state(NODE, Transition.TRANSITION_CONFIGURE)
        assert peer.state_of(NODE) == UNCONFIGURED


def test_millimetres_and_the_networks_resolution_by_parameter(
    peer: Peer, state: StateFolder, promoted: str
) -> None:
    parameters = {"state_dir": str(state.root), "encoding": "16UC1", "resolution": "network"}
    with running(DepthNode, peer, **parameters):
        depth = peer.depth_of(image_message(4), camera_info())
        assert (depth.encoding, depth.width, depth.height) == ("16UC1", SIZE.width, SIZE.height)
        values = np.frombuffer(depth.data, "<u2")
        assert values.size == SIZE.width * SIZE.height
        assert values.max() > BINS.min_depth_m * 1000
        info = wait_for(
            lambda: peer.infos.get(stamp_ns(depth.header)),
            "camera_info",
            nudge=lambda: peer.show(image_message(4), camera_info()),
        )
        assert (info.width, info.height) == (SIZE.width, SIZE.height)
        factor = SIZE.height / HEIGHT
        assert info.k[0] == pytest.approx(60.0 * SIZE.width / WIDTH)
        assert info.k[4] == pytest.approx(61.0 * factor)
        assert info.k[5] == pytest.approx((35.5 + 0.5) * factor - 0.5)
