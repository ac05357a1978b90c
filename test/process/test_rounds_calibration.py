"""Calibrations of the base student by a long-lived process, and what their deaths leave."""

from __future__ import annotations

import os
import signal

import pytest

from helpers.children import wait_until
from helpers.frames import FROM_BASE, small_plan, stretch_labels
from helpers.rounds import OpenRounds
from helpers.students import small_student
from tiekd_ros.core.errors import RoundRefusedError
from tiekd_ros.rounds.round_log import RoundKind, RoundLog, RoundRecord

PLAN = small_plan(student=FROM_BASE, gate={"first_margin": 0.8}, train={"iterations": 1})


def start(rounds: OpenRounds) -> RoundRecord:
    return rounds.runner.start("first labels: 24", RoundKind.CALIBRATION)


@pytest.fixture
def calibrating(enter) -> OpenRounds:
    """Rounds of which a calibration is under way."""
    rounds = enter(PLAN)
    start(rounds)
    wait_until(lambda: any(record.stage == "loading" for record in rounds.seen))
    return rounds


def test_it_goes_live_takes_no_label_from_a_training_round_and_is_replaced_by_it(enter):
    rounds = enter(PLAN)
    record = start(rounds)
    assert (record.number, record.kind, record.labels) == (1, "calibration", 24)
    rounds.runner.wait()
    assert rounds.runner.record.state == "promoted", rounds.runner.record.reason
    assert rounds.registry.live() == "000001"
    assert rounds.store.stats().new_labels == 12
    assert rounds.log.last_calibration() == rounds.runner.record
    with pytest.raises(RoundRefusedError, match="student 000001 is live"):
        start(rounds)
    stretch_labels(rounds.state.frames)  # 12 frames train no student that is better than the base
    rounds.runner.set_plan(small_plan(student=FROM_BASE))
    done = rounds.run()
    assert (done.kind, done.state, done.baseline) == ("training", "promoted", "incumbent")
    assert done.canary.predecessor == "000001"
    assert rounds.registry.live() == "000002"
    assert rounds.store.stats().new_labels == 0


def test_one_whose_process_was_stopped_is_interrupted_and_not_resumed(calibrating, enter):
    calibrating.runner.stop()
    assert calibrating.states() == ["running"]  # as a killed process would leave it
    rounds = enter(PLAN)
    assert rounds.runner.resume_interrupted() is None
    assert rounds.states() == ["interrupted"]
    assert rounds.registry.versions() == []
    assert rounds.log.last_calibration() is None  # so its trigger comes again


def test_a_killed_worker_fails_it_and_leaves_nothing(calibrating, state):
    os.kill(calibrating.worker_pid(), signal.SIGKILL)
    calibrating.runner.wait()
    assert calibrating.states() == ["failed"]
    assert "killed by signal 9" in calibrating.runner.record.reason
    calibrating.registry.clean()
    assert list(state.students.iterdir()) == []
    assert calibrating.log.last_calibration().labels == 24


def test_a_verdict_that_a_killed_process_left_is_adopted(state, enter):
    rounds = enter(PLAN)
    RoundLog(state.rounds).save(RoundRecord(1, kind=RoundKind.CALIBRATION, labels=24))
    rounds.registry.add(small_student(round=1, status="accepted", reason="it fits"))
    rounds.store.mark_round_started()  # by a round of training that was killed before it
    assert rounds.runner.resume_interrupted().state == "promoted"
    assert rounds.registry.live() == "000001"
    assert rounds.store.stats().new_labels == 12
