"""companion_node's rounds and versions, with a real worker process on a small frame log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticStatus

from helpers.frames import filled_state
from helpers.students import small_student
from ros_helpers.companion import round_parameters, stats
from ros_helpers.peer import Peer, running
from ros_helpers.waiting import wait_for
from tiekd_ros.core.state import StateFolder
from tiekd_ros.nodes.companion.node import CompanionNode
from tiekd_ros.student.registry import StudentRegistry

NODE = "companion_node"
ENDLESS = {"train": {"iterations": 1_000_000}}


@pytest.fixture
def filled(tmp_path: Path) -> StateFolder:
    return filled_state(tmp_path / "state")


@contextmanager
def companion(
    peer: Peer, state: StateFolder, settings: dict[str, dict[str, Any]] | None = None
) -> Iterator[CompanionNode]:
    parameters = round_parameters(**(settings or {}))
    with running(
        CompanionNode, peer, state_dir=str(state.root), teacher__url="", **parameters
    ) as n:
        yield n


def test_a_round_with_too_few_frames_is_refused_with_the_numbers(
    peer: Peer, state: StateFolder
) -> None:
    with companion(peer, state):
        started, message = peer.trigger("distill")
    assert not started
    assert "0 for training (need 8), 0 held out (need 2)" in message


def test_a_round_trains_reports_promotes_and_announces(peer: Peer, filled: StateFolder) -> None:
    with companion(peer, filled):
        started, message = peer.trigger("distill")
        assert started
        assert "round 1 started: 12 frames to train on, 12 held out" in message
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


def test_a_candidate_that_the_gate_refuses_is_kept_and_never_announced(
    peer: Peer, filled: StateFolder
) -> None:
    with companion(peer, filled, {"gate": {"first_margin": 0.05}, "train": {"iterations": 2}}):
        assert peer.trigger("distill")[0]
        status = peer.await_round(1)
        assert status["state"] == "refused"
        assert "best constant" in status["reason"]
        peer.await_value(NODE, "round state", "refused")
    registry = StudentRegistry(filled.students)
    assert registry.versions() == ["000001"]
    assert registry.live() is None
    assert not peer.students


def test_a_second_call_while_a_round_runs_is_told_that_it_is_busy(
    peer: Peer, filled: StateFolder
) -> None:
    with companion(peer, filled, ENDLESS):
        assert peer.trigger("distill")[0]
        started, message = peer.trigger("distill")
        assert not started
        assert "busy: round 1" in message


def test_a_round_starts_by_itself_when_its_period_is_over_and_there_are_new_labels(
    peer: Peer, filled: StateFolder
) -> None:
    with companion(peer, filled, {"distill": {"period_s": 0.5, "min_new_labels": 12}}):
        wait_for(lambda: peer.statuses and peer.statuses[-1]["stage"] == "training", "training")
        assert peer.statuses[-1]["round"] == "1"


def test_a_round_by_period_waits_for_new_labels(peer: Peer, filled: StateFolder) -> None:
    with companion(peer, filled, {"distill": {"period_s": 0.1, "min_new_labels": 13}}):
        for _ in range(2):  # two ticks of the node, each long after the period
            before = peer.diagnosis(NODE)
            wait_for(lambda before=before: peer.diagnosis(NODE) is not before, "diagnostics")
        assert "round" not in peer.diagnosis(NODE).values
        assert peer.set_parameter(NODE, "distill.min_new_labels", 12).successful
        wait_for(lambda: "round" in peer.diagnosis(NODE).values, "a round")


def test_a_round_on_a_damaged_incumbent_fails_with_its_reason(
    peer: Peer, filled: StateFolder
) -> None:
    registry = StudentRegistry(filled.students)
    registry.promote(registry.add(small_student()).version)
    weights = registry.root / "000001" / "student.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with companion(peer, filled):
        assert peer.trigger("distill")[0]
        status = peer.await_round(1)
        assert status["state"] == "failed"
        assert "000001" in status["reason"]
        peer.await_diagnosis(NODE, "round 1 failed", DiagnosticStatus.WARN)
    assert registry.versions() == ["000001"]


def test_rollback_without_an_earlier_version_is_refused(peer: Peer, state: StateFolder) -> None:
    with companion(peer, state):
        done, message = peer.trigger("rollback")
    assert not done
    assert "no earlier version" in message


def test_rollback_announces_the_version_before(peer: Peer, state: StateFolder) -> None:
    registry = StudentRegistry(state.students)
    for seed in (1, 2):
        registry.promote(registry.add(small_student(seed)).version)
    with companion(peer, state):
        wait_for(lambda: peer.students == ["000002"], "the live version")
        assert peer.trigger("rollback") == (True, "back to student 000001")
        wait_for(lambda: peer.students == ["000002", "000001"], "the version before")


def test_a_promotion_by_another_program_is_announced(peer: Peer, state: StateFolder) -> None:
    registry = StudentRegistry(state.students)
    version = registry.add(small_student()).version
    with companion(peer, state):
        peer.await_diagnosis(NODE, "")
        wait_for(lambda: peer.diagnosis(NODE).values, "diagnostics")
        assert not peer.students
        registry.promote(version)
        wait_for(lambda: peer.students == [version], "the announcement")


def test_a_damaged_pointer_is_no_end(peer: Peer, filled: StateFolder) -> None:
    (filled.students / "live.json").write_text("{")
    with companion(peer, filled):
        assert peer.trigger("distill")[0]
        status = peer.await_round(1)
        assert status["state"] == "failed"
        assert "live.json is damaged" in status["reason"]
        assert not peer.trigger("rollback")[0]
