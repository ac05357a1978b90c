"""companion_node's rounds, with a real worker process that gives way to a slow depth node."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from lifecycle_msgs.msg import Transition
from std_msgs.msg import Bool

from helpers.frames import FROM_BASE, stretch_labels
from helpers.students import small_student
from ros_helpers.companion import learning_companion, stats
from ros_helpers.messages import camera_info, image_message
from ros_helpers.peer import INACTIVE, Peer
from ros_helpers.waiting import wait_for
from tiekd_ros.core.state import StateFolder
from tiekd_ros.diagnosis import keys
from tiekd_ros.student.registry import StudentRegistry

NODE = "companion_node"
GUARD = "latency guard"
BUDGET_MS = 40.0
RESOURCES = {"latency_budget_ms": BUDGET_MS, "longest_pause_s": 3600.0}


def test_a_round_with_too_few_frames_is_refused_with_the_numbers(
    peer: Peer, state: StateFolder
) -> None:
    with learning_companion(peer, state):
        started, message = peer.trigger("distill")
    assert not started
    assert "0 for training (need 8), 0 held out (need 2)" in message


def test_no_round_starts_by_period_or_by_request_until_the_companion_is_active(
    peer: Peer, filled: StateFolder
) -> None:
    distill = {"period_s": 0.1, "min_new_labels": 12}
    with learning_companion(peer, filled, INACTIVE, distill=distill):
        assert peer.trigger("distill") == (False, "the companion is inactive; activate it")
        peer.await_reports(NODE, 3)
        assert "round" not in peer.diagnosis(NODE).values
        assert peer.change_state(NODE, Transition.TRANSITION_ACTIVATE)
        wait_for(lambda: peer.statuses and peer.statuses[-1]["stage"] == "training", "training")
        assert peer.statuses[-1]["round"] == "1"


def test_a_round_trains_reports_promotes_and_announces_and_only_one_runs_at_a_time(
    peer: Peer, filled: StateFolder
) -> None:
    with learning_companion(peer, filled):
        started, message = peer.trigger("distill")
        assert started
        assert "round 1 started: 12 frames to train on, 12 held out" in message
        started, message = peer.trigger("distill")
        assert not started
        assert "busy: round 1" in message
        status = peer.await_round(1)
        assert status["state"] == "promoted"
        assert status["version"] == "000001"
        assert float(status["after.rmse"]) < float(status["before.rmse"])
        stages = {s["stage"] for s in peer.statuses}
        assert {"loading", "training", "judging", "done"} <= stages
        assert any(int(s["step"]) > 0 and s["loss"] for s in peer.statuses)
        wait_for(lambda: peer.students == ["000001"], "the announcement")
        peer.await_value(NODE, "round state", "promoted")
        assert stats(filled).new_labels == 0
    assert StudentRegistry(filled.students).live() == "000001"


def test_the_first_labels_bring_a_student_without_a_call_and_a_round_replaces_it(
    peer: Peer, filled: StateFolder
) -> None:
    with learning_companion(peer, filled, student=FROM_BASE):
        status = peer.await_round(1)
        assert (status["kind"], status["trigger"]) == ("calibration", "first labels: 24")
        assert status["state"] == "promoted", status["reason"]
        assert status["reason"].startswith("calibrated base: its depth times ")
        wait_for(lambda: peer.students == ["000001"], "the announcement")
        assert stats(filled).new_labels == 12
        stretch_labels(filled.frames)  # 12 frames train no student that is better than the base
        assert peer.trigger("distill")[0]
        status = peer.await_round(2)
        assert (status["state"], status["baseline"]) == ("promoted", "incumbent")
        wait_for(lambda: peer.students == ["000001", "000002"], "the announcement")
        peer.await_reports(NODE, 2)
        assert peer.statuses[-1]["round"] == "2"  # no calibration follows


def test_a_base_that_is_refused_is_not_tried_again_with_the_same_labels_and_diagnostics_say_why(
    peer: Peer, filled: StateFolder
) -> None:
    with learning_companion(peer, filled, student=FROM_BASE, gate={"first_margin": 0.05}):
        assert peer.await_round(1)["state"] == "refused"
        text = "no depth yet: the base student was refused (calibrated base: its depth times "
        found = peer.await_diagnosis(NODE, text, DiagnosticStatus.WARN)
        assert found.values["round trigger"] == "first labels: 24"
        assert "it is tried again with 48 labels, or call the distill service" in found.message
        peer.await_reports(NODE, 3)
        assert peer.statuses[-1]["round"] == "1"


def test_a_candidate_that_the_gate_refuses_is_kept_and_never_announced(
    peer: Peer, filled: StateFolder
) -> None:
    with learning_companion(peer, filled, gate={"first_margin": 0.05}, train={"iterations": 2}):
        assert peer.trigger("distill")[0]
        status = peer.await_round(1)
        assert status["state"] == "refused"
        assert "best constant" in status["reason"]
        peer.await_value(NODE, "round state", "refused")
    registry = StudentRegistry(filled.students)
    assert registry.versions() == ["000001"]
    assert registry.live() is None
    assert not peer.students


def test_a_round_by_period_waits_for_new_labels_and_for_the_charger(
    peer: Peer, filled: StateFolder
) -> None:
    settings = {"period_s": 0.1, "min_new_labels": 13, "only_while_charging": True}
    with learning_companion(peer, filled, distill=settings):
        peer.await_reports(NODE, 2)  # each long after the period
        held = peer.diagnosis(NODE).values[keys.ROUND_NEXT]
        assert held.startswith("held back: the robot does not charge"), held
        charging = peer.node.create_publisher(Bool, f"{peer.namespace}/charging", 1)
        wait_for(charging.get_subscription_count, "the companion")
        charging.publish(Bool(data=True))
        waits = "by period, 13 new labels (now 12)"
        wait_for(lambda: peer.diagnosis(NODE).values[keys.ROUND_NEXT] == waits, waits)
        assert "round" not in peer.diagnosis(NODE).values
        assert peer.set_parameter(NODE, "distill.min_new_labels", 12).successful
        wait_for(lambda: "round" in peer.diagnosis(NODE).values, "a round")


def test_a_round_on_a_damaged_student_or_pointer_fails_with_its_reason(
    peer: Peer, filled: StateFolder
) -> None:
    registry = StudentRegistry(filled.students)
    registry.promote(registry.add(small_student()).version)
    weights = registry.root / "000001" / "student.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with learning_companion(peer, filled):
        for number, damaged in ((1, "000001"), (2, "live.json is damaged")):
            assert peer.trigger("distill")[0]
            status = peer.await_round(number)
            assert status["state"] == "failed"
            assert damaged in status["reason"]
            peer.await_diagnosis(NODE, f"round {number} failed", DiagnosticStatus.WARN)
            assert registry.versions() == ["000001"]
            (filled.students / "live.json").write_text("{")
        assert not peer.trigger("rollback")[0]


def test_promotions_by_another_program_and_rollbacks_are_announced(
    peer: Peer, state: StateFolder
) -> None:
    registry = StudentRegistry(state.students)
    first, second = (registry.add(small_student(seed)).version for seed in (1, 2))
    with learning_companion(peer, state):
        peer.await_reports(NODE)
        assert not peer.students
        registry.promote(first)
        wait_for(lambda: peer.students == [first], "the announcement")
        done, message = peer.trigger("rollback")
        assert not done
        assert "no earlier version" in message
        registry.promote(second)
        wait_for(lambda: peer.students == [first, second], "the announcement")
        assert peer.trigger("rollback") == (True, f"back to student {first}")
        wait_for(lambda: peer.students == [first, second, first], "the version before")


# The latency of the depth node.


class SlowDepthNode:
    """Reports the latency of a depth node."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._pub = peer.node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._name = f"{peer.namespace}/depth_node"

    def report(self, p95_ms: float, name: str = "", kind: str = "depth_node") -> None:
        values = {"kind": kind, "latency p95 [ms]": f"{p95_ms:.3f}"}
        status = DiagnosticStatus(
            name=name or self._name, values=[KeyValue(key=k, value=v) for k, v in values.items()]
        )
        self._pub.publish(DiagnosticArray(status=[status]))

    def report_until(self, p95_ms: float, key: str, value: str) -> None:
        """Say it every half second until distill/status has this value."""
        wait_for(
            lambda: self._peer.statuses and self._peer.statuses[-1][key] == value,
            f"{key} = {value} in distill/status",
            nudge=lambda: self.report(p95_ms),
            explain=lambda: self._peer.statuses[-1:],
        )


