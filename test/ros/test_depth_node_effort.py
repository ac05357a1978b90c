"""What depth_node computes, for whom, and what it says of the time that it takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import CameraInfo, Image

from helpers.students import promote_small
from ros_helpers.messages import camera_info, image_message
from ros_helpers.peer import Peer, running
from ros_helpers.waiting import wait_for
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.state import StateFolder
from tiekd_ros.nodes.common.conversions import stamp_ns
from tiekd_ros.nodes.depth.node import DepthNode
from tiekd_ros.student.runtimes.base import Prediction, Runtime

NODE = "depth_node"
STAGES = ("wait", "decode", "preprocess", "network", "postprocess", "publish")


class Recorded:
    """A runtime that does what the student's does, and remembers what it was asked for."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.card, self.description = runtime.card, runtime.description
        self.with_confidence: list[bool] = []

    def predict(self, image: Any, size: Any = None, *, confidence: bool = True) -> Prediction:
        self.with_confidence.append(confidence)
        return self._runtime.predict(image, size, confidence=confidence)


@pytest.fixture
def depth_node(peer: Peer, state: StateFolder) -> Iterator[DepthNode]:
    promote_small(state)
    with running(DepthNode, peer, state_dir=str(state.root)) as node:
        yield node


@pytest.fixture
def recorded(depth_node: DepthNode) -> Recorded:
    """Return the node's runtime, which records from here on."""
    student = depth_node._resources.student
    student.runtime = Recorded(student.runtime)
    return student.runtime


def stop_listening(peer: Peer) -> None:
    """Unsubscribe the peer from all images and calibrations."""
    for subscription in list(peer.node.subscriptions):
        if subscription.topic_name.rpartition("/")[2] in ("depth", "camera_info", "confidence"):
            peer.node.destroy_subscription(subscription)


def test_confidence_is_computed_only_while_it_is_wanted(peer: Peer, recorded: Recorded) -> None:
    peer.depth_of(image_message(1))
    assert set(recorded.with_confidence) == {False}
    assert peer.set_parameter(NODE, "min_confidence", 0.1).successful
    recorded.with_confidence.clear()
    peer.depth_of(image_message(2))
    assert set(recorded.with_confidence) == {True}
    assert peer.set_parameter(NODE, "min_confidence", 0.0).successful
    recorded.with_confidence.clear()
    peer.listen_to_confidence()
    image = image_message(3)
    wait_for(
        lambda: peer.confidence.get(stamp_ns(image.header)),
        "confidence",
        nudge=lambda: peer.show(image),
    )
    assert recorded.with_confidence[-1]


@pytest.mark.parametrize(("resolution", "size"), [("image", (96, 72)), ("network", (96, 64))])
def test_a_listener_of_camera_info_alone_gets_it_without_the_network(
    peer: Peer,
    depth_node: DepthNode,
    recorded: Recorded,
    resolution: str,
    size: tuple[int, int],
) -> None:
    peer.depth_of(image_message(0), camera_info())
    assert peer.set_parameter(NODE, "resolution", resolution).successful
    stop_listening(peer)
    infos: dict[int, CameraInfo] = {}
    peer.node.create_subscription(
        CameraInfo, "camera_info", lambda info: infos.update({stamp_ns(info.header): info}), 10
    )
    wait_for(lambda: not depth_node._resources.output.wanted, "no subscriber of depth")
    recorded.with_confidence.clear()
    image = image_message(7)
    info = wait_for(
        lambda: infos.get(stamp_ns(image.header)),
        "camera_info",
        nudge=lambda: peer.show(image, camera_info()),
    )
    assert (info.width, info.height) == size
    assert not recorded.with_confidence


def test_the_network_is_paused_without_subscribers_and_resumes_with_the_first(
    peer: Peer, recorded: Recorded
) -> None:
    peer.depth_of(image_message(0), camera_info())
    stop_listening(peer)
    wait_for(
        lambda: int(peer.diagnosis(NODE).values.get("images without subscribers", "0")) > 2,
        "images without subscribers",
        nudge=lambda: peer.show(image_message(1), camera_info()),
    )
    report = peer.await_diagnosis(NODE, "the network is paused", DiagnosticStatus.OK)
    published = report.values["depth published"]
    recorded.with_confidence.clear()
    unheard = int(report.values["images without subscribers"])
    wait_for(
        lambda: int(peer.diagnosis(NODE).values["images without subscribers"]) > unheard,
        "one more",
        nudge=lambda: peer.show(image_message(2), camera_info()),
    )
    assert not recorded.with_confidence
    assert peer.diagnosis(NODE).values["depth published"] == published
    heard: dict[int, Image] = {}
    peer.node.create_subscription(
        Image, "depth", lambda message: heard.update({stamp_ns(message.header): message}), 10
    )
    image = image_message(3)
    wait_for(
        lambda: stamp_ns(image.header) in heard,
        "depth",
        nudge=lambda: peer.show(image, camera_info()),
    )
    peer.await_diagnosis(NODE, "publishing depth", DiagnosticStatus.OK)


@pytest.mark.usefixtures("depth_node")
def test_a_bad_image_is_reported_although_nobody_listens(peer: Peer) -> None:
    stop_listening(peer)
    bad = image_message(1)
    bad.encoding = "nv24"
    wait_for(
        lambda: int(peer.diagnosis(NODE).values.get("images refused", "0")) > 0,
        "a refused image",
        nudge=lambda: peer.show(bad),
    )


@pytest.mark.usefixtures("depth_node")
def test_diagnostics_name_runtime_tail_latency_and_each_stage(peer: Peer) -> None:
    image = image_message(1)
    peer.depth_of(image)
    wait_for(
        lambda: int(peer.diagnosis(NODE).values.get("depth published", "0")) > 0,
        "a report with depth",
        nudge=lambda: peer.show(image),
    )
    values = peer.diagnosis(NODE).values
    assert values["runtime"].startswith("torch, cpu")
    assert "runtime measured [ms]" in values
    latency = float(values["latency p95 [ms]"])
    assert latency > 0
    stages = [float(values[f"time {stage} [ms]"]) for stage in STAGES]
    assert all(took >= 0 for took in stages)
    assert float(values["time network [ms]"]) > 0


def test_an_unknown_runtime_is_refused_by_name_with_those_there_are(
    peer: Peer, state: StateFolder
) -> None:
    with (
        pytest.raises(InvalidSettingError, match=r"runtime must be .*'onnxruntime', got 'tflite'"),
        running(DepthNode, peer, state_dir=str(state.root), runtime="tflite"),
    ):
        pass
