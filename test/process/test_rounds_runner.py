"""Rounds as a long-lived process runs them: with a real worker, and with the worker's death."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from helpers.children import start_python, wait_until
from helpers.frames import small_plan
from helpers.rounds import ENDLESS, SHORT, House, worker_pids
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
def training(enter) -> House:
    """A house whose round is in mid-training."""
    house = enter(ENDLESS)
    house.runner.start()
    wait_until(house.in_training)
    return house


def leave_record(state: StateFolder, number: int, word: str = "running") -> None:
    RoundLog(state.rounds).save(RoundRecord(number, state=word, stage="training"))


def test_an_accepted_round_goes_live_and_its_frames_count_as_used(enter):
    house = enter(small_plan())
    assert house.store.stats().new_labels == 12
    record = house.runner.start()
    assert (record.number, record.state, record.train_frames) == (1, "running", 12)
    with pytest.raises(RoundRefusedError, match="busy: round 1 is"):
        house.runner.start()
    house.runner.wait()
    assert not house.runner.busy
    done = house.runner.record
    assert done.state == "promoted", done.reason
    assert done.stage == "done"
    assert done.after["rmse"] < done.before["rmse"]
    assert house.registry.live() == done.version == "000001"
    assert house.store.stats().new_labels == 0
    assert list(house.log.records()) == [done]
    stages = list(dict.fromkeys(r.stage for r in house.seen))
    assert stages == ["starting", "loading", "training", "judging", "done"]


def test_a_round_of_another_process_is_respected(state, enter):
    other = start_python("-c", HOLD_LOCK, str(state.rounds), stdin=subprocess.PIPE)
    assert other.stdout.readline() == "locked\n"
    house = enter(SHORT)
    with pytest.raises(RoundRefusedError, match="busy: another process"):
        house.runner.start()
    with pytest.raises(RoundRefusedError, match="busy: another process"):
        house.runner.resume_interrupted()
    assert house.log.numbers() == []
    other.send_signal(signal.SIGKILL)
    other.communicate()
    house.log.lock().close()  # the dead hold no lock


def test_a_killed_worker_fails_its_round_and_the_next_one_works(training):
    house = training
    os.kill(house.worker_pid(), signal.SIGKILL)
    house.runner.wait()
    assert house.runner.record.state == "failed"
    assert "killed by signal 9" in house.runner.record.reason
    assert house.registry.versions() == []
    assert house.store.stats().new_labels == 12
    house.runner.set_plan(SHORT)
    assert house.run().number == 2
    assert house.states() == ["failed", "refused"]
    assert "at most 0.05 is asked" in house.runner.record.reason
    assert house.registry.versions() == ["000001"]
    assert house.registry.live() is None


def test_a_round_that_was_stopped_is_taken_up_again(enter):
    house = enter(ENDLESS)
    house.runner.start()
    house.runner.stop()  # before its worker runs
    assert not house.runner.busy
    assert house.states() == ["running"]  # as a killed process would leave it
    house = enter(SHORT)
    assert house.runner.resume_interrupted().number == 2
    house.runner.wait()
    assert house.states() == ["interrupted", "refused"]


def test_a_round_that_a_person_stopped_is_remembered_as_interrupted(training):
    house = training
    house.runner.stop(resumable=False)
    assert house.states() == ["interrupted"]
    assert house.seen[-1] == house.runner.record
    assert (house.seen[-1].stage, house.seen[-1].reason) == ("done", "stopped by hand")
    assert house.runner.resume_interrupted() is None


def test_labels_that_a_round_could_have_drawn_are_not_new_after_it(enter):
    house = enter(small_plan(train={"iterations": 1}, distill={"max_frames": 6}))
    assert house.store.stats().new_labels == 12
    assert house.run().train_frames == 6
    assert house.store.stats().new_labels == 0


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
    house = enter(SHORT)
    leave_record(state, 4)
    house.registry.add(small_student(round=3, status="accepted"))
    card = house.registry.add(small_student(round=4, status="accepted", reason="much better"))
    record = house.runner.resume_interrupted()
    assert (record.number, record.state, record.version) == (4, "promoted", card.version)
    assert record.reason == "much better"
    assert house.registry.live() == card.version
    assert house.states() == ["promoted"]
    assert not house.runner.busy
    assert house.runner.resume_interrupted() is None


def test_a_refused_candidate_of_a_killed_process_is_adopted_as_refused(state, enter):
    house = enter(SHORT)
    assert house.runner.resume_interrupted() is None  # nothing was left
    leave_record(state, 1)
    house.registry.add(small_student(round=1, status="refused", reason="worse"))
    assert house.runner.resume_interrupted().state == "refused"
    assert house.registry.live() is None


def test_a_round_that_keeps_being_interrupted_is_not_started_for_ever(state, enter):
    leave_record(state, 1, "interrupted")
    leave_record(state, 2, "interrupted")
    leave_record(state, 3)
    house = enter(SHORT)
    assert house.runner.resume_interrupted() is None
    assert house.states() == ["interrupted"] * 3
    assert house.runner.resume_interrupted() is None


def test_a_damaged_record_is_passed_over_and_its_number_not_used_again(state, enter):
    leave_record(state, 1, "refused")
    (state.rounds / "000002.json").write_text('{"number": 2, "sta')
    house = enter(small_plan(distill={"min_frames": 13}))
    assert house.runner.resume_interrupted() is None
    with pytest.raises(RoundRefusedError, match="12 for training"):
        house.runner.start()
    assert not house.runner.busy
    assert house.log.numbers() == [1, 2]  # a refused round leaves no record
    assert [r.number for r in house.log.records()] == [1]
