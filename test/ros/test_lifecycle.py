"""Both nodes as managed nodes: every transition again and again, what fails, what is left."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from rclpy.lifecycle import LifecycleNode
from std_msgs.msg import String

from ros_helpers.messages import camera_info, image_message
from ros_helpers.peer import ACTIVE, INACTIVE, UNCONFIGURED, Peer, running
from ros_helpers.waiting import wait_for
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.state import StateFolder
from tiekd_ros.diagnosis.thresholds import DiagnosticSettings
from tiekd_ros.nodes.common import managed
from tiekd_ros.nodes.common.managed import ManagedNode
from tiekd_ros.nodes.common.reporting import Report
from tiekd_ros.nodes.common.settings import CommonSettings
from tiekd_ros.nodes.companion.node import CompanionNode
from tiekd_ros.nodes.depth.node import DepthNode

CONFIGURE, CLEANUP = Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_CLEANUP
ACTIVATE, DEACTIVATE = Transition.TRANSITION_ACTIVATE, Transition.TRANSITION_DEACTIVATE
UNREACHABLE = "127.0.0.1:9"  # a teacher's address where none listens
NODES = pytest.mark.parametrize(
    ("kind", "name"), [(DepthNode, "depth_node"), (CompanionNode, "companion_node")]
)
ROUNDS = 3
TICK_S = ManagedNode.tick_s
"""As users have it: tests shorten it."""
PERIOD_S = 0.02  # between two images


def parameters(kind: type[ManagedNode], folder: Path) -> dict[str, object]:
    own = {"teacher__url": UNREACHABLE} if kind is CompanionNode else {}
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


@pytest.mark.usefixtures("promoted")
@NODES
def test_every_transition_while_images_flow_leaves_nothing_behind(
    peer: Peer, state: StateFolder, kind: type[ManagedNode], name: str
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
@NODES
def test_shut_down_from_any_state_it_holds_nothing_and_says_so(
    peer: Peer, state: StateFolder, kind: type[ManagedNode], name: str
) -> None:
    for steps, transition in (
        ((), Transition.TRANSITION_UNCONFIGURED_SHUTDOWN),
        ((CONFIGURE,), Transition.TRANSITION_INACTIVE_SHUTDOWN),
        ((CONFIGURE, ACTIVATE), Transition.TRANSITION_ACTIVE_SHUTDOWN),
    ):
        with running(kind, peer, until=UNCONFIGURED, **parameters(kind, state.root)) as node:
            before = belongings(node)
            assert all(peer.change_state(name, step) for step in (*steps, transition))
            assert peer.state_of(name) == "finalized"
            assert belongings(node) == before
            peer.await_reports(name)  # the last one may be of the node before
            peer.await_diagnosis(name, "shut down; start", DiagnosticStatus.WARN)


@NODES
def test_it_reports_in_every_state_and_once_a_second_outside_tests(
    peer: Peer,
    state: StateFolder,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[ManagedNode],
    name: str,
) -> None:
    if kind is CompanionNode:
        monkeypatch.setattr(ManagedNode, "tick_s", TICK_S)
    states: list[str] = []

    def keep(message: DiagnosticArray) -> None:
        own = f"{peer.namespace}/{name}"
        for status in (each for each in message.status if each.name == own):
            states.append({v.key: v.value for v in status.values}["state"])

    peer.node.create_subscription(DiagnosticArray, "/diagnostics", keep, 10)
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


@NODES
def test_a_transition_that_does_not_fit_the_state_is_refused_and_changes_nothing(
    peer: Peer, state: StateFolder, kind: type[ManagedNode], name: str
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


@NODES
def test_where_configuring_fails_the_reason_is_told_until_it_succeeds(
    peer: Peer, tmp_path: Path, kind: type[ManagedNode], name: str
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


@NODES
def test_starting_by_itself_it_tries_again_until_the_cause_is_gone(
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


@NODES
def test_it_reports_by_a_clock_of_its_own_where_no_time_comes(
    peer: Peer, state: StateFolder, kind: type[ManagedNode], name: str
) -> None:
    values = {"use_sim_time": True, **parameters(kind, state.root)}
    with running(kind, peer, **values):
        peer.await_value(name, "state", ACTIVE)


@NODES
def test_a_clock_that_jumps_back_is_told_and_the_stream_goes_on(
    peer: Peer, state: StateFolder, kind: type[ManagedNode], name: str, promoted: str
) -> None:
    values = {"use_sim_time": True, **parameters(kind, state.root)}
    with running(kind, peer, **values) as node:
        peer.set_clock(node, 100)
        peer.set_clock(node, 50)
        peer.await_value(name, "clock jumps", "1")
        with peer.playing(camera_info(), PERIOD_S):
            wait_for(works(peer, name), "work", explain=lambda: peer.diagnosis(name))


@pytest.mark.usefixtures("promoted")
def test_where_configuring_fails_half_way_nothing_is_left(peer: Peer, state: StateFolder) -> None:
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


def test_the_second_companion_on_a_state_folder_is_refused_until_the_first_is_gone(
    peer: Peer, state: StateFolder, monkeypatch: pytest.MonkeyPatch
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


# A node that breaks in a transition, in its work, or whose GPU does not answer.


class Fragile(ManagedNode):
    """Breaks where it is told to."""

    def __init__(self, **options: object) -> None:
        super().__init__("fragile", CommonSettings, DiagnosticSettings, **options)
        self.breaks: dict[str, Exception] = {}
        self.freed: list[str] = []

    def _maybe_break(self, step: str) -> None:
        if step in self.breaks:
            raise self.breaks[step]

    def _end(self, step: str) -> None:
        self._maybe_break(step)
        self.freed.append(step)

    def configure(self, held: ExitStack) -> None:
        held.callback(self._end, "clean up")

    def activate(self, held: ExitStack) -> None:
        held.callback(self._end, "deactivate")
        self._maybe_break("activate")

    def work(self) -> None:
        self._maybe_break("work")

    def report(self, report: Report) -> str:
        return "whole"


@pytest.fixture
def fragile(peer: Peer) -> Iterator[Fragile]:
    with running(Fragile, peer, until=UNCONFIGURED) as node:
        yield node


def test_where_activating_breaks_it_stays_inactive_and_can_be_activated_later(
    peer: Peer, fragile: Fragile
) -> None:
    assert peer.change_state("fragile", CONFIGURE)
    for error, told in (
        (TiekdError("no film; load one"), "no film; load one"),
        (KeyError("a"), "KeyError: 'a'"),
    ):
        fragile.breaks = {"activate": error}
        assert not peer.change_state("fragile", ACTIVATE)
        assert peer.state_of("fragile") == INACTIVE
        assert fragile.freed.pop() == "deactivate"
        peer.await_diagnosis("fragile", f"cannot activate: {told}", DiagnosticStatus.ERROR)
    fragile.breaks = {}
    assert peer.change_state("fragile", ACTIVATE)
    peer.await_diagnosis("fragile", "whole", DiagnosticStatus.OK)


@pytest.mark.parametrize("step", ["deactivate", "clean up"])
def test_where_ending_breaks_the_rest_is_ended_and_the_node_can_be_configured_again(
    peer: Peer, fragile: Fragile, step: str
) -> None:
    assert peer.change_state("fragile", CONFIGURE)
    assert peer.change_state("fragile", ACTIVATE)
    fragile.breaks = {step: OSError("stuck")}
    results = [peer.change_state("fragile", t) for t in (DEACTIVATE, CLEANUP)]
    assert not all(results)
    assert peer.state_of("fragile") == UNCONFIGURED
    assert len(fragile.freed) == 1
    peer.await_diagnosis("fragile", "cannot", DiagnosticStatus.ERROR)
    fragile.breaks = {}
    assert peer.change_state("fragile", CONFIGURE)
    assert peer.change_state("fragile", ACTIVATE)


def test_a_report_that_breaks_does_not_end_the_node(peer: Peer, fragile: Fragile) -> None:
    assert peer.change_state("fragile", CONFIGURE)
    fragile.breaks = {"work": KeyError("a")}
    assert peer.change_state("fragile", ACTIVATE)
    peer.await_diagnosis("fragile", "KeyError: 'a'", DiagnosticStatus.ERROR)
    fragile.breaks = {}
    peer.await_diagnosis("fragile", "whole", DiagnosticStatus.OK)


def test_a_gpu_that_does_not_answer_is_told_and_silences_nothing_else(
    peer: Peer, fragile: Fragile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(device: int) -> int:
        raise RuntimeError("CUDA error: device-side assert triggered\nmore lines")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "memory_reserved", broken)
    said = peer.await_diagnosis("fragile", "the GPU does not answer", DiagnosticStatus.ERROR)
    assert "(CUDA error: device-side assert triggered)" in said.message
    assert "not configured; configure the node" in said.message
    assert float(said.values["memory [MB]"]) > 20
