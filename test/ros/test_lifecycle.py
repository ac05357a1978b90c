"""Both nodes as managed nodes: every transition again and again, what fails, what is left."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from rclpy.lifecycle import LifecycleNode
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from std_msgs.msg import String

from helpers.students import promote_small
from ros_helpers.messages import camera_info, image_message
from ros_helpers.peer import ACTIVE, INACTIVE, UNCONFIGURED, Peer, running
from ros_helpers.waiting import wait_for
from tiekd_ros.core.state import StateFolder
from tiekd_ros.nodes.common import managed
from tiekd_ros.nodes.common.managed import ManagedNode
from tiekd_ros.nodes.companion.node import CompanionNode
from tiekd_ros.nodes.depth.node import DepthNode

CONFIGURE, CLEANUP = Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_CLEANUP
ACTIVATE, DEACTIVATE = Transition.TRANSITION_ACTIVATE, Transition.TRANSITION_DEACTIVATE
NOBODY = "127.0.0.1:9"  # a teacher's address where none listens
NODES = pytest.mark.parametrize(
    ("kind", "name"), [(DepthNode, "depth_node"), (CompanionNode, "companion_node")]
)
ROUNDS = 3
TICK_S = ManagedNode.tick_s
"""As users have it: tests shorten it."""
PERIOD_S = 0.02  # between two images


@pytest.fixture
def promoted(state: StateFolder) -> str:
    return promote_small(state)


def parameters(kind: type[ManagedNode], folder: Path) -> dict[str, object]:
    own = {"teacher__url": NOBODY} if kind is CompanionNode else {}
    return {"state_dir": str(folder), **own}


def belongings(
    node: LifecycleNode, others: Collection[threading.Thread] = ()
) -> dict[str, list[str]]:
    """Return what a node holds of ROS and of threads that are not others, by name."""
    return {
        "subscriptions": sorted(s.topic_name for s in node.subscriptions),
        "publishers": sorted(p.topic_name for p in node.publishers),
        "services": sorted(s.srv_name for s in node.services),
        "timers": [str(t.timer_period_ns) for t in node.timers],
        "threads": sorted(
            t.name for t in threading.enumerate() if t not in others and t.name != "camera"
        ),
    }


def works(peer: Peer, name: str) -> Callable[[], object]:
    if name == "depth_node":
        return lambda: peer.depth
    return lambda: int(peer.diagnosis(name).values.get("frames offered", "0"))


@NODES
class TestBothNodes:
    @pytest.mark.usefixtures("promoted")
    def test_every_transition_while_images_flow_leaves_nothing_behind(
        self, peer: Peer, state: StateFolder, kind: type[ManagedNode], name: str
    ) -> None:
        with (
            running(kind, peer, until=UNCONFIGURED, **parameters(kind, state.root)) as node,
            peer.playing(camera_info(), PERIOD_S),
        ):
            others = threading.enumerate()  # of earlier tests, which may end meanwhile
            before = belongings(node, others)
            held = None
            for _ in range(ROUNDS):
                assert peer.change_state(name, CONFIGURE)
                held = held or belongings(node, others)
                assert belongings(node, others) == held
                for _ in range(2):
                    peer.depth.clear()
                    assert peer.change_state(name, ACTIVATE)
                    wait_for(works(peer, name), "work", explain=lambda: peer.diagnosis(name))
                    assert peer.change_state(name, DEACTIVATE)
                    assert belongings(node, others) == held
                assert peer.change_state(name, CLEANUP)
                assert belongings(node, others) == before
            assert held is not None
            assert set(held["threads"]) > set(before["threads"])

    @pytest.mark.usefixtures("promoted")
    @pytest.mark.parametrize(
        ("until", "transition"),
        [
            (UNCONFIGURED, Transition.TRANSITION_UNCONFIGURED_SHUTDOWN),
            (INACTIVE, Transition.TRANSITION_INACTIVE_SHUTDOWN),
            (ACTIVE, Transition.TRANSITION_ACTIVE_SHUTDOWN),
        ],
    )
    def test_shut_down_from_any_state_it_holds_nothing_and_says_so(
        self,
        peer: Peer,
        state: StateFolder,
        kind: type[ManagedNode],
        name: str,
        until: str,
        transition: int,
    ) -> None:
        with running(kind, peer, until=UNCONFIGURED, **parameters(kind, state.root)) as node:
            before = belongings(node)
            if until != UNCONFIGURED:
                assert peer.change_state(name, CONFIGURE)
            if until == ACTIVE:
                assert peer.change_state(name, ACTIVATE)
            assert peer.change_state(name, transition)
            assert peer.state_of(name) == "finalized"
            assert belongings(node) == before
            peer.await_diagnosis(name, "shut down; start", DiagnosticStatus.WARN)

    def test_it_reports_in_every_state_and_once_a_second_outside_tests(
        self,
        peer: Peer,
        state: StateFolder,
        monkeypatch: pytest.MonkeyPatch,
        kind: type[ManagedNode],
        name: str,
    ) -> None:
        if kind is CompanionNode:
            monkeypatch.setattr(ManagedNode, "tick_s", TICK_S)
        states: list[str] = []

        def hear(message: DiagnosticArray) -> None:
            own = f"{peer.namespace}/{name}"
            for status in (each for each in message.status if each.name == own):
                states.append({v.key: v.value for v in status.values}["state"])

        peer.node.create_subscription(DiagnosticArray, "/diagnostics", hear, 10)
        with running(kind, peer, until=UNCONFIGURED, **parameters(kind, state.root)) as node:
            assert str(round(ManagedNode.tick_s * 1e9)) in belongings(node)["timers"]
            for transition, then, count in (
                (None, UNCONFIGURED, 2),
                (CONFIGURE, INACTIVE, 1),
                (ACTIVATE, ACTIVE, 1),
                (Transition.TRANSITION_ACTIVE_SHUTDOWN, "finalized", 1),
            ):
                assert transition is None or peer.change_state(name, transition)
                wait_for(lambda: states.count(then) >= count, f"{count} reports: {then}")  # noqa: B023

    def test_a_transition_that_does_not_fit_the_state_is_refused_and_changes_nothing(
        self, peer: Peer, state: StateFolder, kind: type[ManagedNode], name: str
    ) -> None:
        with running(kind, peer, until=UNCONFIGURED, **parameters(kind, state.root)):
            for transition in (ACTIVATE, DEACTIVATE, CLEANUP):
                assert not peer.change_state(name, transition)
                assert peer.state_of(name) == UNCONFIGURED
            assert peer.change_state(name, CONFIGURE)
            for transition in (CONFIGURE, DEACTIVATE):
                assert not peer.change_state(name, transition)
                assert peer.state_of(name) == INACTIVE
            assert peer.change_state(name, ACTIVATE)
            assert not peer.change_state(name, CLEANUP)
            assert peer.state_of(name) == ACTIVE

    def test_where_configuring_fails_the_reason_is_told_until_it_succeeds(
        self, peer: Peer, tmp_path: Path, kind: type[ManagedNode], name: str
    ) -> None:
        folder = tmp_path / "blocked"
        folder.write_text("in the way")
        with running(kind, peer, until=UNCONFIGURED, **parameters(kind, folder / "state")) as node:
            before = belongings(node)
            for _ in range(2):
                assert not peer.change_state(name, CONFIGURE)
                assert peer.state_of(name) == UNCONFIGURED
                assert belongings(node) == before
            reason = f"cannot configure: cannot make the state folder {folder / 'state'}"
            peer.await_diagnosis(name, reason, DiagnosticStatus.ERROR)
            folder.unlink()
            assert peer.change_state(name, CONFIGURE)
            peer.await_diagnosis(name, "not active; activate the node", DiagnosticStatus.WARN)
            assert "cannot configure" not in peer.diagnosis(name).message

    def test_starting_by_itself_it_tries_again_until_the_cause_is_gone(
        self,
        peer: Peer,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        kind: type[ManagedNode],
        name: str,
    ) -> None:
        monkeypatch.setattr(managed, "TRY_AGAIN_S", 0.1)
        folder = tmp_path / "blocked"
        folder.write_text("in the way")
        values = {"autostart": True, **parameters(kind, folder / "state")}
        with running(kind, peer, until=UNCONFIGURED, **values):
            peer.await_diagnosis(name, "cannot configure", DiagnosticStatus.ERROR)
            folder.unlink()
            peer.await_active(name)

    def test_it_reports_by_a_clock_of_its_own_where_no_time_comes(
        self, peer: Peer, state: StateFolder, kind: type[ManagedNode], name: str
    ) -> None:
        values = {"use_sim_time": True, **parameters(kind, state.root)}
        with running(kind, peer, until=ACTIVE, **values):
            peer.await_value(name, "state", ACTIVE)

    def test_a_clock_that_jumps_back_is_told_and_the_stream_goes_on(
        self, peer: Peer, state: StateFolder, kind: type[ManagedNode], name: str, promoted: str
    ) -> None:
        clock = peer.node.create_publisher(Clock, "/clock", 10)

        def tell(seconds: int) -> Callable[[], None]:
            return lambda: clock.publish(Clock(clock=Time(seconds=seconds).to_msg()))

        values = {"use_sim_time": True, **parameters(kind, state.root)}
        with running(kind, peer, until=ACTIVE, **values) as node:
            now = node.get_clock().now
            wait_for(lambda: now().nanoseconds == 100e9, "100 s", nudge=tell(100))
            wait_for(lambda: now().nanoseconds == 50e9, "50 s", nudge=tell(50))
            peer.await_value(name, "clock jumps", "1")
            with peer.playing(camera_info(), PERIOD_S):
                wait_for(works(peer, name), "work", explain=lambda: peer.diagnosis(name))


class TestDepthNode:
    @pytest.mark.usefixtures("promoted")
    def test_where_configuring_fails_half_way_nothing_is_left(
        self, peer: Peer, state: StateFolder
    ) -> None:
        with running(DepthNode, peer, until=UNCONFIGURED, state_dir=str(state.root)) as node:
            # The middleware refuses a second type on one topic in one process.
            blocker = peer.node.create_publisher(String, "confidence", 1)
            before = belongings(node)
            assert not peer.change_state("depth_node", CONFIGURE)
            assert belongings(node) == before
            peer.await_diagnosis("depth_node", "cannot configure: ", DiagnosticStatus.ERROR)
            peer.node.destroy_publisher(blocker)
            assert peer.change_state("depth_node", CONFIGURE)
            assert peer.change_state("depth_node", ACTIVATE)
            peer.depth_of(image_message(), camera_info())


class TestTwoCompanions:
    def test_the_second_on_a_state_folder_is_refused_until_the_first_is_gone(
        self, peer: Peer, state: StateFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(managed, "TRY_AGAIN_S", 0.1)
        values = {"state_dir": str(state.root), "teacher__url": ""}
        with (
            Peer(f"{peer.namespace}/other") as other,
            running(CompanionNode, peer, **values) as first,
            running(CompanionNode, other, until=UNCONFIGURED, autostart=True, **values),
        ):
            refusal = f"the state folder {state.root} belongs to another companion"
            other.await_diagnosis("companion_node", refusal, DiagnosticStatus.ERROR)
            assert peer.state_of("companion_node") == ACTIVE
            first.release()
            other.await_active("companion_node")
