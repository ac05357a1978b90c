"""companion_node evaluates what a round promoted on new frames, with a real worker process."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition

from helpers.canaries import FRAMES, promote_bad, promote_good
from helpers.students import small_student
from ros_helpers.companion import learning_companion
from ros_helpers.peer import ACTIVE, INACTIVE, Peer
from ros_helpers.waiting import wait_for
from tiekd_ros.core.state import StateFolder
from tiekd_ros.nodes.companion.node import CompanionNode
from tiekd_ros.rounds.round_log import RoundLog, RoundRecord
from tiekd_ros.student.registry import StudentRegistry

NODE = "companion_node"
CANARY = {"frames": FRAMES}


def companion(
    peer: Peer, state: StateFolder, until: str = ACTIVE, **settings: dict[str, Any]
) -> AbstractContextManager[CompanionNode]:
    return learning_companion(peer, state, until, **{"canary": CANARY, **settings})


def await_end(peer: Peer, how: str) -> dict[str, str]:
    """Wait until distill/status says how the canary ended, and return its values."""
    wait_for(
        lambda: peer.statuses and peer.statuses[-1].get("canary") == how,
        f"a canary that {how}",
        explain=lambda: (peer.statuses[-1:], peer.diagnosis(NODE)),
    )
    return peer.statuses[-1]


def test_a_student_that_is_worse_is_taken_back_announced_and_told_everywhere(
    peer: Peer, filled: StateFolder
) -> None:
    promote_bad(filled)
    with companion(peer, filled, INACTIVE):
        peer.await_reports(NODE, 3)
        assert not peer.statuses  # it judges nothing unless it is active
        assert peer.change_state(NODE, Transition.TRANSITION_ACTIVATE)
        status = await_end(peer, "rolled back")
        assert (status["round"], status["stage"], status["version"]) == ("2", "done", "000002")
        assert status["canary.predecessor"] == "000001"
        assert status["canary.frames"] == str(FRAMES)
        assert float(status["canary.after.rmse"]) > float(status["canary.before.rmse"])
        assert "on 8 frames since its promotion AbsRel" in status["canary.reason"]
        assert "judging" in [s.get("canary") for s in peer.statuses]
        wait_for(lambda: peer.students[-1:] == ["000001"], "the announcement")
        told = "student 000002 was rolled back to 000001 by the canary evaluation: on 8 frames"
        peer.await_diagnosis(NODE, told, DiagnosticStatus.WARN)
        peer.await_value(NODE, "canary", "rolled back")
    registry = StudentRegistry(filled.students)
    assert registry.live() == "000001"
    assert registry.card("000002").status == "rolled back"


def test_a_good_student_stays_and_its_canary_is_said_to_be_kept(
    peer: Peer, filled: StateFolder
) -> None:
    promote_good(filled)
    with companion(peer, filled):
        await_end(peer, "kept")
        peer.await_value(NODE, "canary", "kept")
        assert "rolled back" not in peer.diagnosis(NODE).message
        assert peer.students == ["000002"]
    assert StudentRegistry(filled.students).live() == "000002"


def test_it_says_how_many_frames_it_waits_for_and_takes_another_number_at_once(
    peer: Peer, filled: StateFolder
) -> None:
    promote_bad(filled)
    with companion(peer, filled, canary={"frames": 13}):
        peer.await_value(NODE, "canary", "waiting: 12 of 13 frames")
        assert not peer.set_parameter(NODE, "canary.frames", 3).successful
        assert peer.set_parameter(NODE, "canary.enabled", False).successful
        peer.await_value(NODE, "canary", "off (canary.enabled)")
        assert peer.set_parameter(NODE, "canary.frames", 12).successful
        assert peer.set_parameter(NODE, "canary.enabled", True).successful
        await_end(peer, "rolled back")


def test_after_several_rollbacks_no_round_starts_by_its_period(
    peer: Peer, filled: StateFolder
) -> None:
    promote_bad(filled)
    log = RoundLog(filled.rounds)
    record = log.record(2)
    assert record is not None
    assert record.canary is not None
    gone = dataclasses.replace(record.canary, state="rolled back", reason="much worse")
    for number in (2, 3, 4):
        log.save(dataclasses.replace(record, number=number, canary=gone))
    StudentRegistry(filled.students).rollback()
    with companion(peer, filled, distill={"period_s": 0.1, "min_new_labels": 1}):
        peer.await_diagnosis(NODE, "the last 3 promotions were rolled back", DiagnosticStatus.WARN)
        peer.await_reports(NODE)
        assert log.numbers() == [2, 3, 4]
        assert peer.trigger("distill")[0]  # by request it starts all the same
        wait_for(lambda: log.numbers() == [2, 3, 4, 5], "the round")


def test_a_round_is_refused_while_a_canary_is_judged_and_only_a_rounds_promotion_has_one(
    peer: Peer, filled: StateFolder
) -> None:
    registry = StudentRegistry(filled.students)
    busy = "busy: the canary is judging on this state folder; wait for it to end"
    with companion(peer, filled):
        with RoundLog(filled.rounds).lock("the canary is judging"):
            assert peer.trigger("distill") == (False, busy)
        for seed in (1, 2):
            registry.promote(registry.add(small_student(seed)).version)
        wait_for(lambda: peer.students[-1:] == ["000002"], "the announcement")
        assert "canary" not in peer.diagnosis(NODE).values
        RoundLog(filled.rounds).save(RoundRecord(1, state="promoted", version="000001"))
        peer.await_value(NODE, "canary", "none: nothing is known that student 000001 replaced")
