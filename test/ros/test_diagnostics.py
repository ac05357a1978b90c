"""/diagnostics: what both nodes say of themselves, and the limits that are parameters."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus

from helpers.students import small_student
from ros_helpers.companion import log_pictures, logging_companion
from ros_helpers.messages import camera_info, image_message
from ros_helpers.peer import UNCONFIGURED, Peer, refusal, running
from ros_helpers.waiting import wait_for
from tiekd_ros.core.state import StateFolder
from tiekd_ros.diagnosis.thresholds import (
    CompanionDiagnosticSettings,
    DepthDiagnosticSettings,
    Limit,
)
from tiekd_ros.nodes.common.managed import ManagedNode
from tiekd_ros.nodes.companion.node import CompanionNode
from tiekd_ros.nodes.depth.node import DepthNode
from tiekd_ros.rounds.round_log import RoundLog, RoundRecord, RoundState
from tiekd_ros.student.registry import StudentRegistry

DEPTH, COMPANION = "depth_node", "companion_node"
OLD = "2020-02-29T12:00:00+00:00"


@pytest.fixture
def depth_node(peer: Peer, state: StateFolder) -> Iterator[DepthNode]:
    registry = StudentRegistry(state.students)
    registry.promote(registry.add(small_student(created=OLD)).version)
    with running(DepthNode, peer, state_dir=str(state.root)) as node:
        yield node


def set_parameter(peer: Peer, node: str, name: str, value: object) -> None:
    result = peer.set_parameter(node, f"diagnostics.{name}", value)
    assert result.successful, result.reason


def await_text(peer: Peer, node: str, text: str, level: bytes) -> None:
    """Wait for a finding, showing images, since most are of a stream."""
    peer.await_diagnosis(node, text, level, image_message(), camera_info())


@pytest.mark.usefixtures("depth_node")
class TestDepthNode:
    def test_a_limit_that_is_reached_is_warned_of_or_an_error_and_may_be_changed_or_off(
        self, peer: Peer
    ) -> None:
        peer.depth_of(image_message(), camera_info())
        peer.await_value(DEPTH, "kind", DEPTH)
        peer.await_above(DEPTH, "memory [MB]", 20)
        peer.await_above(DEPTH, "student age [days]", 2000)
        for name, limit, text in (
            ("memory_mb", 1, "MB, limit 1; see what grows"),
            ("depth_rate", 1e6, "depth comes at"),
            ("latency_p95_ms", 1e-3, "p95 latency is"),
            ("student_age_days", 30, "days old, limit 30; call the distill service"),
        ):
            assert text not in peer.diagnosis(DEPTH).message
            set_parameter(peer, DEPTH, f"{name}_warn", limit)
            await_text(peer, DEPTH, text, DiagnosticStatus.WARN)
            set_parameter(peer, DEPTH, f"{name}_error", limit)
            await_text(peer, DEPTH, text, DiagnosticStatus.ERROR)
            set_parameter(peer, DEPTH, f"{name}_error", 0)
            set_parameter(peer, DEPTH, f"{name}_warn", 0)
            await_text(peer, DEPTH, "publishing depth", DiagnosticStatus.OK)

    def test_dropped_images_are_a_share(self, peer: Peer) -> None:
        set_parameter(peer, DEPTH, "drop_share_warn", 0.01)

        def burst() -> None:
            for number in range(20):
                peer.show(image_message(number), camera_info())

        wait_for(
            lambda: "of the images are dropped" in peer.diagnosis(DEPTH).message,
            "drops",
            nudge=burst,
            explain=lambda: peer.diagnosis(DEPTH),
        )
        assert 0 < float(peer.diagnosis(DEPTH).values["drop share"]) <= 1

    def test_an_error_before_its_warning_is_refused(self, peer: Peer) -> None:
        for name, warn, error in (("latency_p95_ms", 50, 20), ("depth_rate", 5, 8)):
            set_parameter(peer, DEPTH, f"{name}_warn", warn)
            result = peer.set_parameter(DEPTH, f"diagnostics.{name}_error", error)
            assert not result.successful
            assert f"diagnostics.{name}_error must be at" in result.reason

    def test_without_subscribers_the_paused_network_is_no_cause_for_alarm(self, peer: Peer) -> None:
        set_parameter(peer, DEPTH, "depth_rate_error", 1e6)
        peer.depth_of(image_message(), camera_info())
        await_text(peer, DEPTH, "depth comes at", DiagnosticStatus.ERROR)
        peer.stop_listening("depth")
        await_text(peer, DEPTH, "depth has no subscribers", DiagnosticStatus.OK)


@pytest.mark.parametrize("kind", [DepthNode, CompanionNode])
def test_the_hardware_id_is_the_hosts_name_or_the_given_one(
    peer: Peer, kind: type[ManagedNode]
) -> None:
    ids: list[str] = []

    def keep(message: DiagnosticArray) -> None:
        ids.extend(s.hardware_id for s in message.status if s.name.startswith(peer.namespace))

    peer.node.create_subscription(DiagnosticArray, "/diagnostics", keep, 10)
    with running(kind, peer, until=UNCONFIGURED) as node:
        wait_for(lambda: set(ids) == {socket.gethostname()}, "the host's name")
        assert peer.set_parameter(node.get_name(), "diagnostics.hardware_id", "robot-7").successful
        wait_for(lambda: ids[-1] == "robot-7", "the given one")


def test_what_is_a_fault_on_any_robot_is_warned_of_from_the_start() -> None:
    depth, companion = DepthDiagnosticSettings(), CompanionDiagnosticSettings()
    assert depth.limit("drop_share") == Limit(0.5, 0)
    assert depth.limit("valid_share") == Limit(0.05, 0, below=True)
    assert companion.limit("label_backlog") == Limit(1000, 0)
    assert companion.limit("round_trip_p95_ms") == Limit(5000, 0)
    for name in ("depth_rate", "latency_p95_ms", "memory_mb", "student_age_days"):
        assert (depth.limit(name).warn, depth.limit(name).error) == (0, 0)


def test_contradicting_limits_are_refused_at_the_start(peer: Peer) -> None:
    values = {"diagnostics__label_backlog_warn": 9, "diagnostics__label_backlog_error": 3}
    said = refusal(CompanionNode, peer, **values)
    assert "diagnostics.label_backlog_error must be at least" in said


def test_limits_of_backlog_and_fill(peer: Peer, state: StateFolder) -> None:
    with logging_companion(peer, state):
        log_pictures(peer, state, range(2))
        set_parameter(peer, COMPANION, "label_backlog_warn", 2)
        text = "2 frames wait for a label, limit 2; see the teacher link"
        peer.await_diagnosis(COMPANION, text, DiagnosticStatus.WARN)
        set_parameter(peer, COMPANION, "label_backlog_warn", 3)
        set_parameter(peer, COMPANION, "frame_log_fill_error", 1e-6)
        peer.await_diagnosis(COMPANION, "the frame log is 0% full", DiagnosticStatus.ERROR)
        assert "wait for a label" not in peer.diagnosis(COMPANION).message


@pytest.mark.parametrize("last", [RoundState.PROMOTED, RoundState.FAILED])
def test_after_a_restart_it_still_says_what_came_of_the_last_round(
    peer: Peer, state: StateFolder, last: str
) -> None:
    log = RoundLog(state.rounds)
    log.save(RoundRecord(6, state=RoundState.FAILED, stage="done", reason="no memory"))
    log.save(RoundRecord(7, state=last, stage="done", reason="as it was"))
    with logging_companion(peer, state):
        peer.await_value(COMPANION, "round result", "as it was")
        values = peer.diagnosis(COMPANION).values
        assert (values["round"], values["round state"]) == ("7", last)
        failed = "round 7 failed: as it was" in peer.diagnosis(COMPANION).message
        assert failed == (last == RoundState.FAILED)
