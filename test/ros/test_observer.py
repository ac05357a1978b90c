"""The demo's observer receives the stream as a user's program does, and leaves signals alone."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from helpers.students import small_student
from ros_helpers.messages import camera_info, image_message
from ros_helpers.peer import Peer, running
from ros_helpers.waiting import wait_for
from tiekd_ros.core.state import StateFolder
from tiekd_ros.nodes.common.conversions import stamp_ns
from tiekd_ros.nodes.depth.node import DepthNode
from tiekd_ros.nodes.probe.observer import DepthPair, StreamObserver
from tiekd_ros.student.registry import StudentRegistry


@pytest.fixture
def pairs() -> list[DepthPair]:
    return []


@pytest.fixture
def observer(peer: Peer, pairs: list[DepthPair]) -> Iterator[StreamObserver]:
    with StreamObserver(peer.namespace, f"{peer.namespace}/image", pairs.append) as observer:
        yield observer


@pytest.mark.usefixtures("observer")
def test_signals_stay_with_the_program() -> None:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_stamps_swaps_and_pairs_are_those_of_the_stream(
    peer: Peer, observer: StreamObserver, pairs: list[DepthPair], state: StateFolder
) -> None:
    registry = StudentRegistry(state.students)
    version = registry.add(small_student()).version
    with running(DepthNode, peer, state_dir=str(state.root)):
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
