"""A companion that is configured and not active: it begins nothing by itself, nor when asked."""

from __future__ import annotations

from pathlib import Path

from lifecycle_msgs.msg import Transition

from helpers.frames import filled_state
from helpers.teachers import StubBackend, serving
from ros_helpers.companion import (
    LOGGING,
    PATIENT_TEACHER,
    await_frames,
    log_pictures,
    round_parameters,
    stats,
)
from ros_helpers.messages import camera_info, image_message
from ros_helpers.peer import INACTIVE, Peer, running
from ros_helpers.waiting import wait_for
from tiekd_ros.core.launch_options import free_port
from tiekd_ros.core.state import StateFolder
from tiekd_ros.nodes.companion.node import CompanionNode

NODE = "companion_node"
REPORTS = 3
ACTIVATE, DEACTIVATE = Transition.TRANSITION_ACTIVATE, Transition.TRANSITION_DEACTIVATE


def let_it_work(peer: Peer) -> None:
    """Wait for some more of its reports, before each of which it works."""
    peer.await_value(NODE, "state", INACTIVE)
    for _ in range(REPORTS):
        last = peer.diagnosis(NODE)
        wait_for(lambda before=last: peer.diagnosis(NODE) is not before, "a report")


def test_it_starts_no_round_by_period_or_by_request_until_it_is_active(
    peer: Peer, tmp_path: Path
) -> None:
    state = filled_state(tmp_path / "state")
    settings = round_parameters(distill={"period_s": 0.1, "min_new_labels": 12})
    values = {"state_dir": str(state.root), "teacher__url": "", **settings}
    with running(CompanionNode, peer, until=INACTIVE, **values):
        started, reason = peer.trigger("distill")
        assert not started
        assert reason == "the companion is inactive; activate it"
        let_it_work(peer)
        assert "round" not in peer.diagnosis(NODE).values
        assert peer.change_state(NODE, ACTIVATE)
        peer.await_value(NODE, "round", "1")


def test_it_asks_the_teacher_only_while_it_is_active(peer: Peer, state: StateFolder) -> None:
    port = free_port()
    values = {
        **LOGGING,
        **PATIENT_TEACHER,
        "teacher__url": f"127.0.0.1:{port}",
        "labels__poll_s": 0.1,
    }
    with running(CompanionNode, peer, state_dir=str(state.root), **values):
        log_pictures(peer, state, range(2), camera_info())
        assert peer.change_state(NODE, DEACTIVATE)
        with serving(StubBackend(), port=port):
            let_it_work(peer)
            assert sum(stats(state).frames["labelled"].values()) == 0
            assert peer.change_state(NODE, ACTIVATE)
            await_frames(state, "labelled", 2)


def test_it_says_how_many_images_come(peer: Peer, state: StateFolder) -> None:
    with running(CompanionNode, peer, state_dir=str(state.root), teacher__url="", **LOGGING):
        wait_for(
            lambda: float(peer.diagnosis(NODE).values.get("image rate [Hz]", "0")) > 0,
            "an image rate",
            nudge=lambda: peer.show(image_message(), camera_info()),
            explain=lambda: peer.diagnosis(NODE),
        )
