"""depth_node between its states: what it counts, what it frees, what it says at the end."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest
from lifecycle_msgs.msg import Transition

from helpers.students import promote_small
from ros_helpers.messages import camera_info, image_message
from ros_helpers.peer import ACTIVE, INACTIVE, UNCONFIGURED, Peer, running
from ros_helpers.waiting import PATIENCE_S, wait_for
from tiekd_ros.core.state import StateFolder
from tiekd_ros.nodes.common.run import freeze_garbage
from tiekd_ros.nodes.depth.node import DepthNode

NODE = "depth_node"
CONFIGURE, CLEANUP = Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_CLEANUP
ACTIVATE, DEACTIVATE = Transition.TRANSITION_ACTIVATE, Transition.TRANSITION_DEACTIVATE


@pytest.fixture(autouse=True)
def promoted(state: StateFolder) -> str:
    return promote_small(state)


def counts(peer: Peer) -> tuple[int, ...]:
    values = peer.diagnosis(NODE).values
    names = ("images received", "depth published", "dropped (newest wins)")
    return tuple(int(values.get(name, "-1")) for name in names)


def test_it_counts_anew_after_each_configuration(peer: Peer, state: StateFolder) -> None:
    with running(DepthNode, peer, state_dir=str(state.root)):
        peer.depth_of(image_message(), camera_info())
        wait_for(lambda: min(counts(peer)[:2]) > 0, "counts", explain=lambda: peer.diagnosis(NODE))
        for transition in (DEACTIVATE, CLEANUP, CONFIGURE):
            assert peer.change_state(NODE, transition)
        peer.await_value(NODE, "state", INACTIVE)
        wait_for(
            lambda: counts(peer) == (0, 0, 0), "no counts", explain=lambda: peer.diagnosis(NODE)
        )


def test_depth_that_is_ready_after_the_end_of_the_stream_is_not_counted_as_published(
    peer: Peer, state: StateFolder
) -> None:
    ready, go_on, done = threading.Event(), threading.Event(), threading.Event()
    with running(DepthNode, peer, state_dir=str(state.root)) as node:
        output = node._resources.output
        publish = output.publish_depth

        def slow(*words: Any) -> None:
            ready.set()
            assert go_on.wait(PATIENCE_S)
            publish(*words)
            done.set()

        output.publish_depth = slow
        wait_for(ready.is_set, "an image", nudge=lambda: peer.show(image_message(), camera_info()))
        assert peer.change_state(NODE, DEACTIVATE)
        go_on.set()
        assert done.wait(PATIENCE_S)
        assert peer.change_state(NODE, CLEANUP)  # joins the thread of the frames
        assert peer.depth == {}
        assert node._counters.published.total == 0


def test_cleaned_up_it_lets_go_of_the_student(peer: Peer, state: StateFolder) -> None:
    with running(DepthNode, peer, state_dir=str(state.root)) as node:
        peer.depth_of(image_message(), camera_info())
        live = node._resources.student
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
    peer: Peer, state: StateFolder, promoted: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with running(DepthNode, peer, state_dir=str(state.root)) as node:
        assert node.phase == ACTIVE
        live = node._resources.student.state
        peer.context.try_shutdown()
        capfd.readouterr()
        node._on_student_change(live)
        assert f"student {promoted} is live" in capfd.readouterr().err
