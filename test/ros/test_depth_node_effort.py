"""What depth_node computes, for whom, and what it says of the time that it takes."""

from __future__ import annotations

from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import Image

from ros_helpers.messages import camera_info, image_message
from ros_helpers.peer import Peer, refusal
from ros_helpers.waiting import wait_for
from tiekd_ros.core.state import StateFolder
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
def recorded(depth_node: DepthNode) -> Recorded:
    """Return the node's runtime, which records from here on."""
    student = depth_node._resources.student
    student.runtime = Recorded(student.runtime)
    return student.runtime


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
    peer.message_of(image_message(3), peer.confidence)
    assert recorded.with_confidence[-1]


def test_a_subscriber_of_camera_info_alone_gets_it_without_the_network(
    peer: Peer, depth_node: DepthNode, recorded: Recorded
) -> None:
    peer.depth_of(image_message(0), camera_info())
    peer.stop_listening("depth")
    wait_for(lambda: not depth_node._resources.output.wanted, "no subscriber of depth")
    recorded.with_confidence.clear()
    for number, (resolution, size) in enumerate((("image", (96, 72)), ("network", (96, 64)))):
        assert peer.set_parameter(NODE, "resolution", resolution).successful
        info = peer.info_of(image_message(7 + number), camera_info())
        assert (info.width, info.height) == size
    assert not recorded.with_confidence


def test_the_network_is_paused_without_subscribers_and_resumes_with_the_first(
    peer: Peer, recorded: Recorded
) -> None:
    unseen, info = "images without subscribers", camera_info()
    peer.depth_of(image_message(0), info)
    peer.stop_listening("depth", "camera_info")
    peer.await_above(NODE, unseen, 2, image_message(1), info)
    report = peer.await_diagnosis(NODE, "the network is paused", DiagnosticStatus.OK)
    recorded.with_confidence.clear()
    peer.await_above(NODE, unseen, int(report.values[unseen]), image_message(2), info)
    assert not recorded.with_confidence
    assert peer.diagnosis(NODE).values["depth published"] == report.values["depth published"]
    peer.message_of(image_message(3), peer.listen(Image, "depth"), info)
    peer.await_diagnosis(NODE, "publishing depth", DiagnosticStatus.OK)


@pytest.mark.usefixtures("depth_node")
def test_a_bad_image_is_reported_without_subscribers_too(peer: Peer) -> None:
    peer.stop_listening("depth", "camera_info")
    bad = image_message(1)
    bad.encoding = "nv24"
    peer.await_above(NODE, "images refused", 0, bad)


@pytest.mark.usefixtures("depth_node")
def test_diagnostics_name_student_rates_runtime_latency_and_each_stage(
    peer: Peer, promoted: str
) -> None:
    peer.await_above(NODE, "depth published", 0, image_message(1), camera_info())
    report = peer.await_diagnosis(NODE, "publishing depth", DiagnosticStatus.OK)
    values = report.values
    assert values["student"] == promoted
    assert values["runtime"].startswith("torch, cpu")
    named = {"image rate [Hz]", "depth rate [Hz]", "dropped (newest wins)", "swaps"}
    assert {*named, "runtime measured [ms]"} <= values.keys()
    for key in ("latency p50 [ms]", "latency p95 [ms]", "time network [ms]"):
        assert float(values[key]) > 0
    assert all(float(values[f"time {stage} [ms]"]) >= 0 for stage in STAGES)


def test_an_unknown_runtime_is_refused_by_name_with_those_there_are(
    peer: Peer, state: StateFolder
) -> None:
    said = refusal(DepthNode, peer, state_dir=str(state.root), runtime="tflite")
    assert "runtime must be one of" in said
    assert "'onnxruntime', got 'tflite'" in said
