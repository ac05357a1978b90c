"""Rounds as a long-lived process runs them: with a real worker, and with the worker's death."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from helpers.children import start_python, wait_until
from helpers.frames import small_plan
from helpers.rounds import ENDLESS, SHORT, OpenRounds, worker_pids
from helpers.students import small_student
from tiekd_ros.core.errors import RoundRefusedError
from tiekd_ros.core.state import StateFolder
from tiekd_ros.rounds.round_log import RoundLog, RoundRecord

HOLD_LOCK = """
import sys
from pathlib import Path
from tiekd_ros.rounds.round_log import RoundLog
lock = RoundLog(Path(sys.argv[1])).lock()
print("locked", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def training(enter) -> OpenRounds:
    """Rounds of which one is in mid-training."""
    rounds = enter(ENDLESS)
    rounds.runner.start()
    wait_until(rounds.in_training)
    return rounds


def leave_record(state: StateFolder, number: int, word: str = "running") -> None:
    RoundLog(state.rounds).save(RoundRecord(number, state=word, stage="training"))


def test_an_accepted_round_goes_live_and_its_frames_count_as_used(enter):
    rounds = enter(small_plan())
    assert rounds.store.stats().new_labels == 12
    record = rounds.runner.start()
    assert (record.number, record.state, record.train_frames) == (1, "running", 12)
    with pytest.raises(RoundRefusedError, match="busy: round 1 is"):
        rounds.runner.start()
    rounds.runner.wait()
    assert not rounds.runner.busy
    done = rounds.runner.record
    assert done.state == "promoted", done.reason
    assert done.stage == "done"
    assert done.after["rmse"] < done.before["rmse"]
    assert rounds.registry.live() == done.version == "000001"
    assert rounds.store.stats().new_labels == 0
    assert list(rounds.log.records()) == [done]
    stages = list(dict.fromkeys(r.stage for r in rounds.seen))
    assert stages == ["starting", "loading", "training", "judging", "done"]


def test_a_round_of_another_process_is_respected(state, enter):
    other = start_python("-c", HOLD_LOCK, str(state.rounds), stdin=subprocess.PIPE)
    assert other.stdout.readline() == "locked\n"
    rounds = enter(SHORT)
    with pytest.raises(RoundRefusedError, match="busy: another process"):
        rounds.runner.start()
    with pytest.raises(RoundRefusedError, match="busy: another process"):
        rounds.runner.resume_interrupted()
    assert rounds.log.numbers() == []
    other.send_signal(signal.SIGKILL)
    other.communicate()
    rounds.log.lock().close()  # the dead hold no lock


def test_a_killed_worker_fails_its_round_and_the_next_one_works(training):
    rounds = training
    os.kill(rounds.worker_pid(), signal.SIGKILL)
    rounds.runner.wait()
    assert rounds.runner.record.state == "failed"
    assert "killed by signal 9" in rounds.runner.record.reason
    assert rounds.registry.versions() == []
    assert rounds.store.stats().new_labels == 12
    rounds.runner.set_plan(SHORT)
    assert rounds.run().number == 2
    assert rounds.states() == ["failed", "refused"]
    assert "at most 0.05 is asked" in rounds.runner.record.reason
    assert rounds.registry.versions() == ["000001"]
    assert rounds.registry.live() is None


def test_a_round_that_was_stopped_is_taken_up_again(enter):
    rounds = enter(ENDLESS)
    rounds.runner.start()
    rounds.runner.stop()  # before its worker runs
    assert not rounds.runner.busy
    assert rounds.states() == ["running"]  # as a killed process would leave it
    rounds = enter(SHORT)
    assert rounds.runner.resume_interrupted().number == 2
    rounds.runner.wait()
    assert rounds.states() == ["interrupted", "refused"]


def test_a_round_that_a_person_stopped_is_remembered_as_interrupted(training):
    rounds = training
    rounds.runner.stop(resumable=False)
    assert rounds.states() == ["interrupted"]
    assert rounds.seen[-1] == rounds.runner.record
    assert (rounds.seen[-1].stage, rounds.seen[-1].reason) == ("done", "stopped by hand")
    assert rounds.runner.resume_interrupted() is None


def test_labels_that_a_round_could_have_drawn_are_not_new_after_it(enter):
    rounds = enter(small_plan(train={"iterations": 1}, distill={"max_frames": 6}))
    assert rounds.store.stats().new_labels == 12
    assert rounds.run().train_frames == 6
    assert rounds.store.stats().new_labels == 0


def test_a_round_is_paused_says_so_is_resumed_and_can_be_stopped_paused(training, state):
    training.runner.pause()
    wait_until(lambda: training.runner.record.paused)
    assert training.runner.busy
    step = training.runner.record.step
    training.runner.pause()  # twice does no harm
    time.sleep(0.05)  # pauses are told in hundredths of a second
    training.runner.resume()
    wait_until(lambda: not training.runner.record.paused)
    wait_until(lambda: training.runner.record.step > step)
    assert training.runner.record.paused_seconds > 0
    assert [r.step for r in training.seen if r.paused] == [step]
    training.runner.pause()
    wait_until(lambda: training.runner.record.paused)
    training.runner.stop()
    assert not training.runner.busy
    assert training.states() == ["running"]  # as a killed process would leave it
    assert worker_pids(state) == []


def test_a_pause_ends_with_its_round(training):
    training.runner.pause()
    wait_until(lambda: training.runner.record.paused)
    os.kill(training.worker_pid(), signal.SIGKILL)
    training.runner.wait()
    assert (training.runner.record.state, training.runner.record.paused) == ("failed", False)
    training.runner.resume()  # there is no worker
    training.runner.pause()
    training.seen.clear()
    training.runner.start()
    wait_until(training.in_training)


def test_an_accepted_candidate_of_a_killed_process_is_adopted_and_goes_live(state, enter):
    rounds = enter(SHORT)
    leave_record(state, 4)
    rounds.registry.add(small_student(round=3, status="accepted"))
    card = rounds.registry.add(small_student(round=4, status="accepted", reason="much better"))
    record = rounds.runner.resume_interrupted()
    assert (record.number, record.state, record.version) == (4, "promoted", card.version)
    assert record.reason == "much better"
    assert rounds.registry.live() == card.version
    assert rounds.states() == ["promoted"]
    assert not rounds.runner.busy
    assert rounds.runner.resume_interrupted() is None


def test_a_refused_candidate_of_a_killed_process_is_adopted_as_refused(state, enter):
    rounds = enter(SHORT)
    assert rounds.runner.resume_interrupted() is None  # nothing was left
    leave_record(state, 1)
    rounds.registry.add(small_student(round=1, status="refused", reason="worse"))
    assert rounds.runner.resume_interrupted().state == "refused"
    assert rounds.registry.live() is None


def test_a_round_that_keeps_being_interrupted_is_not_started_for_ever(state, enter):
    leave_record(state, 1, "interrupted")
    leave_record(state, 2, "interrupted")
    leave_record(state, 3)
    rounds = enter(SHORT)
    assert rounds.runner.resume_interrupted() is None
    assert rounds.states() == ["interrupted"] * 3
    assert rounds.runner.resume_interrupted() is None


def test_a_damaged_record_is_passed_over_and_its_number_not_used_again(state, enter):
    leave_record(state, 1, "refused")
    (state.rounds / "000002.json").write_text('{"number": 2, "sta')
    rounds = enter(small_plan(distill={"min_frames": 13}))
    assert rounds.runner.resume_interrupted() is None
    with pytest.raises(RoundRefusedError, match="12 for training"):
        rounds.runner.start()
    assert not rounds.runner.busy
    assert rounds.log.numbers() == [1, 2]  # a refused round leaves no record
    assert [r.number for r in rounds.log.records()] == [1]
