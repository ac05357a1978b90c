"""companion_node has training rest while the depth node is slow; a real worker rests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from helpers.frames import filled_state
from helpers.students import small_student
from ros_helpers.companion import round_parameters
from ros_helpers.messages import camera_info, image_message
from ros_helpers.peer import Peer, running
from ros_helpers.waiting import wait_for
from tiekd_ros.core.state import StateFolder
from tiekd_ros.nodes.companion.node import CompanionNode
from tiekd_ros.nodes.depth.node import DepthNode
from tiekd_ros.student.registry import StudentRegistry

NODE = "companion_node"
GUARD = "latency guard"
BUDGET_MS = 40.0
BESIDE = {"latency_budget_ms": BUDGET_MS, "longest_pause_s": 3600.0}


class SlowNode:
    """Says what a depth node would say of its latency."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._pub = peer.node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._name = f"{peer.namespace}/depth_node"

    def say(self, p95_ms: float, name: str = "", kind: str = "depth_node") -> None:
        values = {"kind": kind, "latency p95 [ms]": f"{p95_ms:.3f}"}
        status = DiagnosticStatus(
            name=name or self._name, values=[KeyValue(key=k, value=v) for k, v in values.items()]
        )
        self._pub.publish(DiagnosticArray(status=[status]))

    def say_until(self, p95_ms: float, key: str, value: str) -> None:
        """Say it every half second until distill/status has this value."""
        wait_for(
            lambda: self._peer.statuses and self._peer.statuses[-1][key] == value,
            f"{key} = {value} in distill/status",
            nudge=lambda: self.say(p95_ms),
            explain=lambda: self._peer.statuses[-1:],
        )


@pytest.fixture
def companion(peer: Peer, tmp_path: Path) -> Iterator[CompanionNode]:
    state = filled_state(tmp_path / "state")
    parameters = round_parameters(train={"iterations": 10**6}, resources=BESIDE)
    with running(
        CompanionNode, peer, state_dir=str(state.root), teacher__url="", **parameters
    ) as node:
        yield node


@pytest.mark.usefixtures("companion")
def test_training_is_paused_while_the_depth_node_is_over_its_budget_and_training_may_be_why(
    peer: Peer,
) -> None:
    """One round for all: its worker takes seconds to get to its training."""
    assert peer.trigger("distill")[0]
    wait_for(lambda: peer.statuses and int(peer.statuses[-1]["step"]) > 0, "training steps")
    depth = SlowNode(peer)

    def say_all() -> None:  # other nodes' latency is no reason to pause
        depth.say(900.0, name="/elsewhere/depth_node")
        depth.say(900.0, kind="camera_node")
        depth.say(30.0)

    for _ in range(3):
        step = int(peer.statuses[-1]["step"])
        say_all()
        wait_for(lambda step=step: int(peer.statuses[-1]["step"]) > step, "steps", nudge=say_all)
    peer.await_value(NODE, GUARD, "monitoring: p95 30.0 ms, budget 40.0 ms")
    assert {s["paused"] for s in peer.statuses} == {"False"}

    depth.say_until(60.0, "paused", "True")
    paused = peer.statuses[-1]
    assert paused["stage"] == "training"
    peer.await_value(NODE, GUARD, "paused: p95 60.0 ms, budget 40.0 ms")
    peer.await_value(NODE, "round paused", "True")
    depth.say_until(20.0, "paused", "False")
    wait_for(lambda: int(peer.statuses[-1]["step"]) > int(paused["step"]), "more steps")
    assert float(peer.statuses[-1]["paused_seconds"]) > 0

    # Where the node is still slow after the longest pause, training is not the cause.
    assert peer.set_parameter(NODE, "resources.longest_pause_s", 1.0).successful
    so_far = float(peer.statuses[-1]["paused_seconds"])
    wait_for(
        lambda: float(peer.statuses[-1]["paused_seconds"]) > so_far,
        "another pause",
        nudge=lambda: depth.say(60.0),
    )
    depth.say_until(60.0, "paused", "False")
    found = peer.await_diagnosis(NODE, "slow though training was paused", DiagnosticStatus.WARN)
    assert found.values[GUARD] == "not the cause: p95 60.0 ms, budget 40.0 ms"


def test_the_companion_knows_the_latency_of_the_depth_node_beside_it(
    peer: Peer, companion: CompanionNode, tmp_path: Path
) -> None:
    state = StateFolder(tmp_path / "depth").create()
    registry = StudentRegistry(state.students)
    registry.promote(registry.add(small_student()).version)
    assert peer.set_parameter(NODE, "resources.latency_budget_ms", 60_000.0).successful
    with running(DepthNode, peer, state_dir=str(state.root)):
        wait_for(
            lambda: peer.diagnosis(NODE).values.get(GUARD, "").startswith("monitoring: p95 "),
            "the depth node's latency",
            nudge=lambda: peer.show(image_message(), camera_info()),
            explain=lambda: peer.diagnosis(NODE),
        )
