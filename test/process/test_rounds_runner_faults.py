"""Rounds when others misbehave: subscribers, workers, terminals, and people."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from helpers.children import child_environment, wait_until
from helpers.rounds import ENDLESS, SHORT, House, said, verdict, worker_pids
from helpers.students import small_student
from tiekd_ros.cli import students as offline
from tiekd_ros.core.state import StateFolder
from tiekd_ros.rounds import worker_process
from tiekd_ros.rounds.round_log import RoundLog, RoundRecord
from tiekd_ros.rounds.runner import RoundRunner

COMPANION = """
import signal, sys, threading
from pathlib import Path
from helpers.rounds import ENDLESS, House
from tiekd_ros.core.state import StateFolder
interrupted = threading.Event()
signal.signal(signal.SIGINT, lambda *_: interrupted.set())
house = House(StateFolder(Path(sys.argv[1])), ENDLESS)
house.runner.start()
while not house.in_training():
    interrupted.wait(0.05)
print("training", flush=True)
interrupted.wait()
house.runner._thread.join(1.0)  # a worker that got the signal too would be dead by then
print("busy" if house.runner.busy else house.runner.record.reason, flush=True)
house.runner.stop()
print(*house.states(), flush=True)
"""


@pytest.fixture
def answering(monkeypatch) -> Callable[..., None]:
    """A function that has workers print these lines and end."""

    def answer(*events: dict[str, Any] | str) -> None:
        monkeypatch.setattr(worker_process, "spawn_worker", said(*events))

    return answer


def with_students(house: House) -> None:
    """Give the registry a live student and an accepted candidate of round 1."""
    house.registry.add(small_student(status="accepted"))
    house.registry.add(small_student(round=1, status="accepted", parent="000001"))
    house.registry.promote("000001")


def test_a_live_student_that_changed_during_a_round_stays_live(enter, answering):
    house = enter()
    with_students(house)
    answering(verdict("000002", None, [1]))  # a first student, when it began
    assert "changed from none to 000001" in house.run().reason
    assert house.registry.live() == "000001"
    house.registry.add(small_student(status="accepted"))
    house.registry.promote("000003")  # by hand, while the worker was judging
    answering(verdict("000002", "000001", [1]))
    house.run()
    assert house.runner.record.state == "refused"
    assert "changed from 000001 to 000003 meanwhile" in house.runner.record.reason
    assert "much better" in house.runner.record.reason
    assert house.registry.live() == "000003"
    assert house.registry.history() == ["000001"]
    assert house.registry.card("000002").status == "accepted"
    assert house.store.stats().new_labels == 0


def test_an_adopted_candidate_does_not_displace_another_live_student(state, enter):
    house = enter()
    with_students(house)
    house.registry.add(small_student(status="accepted"))
    house.registry.promote("000003")
    RoundLog(state.rounds).save(RoundRecord(1))
    record = house.runner.resume_interrupted()
    assert (record.state, record.version) == ("refused", "000002")
    assert house.runner.record == record
    assert house.registry.live() == "000003"


def test_lines_that_are_no_events_are_passed_over_and_warnings_logged(enter, answering, caplog):
    house = enter()
    with_students(house)
    noise = ("5", "[]", "null", '"text"', "{}", '{"event": "st', "a warning")
    warning = {"event": "warning", "message": "much is unknown"}
    stage = {"event": "stage", "stage": "judging"}
    answering(*noise, warning, stage, verdict("000002", "000001", [1]))
    house.run()
    assert house.states() == ["promoted"], house.runner.record.reason
    assert house.registry.live() == "000002"
    assert "round 1: much is unknown" in caplog.text


def test_an_event_that_makes_no_sense_or_no_worker_fails_the_round(enter, answering, monkeypatch):
    house = enter()
    for event in ({"event": "progress"}, {"event": "result"}, {"event": "error"}, {"event": 5}):
        answering(event)
        assert house.run().reason.startswith("KeyError: ")
        assert not house.runner.busy
        assert house.seen[-1].stage == "done"

    def spawn(*_: object) -> subprocess.Popen[str]:
        raise OSError("too many open files")

    monkeypatch.setattr(worker_process, "spawn_worker", spawn)
    assert "OSError: too many open files" in house.run().reason
    assert house.states() == ["failed"] * 5


def test_a_subscriber_that_raises_does_not_break_the_round(enter, answering, monkeypatch):
    house = enter()
    with_students(house)
    answering(verdict("000002", "000001", [1]))
    monkeypatch.setattr(house.runner, "_on_change", None)
    house.run()
    assert house.states() == ["promoted"]
    assert not house.runner.busy


def test_a_client_may_start_the_next_round_as_soon_as_it_is_told_of_the_end(
    enter, answering, monkeypatch
):
    house = enter()
    answering({"event": "error", "message": "no"})
    answers = []

    def call_again(record: RoundRecord) -> None:
        house.seen.append(record)
        if record.stage == "done" and record.number < 4:
            answers.append(house.runner.start().number)

    runner = RoundRunner(house.state, house.store, SHORT, call_again)
    monkeypatch.setattr(house, "runner", runner)
    runner.start()
    wait_until(lambda: house.seen and house.seen[-1].number == 4 and not runner.busy)
    runner.wait()
    assert answers == [2, 3, 4]
    told = [(r.number, r.stage) for r in house.seen]
    assert told == [(n, stage) for n in (1, 2, 3, 4) for stage in ("starting", "done")]


def start_companion(state: StateFolder) -> subprocess.Popen[str]:
    """Start a companion in a session of its own, as in a terminal; its round is in training."""
    companion = subprocess.Popen(
        [sys.executable, "-c", COMPANION, str(state.root)],
        stdout=subprocess.PIPE,
        env=child_environment(),
        text=True,
        start_new_session=True,
    )
    assert companion.stdout.readline() == "training\n"
    return companion


def test_ctrl_c_reaches_the_worker_through_its_parent_only(state):
    companion = start_companion(state)
    os.killpg(companion.pid, signal.SIGINT)
    output, _ = companion.communicate(timeout=60)
    assert output.splitlines() == ["busy", "running"]  # the next start takes it up
    assert worker_pids(state) == []


def test_a_worker_ends_with_a_parent_that_was_killed(state):
    companion = start_companion(state)
    companion.kill()
    companion.communicate()
    wait_until(lambda: not worker_pids(state))


def test_a_round_that_was_aborted_offline_is_not_taken_up_by_a_companion(state, enter, monkeypatch):
    def ctrl_c(runner: RoundRunner) -> None:
        wait_until(lambda: runner.record.step > 0)
        raise KeyboardInterrupt

    monkeypatch.setattr(RoundRunner, "wait", ctrl_c)
    shape = '{"pixels": 4096, "bins": 33, "start": "random"}'
    settings = f'{{"distill": {{"min_frames": 8}}, "student": {shape}}}'
    listening = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        offline.distill_once(state, settings, None)
    assert signal.getsignal(signal.SIGINT) is listening
    house = enter(ENDLESS)
    assert house.states() == ["interrupted"]
    assert house.runner.resume_interrupted() is None
    assert worker_pids(state) == []


def test_a_damaged_frame_is_rejected_and_the_round_goes_on(state, enter):
    house = enter()
    first, held_out = house.store.labelled_ids("train")[0], house.store.labelled_ids("held_out")[3]
    with closing(sqlite3.connect(state.frames)) as connection, connection:
        connection.execute("UPDATE images SET jpeg = x'00' WHERE frame_id = ?", (first,))
        connection.execute("UPDATE labels SET depth = x'00' WHERE frame_id = ?", (held_out,))
    house.run()
    assert house.states() == ["refused"], house.runner.record.reason
    assert (house.runner.record.train_frames, house.runner.record.held_out_frames) == (11, 11)
    assert house.store.stats().rejected == {"undecodable": 2}
