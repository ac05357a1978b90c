"""Parameters: a bad value is refused with its reason, at the start and while running."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers.students import small_student
from ros_helpers.messages import image_message
from ros_helpers.peer import Peer, running
from ros_helpers.waiting import wait_for
from tiekd_ros.errors import InvalidSettingError
from tiekd_ros.nodes.companion_node import CompanionNode
from tiekd_ros.nodes.conversions import stamp_ns
from tiekd_ros.nodes.depth_node import DepthNode
from tiekd_ros.state import StateFolder
from tiekd_ros.student import StudentRegistry

NODE = "depth_node"


@pytest.fixture
def depth_node(peer: Peer, state: StateFolder) -> Iterator[DepthNode]:
    registry = StudentRegistry(state.students)
    registry.promote(registry.add(small_student()).version)
    with running(DepthNode, peer, state_dir=str(state.root)) as node:
        yield node


@pytest.mark.usefixtures("depth_node")
class TestDepthNode:
    def test_the_encoding_may_change_while_running(self, peer: Peer) -> None:
        assert peer.depth_of(image_message(1)).encoding == "32FC1"
        assert peer.set_parameter(NODE, "encoding", "16UC1").successful
        assert peer.depth_of(image_message(2)).encoding == "16UC1"

    @pytest.mark.parametrize(
        ("name", "value", "reason"),
        [
            ("encoding", "64FC1", "'32FC1', '16UC1'"),
            ("min_confidence", 1.5, "min_confidence"),
            ("min_range_m", float("nan"), "min_range_m"),
            ("min_range_m", "near", "parameter type"),
        ],
    )
    def test_a_bad_value_is_refused_with_its_reason(
        self, peer: Peer, depth_node: DepthNode, name: str, value: object, reason: str
    ) -> None:
        before = depth_node.settings
        result = peer.set_parameter(NODE, name, value)
        assert not result.successful
        assert reason in result.reason
        assert depth_node.settings == before
        assert peer.depth_of(image_message()).encoding == "32FC1"

    def test_a_range_without_depth_is_refused(self, peer: Peer) -> None:
        assert peer.set_parameter(NODE, "min_range_m", 3.0).successful
        result = peer.set_parameter(NODE, "max_range_m", 2.0)
        assert not result.successful
        assert "max_range_m must be greater than min_range_m = 3 m" in result.reason

    @pytest.mark.parametrize("name", ["state_dir", "device"])
    def test_what_cannot_change_while_running_is_refused(self, peer: Peer, name: str) -> None:
        result = peer.set_parameter(NODE, name, "elsewhere")
        assert not result.successful
        assert "read-only" in result.reason

    def test_depth_of_low_confidence_may_be_left_out(self, peer: Peer) -> None:
        peer.listen_to_confidence()
        image = image_message(1)
        stamp = stamp_ns(image.header)
        wait_for(lambda: peer.confidence.get(stamp), "confidence", nudge=lambda: peer.show(image))
        assert peer.set_parameter(NODE, "min_confidence", 1.0).successful
        depth = peer.depth_of(image_message(2))
        assert bytes(depth.data).count(b"\x00\x00\xc0\x7f") > 0  # float32 NaN


@pytest.mark.parametrize(
    ("name", "value"),
    [("encoding", "64FC1"), ("threads", -1), ("min_range_m", "near"), ("min_confidence", 2.0)],
)
def test_a_bad_value_at_the_start_is_refused_by_name(peer: Peer, name: str, value: object) -> None:
    with pytest.raises(InvalidSettingError, match=name), running(DepthNode, peer, **{name: value}):
        pass


def test_a_group_with_contradicting_values_is_refused_at_the_start(peer: Peer) -> None:
    parameters = {"labels__retry_s": 10.0, "labels__max_retry_s": 1.0}
    with (
        pytest.raises(InvalidSettingError, match="max_retry_s 1 must be at least retry_s 10"),
        running(CompanionNode, peer, **parameters),
    ):
        pass


class TestCompanionNode:
    @pytest.fixture(autouse=True)
    def companion(self, peer: Peer, state: StateFolder) -> Iterator[CompanionNode]:
        with running(CompanionNode, peer, state_dir=str(state.root), teacher__url="") as node:
            yield node

    def test_the_next_rounds_settings_may_change_while_running(self, peer: Peer) -> None:
        assert peer.set_parameter("companion_node", "distill.min_frames", 7).successful
        _, message = peer.trigger("distill")
        assert "need 7" in message

    @pytest.mark.parametrize(
        ("name", "value"),
        [("frames.min_interval_s", 2.0), ("labels.in_flight", 3), ("teacher.url", "other:8001")],
    )
    def test_what_is_read_at_the_start_only_is_refused_while_running(
        self, peer: Peer, name: str, value: object
    ) -> None:
        result = peer.set_parameter("companion_node", name, value)
        assert not result.successful
        assert "read-only" in result.reason
