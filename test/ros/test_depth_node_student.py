"""Students come, change and fail while depth_node runs; no frame is lost by it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import Image

from helpers.students import small_student
from helpers.teachers import picture
from ros_helpers.messages import HEIGHT, WIDTH, camera_info, image_message
from ros_helpers.peer import Peer, running
from ros_helpers.processes import Processes
from ros_helpers.waiting import PATIENCE_S, wait_for
from tiekd_ros.core.state import StateFolder
from tiekd_ros.nodes.common.conversions import image_to_float, stamp_ns
from tiekd_ros.nodes.depth.node import DepthNode
from tiekd_ros.nodes.probe.observer import DepthPair, StreamObserver
from tiekd_ros.student.checkpoint import Student
from tiekd_ros.student.registry import StudentRegistry

NODE = "depth_node"
SWAPS = 24
RATE_HZ = 15
LONGEST_GAP_S = 1.0
"""Between two depth images: 15 periods of the camera, as the tests may run on a busy machine."""

WEIGHTS = "student.safetensors"


@pytest.fixture
def registry(state: StateFolder) -> StudentRegistry:
    return StudentRegistry(state.students)


@pytest.fixture
def depth_node(peer: Peer, state: StateFolder) -> Iterator[DepthNode]:
    """Run the node on a registry without students."""
    # Reliable, so that a frame that is missing was lost by the node and not on its way.
    with running(DepthNode, peer, state_dir=str(state.root), input_reliability="reliable") as node:
        yield node


@pytest.mark.usefixtures("depth_node")
class TestStartedWithoutStudent:
    def test_there_is_no_depth_and_diagnostics_say_what_to_do(self, peer: Peer) -> None:
        image = image_message()
        peer.await_diagnosis(NODE, "no accepted student", DiagnosticStatus.WARN)
        peer.await_above(NODE, "images without student", 0, image)
        report = peer.diagnosis(NODE)
        assert report.level == DiagnosticStatus.WARN
        assert "call the distill service" in report.message
        assert report.values["student"] == "none"
        assert not peer.depth

    def test_the_latest_of_many_announced_students_goes_live(
        self, peer: Peer, registry: StudentRegistry
    ) -> None:
        versions = [registry.add(small_student(seed)).version for seed in range(4)]
        for version in versions:
            peer.announce(version)
        peer.await_value(NODE, "student", versions[-1])
        peer.depth_of(image_message())


@pytest.mark.usefixtures("depth_node")
def test_a_published_student_takes_over_and_an_unknown_confidence_stays_unknown(
    peer: Peer, registry: StudentRegistry
) -> None:
    peer.listen_to_confidence()
    fast, published = (
        registry.add(small_student(architecture=name)).version
        for name in ("mobilenetv2-fast", "resnet18-regression")
    )
    for number, version in enumerate((fast, published)):
        peer.announce(version)
        peer.await_value(NODE, "student", version)
        image = image_message(number)
        confidence = image_to_float(peer.message_of(image, peer.confidence))
        assert np.isnan(confidence).all() == (version == published)
        assert not np.isnan(image_to_float(peer.depth_of(image))).any()
    assert peer.set_parameter(NODE, "min_confidence", 0.1).successful
    assert np.isnan(image_to_float(peer.depth_of(image_message(2)))).all()


def test_no_frame_is_lost_by_many_swaps_at_full_rate(
    peer: Peer, processes: Processes, state: StateFolder, registry: StudentRegistry
) -> None:
    """The camera shows its next image whether or not depth has come.

    The node is a process of its own, so that nothing of this test delays it.
    """
    versions = [registry.add(small_student(seed)).version for seed in (1, 2)]
    registry.promote(versions[0])
    # Reliable, so that a frame that is missing was lost by the node and not on its way.
    node = processes.node(NODE, state_dir=str(state.root), input_reliability="reliable", threads=1)
    peer.depth_of(image_message(0), camera_info())
    arrivals: list[float] = []
    peer.node.create_subscription(Image, "depth", lambda _: arrivals.append(time.monotonic()), 1000)
    # The same picture, so that only the student makes a difference.
    with peer.playing(camera_info(), 1 / RATE_HZ, picture(0, WIDTH, HEIGHT)) as shown:
        wait_for(lambda: len(arrivals) > 3, "a steady stream")
        for turn in range(SWAPS):
            peer.announce(versions[(turn + 1) % 2])
            peer.await_value(NODE, "student", versions[(turn + 1) % 2])
    wait_for(lambda: shown[-1] in peer.depth, "the last image's depth")
    peer.await_value(NODE, "swaps", str(SWAPS))
    values = peer.diagnosis(NODE).values
    assert [stamp for stamp in shown if stamp not in peer.depth] == [], values
    assert max(after - before for before, after in pairwise(arrivals)) < LONGEST_GAP_S
    assert (values["dropped by swap"], values["dropped (newest wins)"]) == ("0", "0")
    depths = {bytes(image_to_float(peer.depth[stamp])[:4, :4]) for stamp in shown}
    assert len(depths) == 2  # both students answered, and nothing in between
    assert "Traceback" not in node.output


def test_what_is_lost_during_each_of_two_requests_in_a_row_counts_as_dropped_by_a_swap(
    peer: Peer, depth_node: DepthNode, registry: StudentRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (registry.add(small_student(seed)).version for seed in range(3))
    mailbox, student = depth_node._resources.mailbox, depth_node._resources.student
    losses = {first: 1, second: 10, third: 100}
    asked, load = threading.Event(), StudentRegistry.load

    def load_and_lose(self: StudentRegistry, version: str) -> Student:
        mailbox.replaced += losses[version]  # as if the frames' thread had been held up
        assert version != first or asked.wait(PATIENCE_S)
        return load(self, version)

    monkeypatch.setattr(StudentRegistry, "load", load_and_lose)
    peer.announce(first)
    wait_for(lambda: student.state.loading, "the first to be loaded")
    peer.announce(second)
    wait_for(lambda: student._wanted._item == second, "the second to be asked for")
    asked.set()
    peer.await_value(NODE, "student", second)
    peer.await_value(NODE, "dropped by swap", "11")
    peer.announce(second)  # runs already: no swap
    mailbox.replaced += 1000  # lost between two swaps, not by one
    peer.announce(third)
    peer.await_value(NODE, "student", third)
    peer.await_value(NODE, "dropped by swap", "111")


@pytest.mark.usefixtures("depth_node")
def test_a_damaged_student_is_refused_and_the_old_one_goes_on(
    peer: Peer, registry: StudentRegistry
) -> None:
    good, truncated, cardless = (registry.add(small_student(n)).version for n in range(3))
    weights = registry.root / truncated / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:1000])
    (registry.root / cardless / "card.json").unlink()
    peer.announce(good)
    peer.await_value(NODE, "student", good)
    for number, bad in enumerate((truncated, cardless, "000099")):
        peer.announce(bad)
        report = peer.await_diagnosis(NODE, bad, DiagnosticStatus.ERROR)
        assert report.values["student"] == good
        peer.depth_of(image_message(7 + number))
        peer.announce(good)  # as a rollback does
        peer.await_diagnosis(NODE, "", DiagnosticStatus.WARN)  # no camera_info, and no error more
        assert peer.diagnosis(NODE).values["student"] == good


def test_a_damaged_live_student_gives_way_to_the_one_before(
    peer: Peer, state: StateFolder, registry: StudentRegistry
) -> None:
    for seed in (1, 2):
        registry.promote(registry.add(small_student(seed)).version)
    weights = registry.root / "000002" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:1000])
    with running(DepthNode, peer, state_dir=str(state.root)):
        report = peer.await_diagnosis(NODE, "000002", DiagnosticStatus.ERROR)
        assert report.values["student"] == "000001"
        peer.depth_of(image_message())


def test_the_demos_observer_knows_the_streams_stamps_and_swaps_and_leaves_signals_alone(
    peer: Peer, state: StateFolder, registry: StudentRegistry
) -> None:
    version = registry.add(small_student()).version
    pairs: list[DepthPair] = []
    topic = f"{peer.namespace}/image"
    with (
        StreamObserver(peer.namespace, topic, pairs.append) as observer,
        running(DepthNode, peer, state_dir=str(state.root)),
    ):
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        wait_for(lambda: observer.diagnostics("depth_node"), "diagnostics")
        assert not observer.swaps
        peer.announce(version)
        wait_for(lambda: observer.swaps, "the swap")
        image = image_message(1)
        peer.depth_of(image, camera_info())
        stamp = stamp_ns(image.header)
        wait_for(lambda: pairs, "a pair", nudge=lambda: peer.show(image))
    assert [swap.version for swap in observer.swaps] == [version]
    assert set(observer.image_stamps) == set(observer.depth_stamps) == {stamp}
    assert version in observer.first_depth_s
    pair = pairs[0]
    assert (pair.version, pair.stamp_ns) == (version, stamp)
    assert pair.image.shape[:2] == pair.depth.shape == (72, 96)
    assert pair.since_swap_s == pytest.approx((stamp - observer.swaps[0].at_ns) * 1e-9)