@pytest.fixture
def companion(peer: Peer, filled: StateFolder) -> Iterator[None]:
    with learning_companion(peer, filled, train={"iterations": 10**6}, resources=RESOURCES):
        yield


@pytest.mark.usefixtures("companion")
def test_training_is_paused_while_the_depth_node_is_over_its_budget_and_training_may_be_why(
    peer: Peer,
) -> None:
    """One round for all: its worker takes seconds to get to its training."""
    assert peer.trigger("distill")[0]
    wait_for(lambda: peer.statuses and int(peer.statuses[-1]["step"]) > 0, "training steps")
    depth = SlowDepthNode(peer)

    def report_all() -> None:  # other nodes' latency is no reason to pause
        depth.report(900.0, name="/elsewhere/depth_node")
        depth.report(900.0, kind="camera_node")
        depth.report(30.0)

    for _ in range(3):
        step = int(peer.statuses[-1]["step"])
        report_all()
        wait_for(lambda step=step: int(peer.statuses[-1]["step"]) > step, "steps", nudge=report_all)
    peer.await_value(NODE, GUARD, "monitoring: p95 30.0 ms, budget 40.0 ms")
    assert {s["paused"] for s in peer.statuses} == {"False"}

    depth.report_until(60.0, "paused", "True")
    paused = peer.statuses[-1]
    assert paused["stage"] == "training"
    peer.await_value(NODE, GUARD, "paused: p95 60.0 ms, budget 40.0 ms")
    peer.await_value(NODE, "round paused", "True")
    depth.report_until(20.0, "paused", "False")
    wait_for(lambda: int(peer.statuses[-1]["step"]) > int(paused["step"]), "more steps")
    assert float(peer.statuses[-1]["paused_seconds"]) > 0

    # Where the node is still slow after the longest pause, training is not the cause.
    assert peer.set_parameter(NODE, "resources.longest_pause_s", 1.0).successful
    so_far = float(peer.statuses[-1]["paused_seconds"])
    wait_for(
        lambda: float(peer.statuses[-1]["paused_seconds"]) > so_far,
        "another pause",
        nudge=lambda: depth.report(60.0),
    )
    depth.report_until(60.0, "paused", "False")
    found = peer.await_diagnosis(NODE, "slow though training was paused", DiagnosticStatus.WARN)
    assert found.values[GUARD] == "not the cause: p95 60.0 ms, budget 40.0 ms"


@pytest.mark.usefixtures("companion", "depth_node")
def test_the_companion_knows_the_latency_of_the_depth_node_beside_it(peer: Peer) -> None:
    assert peer.set_parameter(NODE, "resources.latency_budget_ms", 60_000.0).successful
    wait_for(
        lambda: peer.diagnosis(NODE).values.get(GUARD, "").startswith("monitoring: p95 "),
        "the depth node's latency",
        nudge=lambda: peer.show(image_message(), camera_info()),
        explain=lambda: peer.diagnosis(NODE),
    )
