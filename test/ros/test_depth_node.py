"""What depth_node publishes, frees and says of bad input, in a thread of this process."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from sensor_msgs.msg import CameraInfo, Image

from helpers.students import BINS, SIZE
from ros_helpers.messages import FRAME_ID, HEIGHT, WIDTH, camera_info, header, image_message
from ros_helpers.peer import INACTIVE, UNCONFIGURED, Peer, refusal, running
from ros_helpers.waiting import PATIENCE_S, wait_for
from tiekd_ros.core.state import StateFolder
from tiekd_ros.nodes.common.conversions import image_to_float, rgb_to_image, stamp_ns
from tiekd_ros.nodes.common.run import freeze_garbage
from tiekd_ros.nodes.depth.node import DepthNode
from tiekd_ros.student.runtimes.base import Prediction, Runtime

NODE = "depth_node"
CONFIGURE, CLEANUP = Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_CLEANUP
ACTIVATE, DEACTIVATE = Transition.TRANSITION_ACTIVATE, Transition.TRANSITION_DEACTIVATE


@pytest.mark.usefixtures("depth_node")
def test_depth_is_metres_at_the_images_size_with_its_stamp_and_frame(peer: Peer) -> None:
    image = image_message(5)
    depth = peer.depth_of(image, camera_info())
    assert depth.header == image.header
    assert depth.header.frame_id == FRAME_ID
    assert (depth.encoding, depth.width, depth.height) == ("32FC1", WIDTH, HEIGHT)
    metres = image_to_float(depth)
    known = metres[np.isfinite(metres)]
    assert known.size > 0
    assert BINS.min_depth_m <= known.min() <= known.max() <= BINS.max_depth_m


@pytest.mark.usefixtures("depth_node")
def test_camera_info_has_the_depths_stamp_and_the_cameras_matrix(peer: Peer) -> None:
    image = image_message(5)
    info = peer.info_of(image, camera_info())
    assert info.header == image.header
    assert (info.width, info.height) == (WIDTH, HEIGHT)
    assert list(info.k) == list(camera_info().k)


@pytest.mark.usefixtures("depth_node")
def test_confidence_is_published_for_subscribers(peer: Peer) -> None:
    image = image_message(1)
    peer.depth_of(image)
    assert peer.node.count_publishers("confidence") == 1
    peer.listen_to_confidence()
    confidence = peer.message_of(image, peer.confidence)
    assert (confidence.encoding, confidence.width, confidence.height) == ("32FC1", WIDTH, HEIGHT)
    values = image_to_float(confidence)
    assert np.isfinite(values).all()
    assert 0 <= values.min() <= values.max() <= 1


@pytest.mark.usefixtures("depth_node")
def test_deactivated_it_is_silent_and_activated_it_goes_on(peer: Peer) -> None:
    peer.depth_of(image_message(1), camera_info())
    assert peer.change_state(NODE, DEACTIVATE)
    peer.await_diagnosis(NODE, "not active", DiagnosticStatus.WARN)
    peer.show(image_message(2), camera_info())
    assert peer.change_state(NODE, ACTIVATE)
    peer.depth_of(image_message(3), camera_info())
    assert stamp_ns(image_message(2).header) not in peer.depth


def test_unconfigured_it_waits_for_a_lifecycle_manager(
    peer: Peer, state: StateFolder, promoted: str
) -> None:
    with running(DepthNode, peer, until=UNCONFIGURED, state_dir=str(state.root)):
        assert peer.state_of(NODE) == UNCONFIGURED
        assert peer.change_state(NODE, CONFIGURE)
        assert peer.change_state(NODE, ACTIVATE)
        peer.depth_of(image_message())


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
        info = peer.info_of(image_message(4), camera_info())
        assert (info.width, info.height) == (SIZE.width, SIZE.height)
        factor = SIZE.height / HEIGHT
        assert info.k[0] == pytest.approx(60.0 * SIZE.width / WIDTH)
        assert info.k[4] == pytest.approx(61.0 * factor)
        assert info.k[5] == pytest.approx((35.5 + 0.5) * factor - 0.5)


# Between its states.


@pytest.mark.usefixtures("depth_node")
def test_it_counts_anew_after_each_configuration(peer: Peer) -> None:
    counted = ("images received", "depth published", "dropped (newest wins)")
    peer.depth_of(image_message(), camera_info())
    for key in counted[:2]:
        peer.await_above(NODE, key)
    for transition in (DEACTIVATE, CLEANUP, CONFIGURE):
        assert peer.change_state(NODE, transition)
    peer.await_value(NODE, "state", INACTIVE)
    for key in counted:
        peer.await_value(NODE, key, "0")
    assert peer.change_state(NODE, ACTIVATE)
    peer.depth_of(image_message(1), camera_info())


def test_depth_that_is_ready_after_the_end_of_the_stream_is_not_counted_as_published(
    peer: Peer, depth_node: DepthNode
) -> None:
    ready, released, done = threading.Event(), threading.Event(), threading.Event()
    output = depth_node._resources.output
    publish = output.publish_depth

    def slow(*words: Any) -> None:
        ready.set()
        assert released.wait(PATIENCE_S)
        publish(*words)
        done.set()

    output.publish_depth = slow
    wait_for(ready.is_set, "an image", nudge=lambda: peer.show(image_message(), camera_info()))
    assert peer.change_state(NODE, DEACTIVATE)
    released.set()
    assert done.wait(PATIENCE_S)
    assert peer.change_state(NODE, CLEANUP)  # joins the thread of the frames
    assert peer.depth == {}
    assert depth_node._counters.published.total == 0


def test_cleaned_up_it_lets_go_of_the_student(peer: Peer, depth_node: DepthNode) -> None:
    peer.depth_of(image_message(), camera_info())
    live = depth_node._resources.student
    live.runtime.itself = live.runtime  # as exporters and graphs leave it: for the collector
    student, runtime = weakref.ref(live), weakref.ref(live.runtime)
    del live
    try:
        freeze_garbage()  # as a program does
        assert peer.change_state(NODE, DEACTIVATE)
        assert peer.change_state(NODE, CLEANUP)
        assert peer.state_of(NODE) == UNCONFIGURED
        assert student() is None
        assert runtime() is None
    finally:
        gc.unfreeze()


def test_a_student_that_comes_when_ros_has_ended_is_logged_and_breaks_nothing(
    peer: Peer, depth_node: DepthNode, promoted: str, capfd: pytest.CaptureFixture[str]
) -> None:
    live = depth_node._resources.student.state
    peer.context.try_shutdown()
    capfd.readouterr()
    depth_node._on_student_change(live)
    assert f"student {promoted} is live" in capfd.readouterr().err


# Bad images and calibrations.


def bad(**changes: Any) -> Image:
    """Return an image whose header or bytes were changed."""
    image = image_message(1)
    for name, value in changes.items():
        setattr(image, name, value)
    return image


@pytest.mark.usefixtures("depth_node")
def test_a_bad_image_is_reported_and_the_stream_goes_on(peer: Peer) -> None:
    for number, (image, reason) in enumerate(
        (
            (bad(encoding="nv24"), "nv24"),
            (Image(header=header(1), encoding="rgb8"), "0 x 0 pixels"),
            (bad(data=image_message(1).data[:1000]), "truncated"),
            (bad(step=7), "step is 7"),
            (bad(encoding="uyvy", width=95, step=95 * 2), "95 x 72 uyvy"),
        ),
        start=2,
    ):
        peer.depth_of(image_message(number), camera_info())
        peer.show(image)
        report = peer.await_diagnosis(NODE, reason, DiagnosticStatus.ERROR)
        assert int(report.values["images refused"]) >= 1
    peer.depth_of(image_message(20), camera_info())
    assert stamp_ns(header(1)) not in peer.depth


@pytest.mark.usefixtures("depth_node")
def test_a_padded_image_gives_the_depth_of_the_same_image_without_padding(peer: Peer) -> None:
    plain = image_message(1)
    rows = np.frombuffer(plain.data, np.uint8).reshape(plain.height, plain.step)
    padded = image_message(2)
    padded.data = np.pad(rows, ((0, 0), (0, 12)), constant_values=0xEE).tobytes()
    padded.step = plain.step + 12
    one, other = peer.depth_of(plain), peer.depth_of(padded)
    np.testing.assert_array_equal(image_to_float(one), image_to_float(other))


@pytest.mark.usefixtures("depth_node")
def test_depth_flows_whatever_the_calibration_is_and_diagnostics_say_what_is_wrong(
    peer: Peer,
) -> None:
    peer.depth_of(image_message(0))
    peer.await_diagnosis(NODE, "no camera_info arrives", DiagnosticStatus.WARN)
    assert not peer.infos
    peer.depth_of(image_message(1), CameraInfo(width=96, height=72))
    peer.await_diagnosis(NODE, "uncalibrated", DiagnosticStatus.WARN)
    doubled = camera_info([120.0, 0.0, 95.5, 0.0, 122.0, 71.5, 0.0, 0.0, 1.0], 192, 144)
    info = peer.info_of(image_message(2), doubled)
    peer.await_diagnosis(NODE, "camera_info is for 192 x 144", DiagnosticStatus.WARN)
    assert (info.width, info.height) == (96, 72)
    assert list(info.k) == [60.0, 0.0, 47.5, 0.0, 61.0, 35.5, 0.0, 0.0, 1.0]


@pytest.mark.usefixtures("depth_node")
def test_the_image_size_may_change_while_running(peer: Peer) -> None:
    sizes = [(96, 72), (128, 48), (32, 30), (320, 240), (96, 72)]
    for number, (width, height) in enumerate(sizes):
        image = image_message(number, width=width, height=height)
        depth = peer.depth_of(image, camera_info(width=width, height=height))
        assert (depth.width, depth.height) == (width, height)
    tiny = rgb_to_image(np.full((2, 3, 3), 90, np.uint8), header(9))
    depth = peer.depth_of(tiny)  # smaller than the network's input
    assert (depth.width, depth.height) == (3, 2)


# What it computes, for which subscribers, and how long that takes.


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
