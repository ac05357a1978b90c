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
from helpers.rounds import ENDLESS, SHORT, OpenRounds, said, verdict, worker_pids
from helpers.students import small_student
from tiekd_ros.cli import students as offline
from tiekd_ros.core.state import StateFolder
from tiekd_ros.rounds import worker_process
from tiekd_ros.rounds.round_log import RoundLog, RoundRecord
from tiekd_ros.rounds.runner import RoundRunner

COMPANION = """
import signal, sys, threading
from pathlib import Path
from helpers.rounds import ENDLESS, OpenRounds
from tiekd_ros.core.state import StateFolder
interrupted = threading.Event()
signal.signal(signal.SIGINT, lambda *_: interrupted.set())
rounds = OpenRounds(StateFolder(Path(sys.argv[1])), ENDLESS)
rounds.runner.start()
while not rounds.in_training():
    interrupted.wait(0.05)
print("training", flush=True)
interrupted.wait()
rounds.runner._thread.join(1.0)  # a worker that got the signal too would be dead by then
print("busy" if rounds.runner.busy else rounds.runner.record.reason, flush=True)
rounds.runner.stop()
print(*rounds.states(), flush=True)
"""


@pytest.fixture
def answering(monkeypatch) -> Callable[..., None]:
    """A function that has workers print these lines and end."""

    def answer(*events: dict[str, Any] | str) -> None:
        monkeypatch.setattr(worker_process, "spawn_worker", said(*events))

    return answer


def with_students(rounds: OpenRounds) -> None:
    """Give the registry a live student and an accepted candidate of round 1."""
    rounds.registry.add(small_student(status="accepted"))
    rounds.registry.add(small_student(round=1, status="accepted", parent="000001"))
    rounds.registry.promote("000001")


def test_a_live_student_that_changed_during_a_round_stays_live(enter, answering):
    rounds = enter()
    with_students(rounds)
    answering(verdict("000002", None, [1]))  # a first student, when it began
    assert "changed from none to 000001" in rounds.run().reason
    assert rounds.registry.live() == "000001"
    rounds.registry.add(small_student(status="accepted"))
    rounds.registry.promote("000003")  # by hand, while the worker was judging
    answering(verdict("000002", "000001", [1]))
    rounds.run()
    assert rounds.runner.record.state == "refused"
    assert "changed from 000001 to 000003 meanwhile" in rounds.runner.record.reason
    assert "much better" in rounds.runner.record.reason
    assert rounds.registry.live() == "000003"
    assert rounds.registry.history() == ["000001"]
    assert rounds.registry.card("000002").status == "accepted"
    assert rounds.store.stats().new_labels == 0


def test_an_adopted_candidate_does_not_displace_another_live_student(state, enter):
    rounds = enter()
    with_students(rounds)
    rounds.registry.add(small_student(status="accepted"))
    rounds.registry.promote("000003")
    RoundLog(state.rounds).save(RoundRecord(1))
    record = rounds.runner.resume_interrupted()
    assert (record.state, record.version) == ("refused", "000002")
    assert rounds.runner.record == record
    assert rounds.registry.live() == "000003"


def test_lines_that_are_no_events_are_passed_over_and_warnings_logged(enter, answering, caplog):
    rounds = enter()
    with_students(rounds)
    noise = ("5", "[]", "null", '"text"', "{}", '{"event": "st', "a warning")
    warning = {"event": "warning", "message": "much is unknown"}
    stage = {"event": "stage", "stage": "judging"}
    answering(*noise, warning, stage, verdict("000002", "000001", [1]))
    rounds.run()
    assert rounds.states() == ["promoted"], rounds.runner.record.reason
    assert rounds.registry.live() == "000002"
    assert "round 1: much is unknown" in caplog.text


def test_an_event_that_makes_no_sense_or_no_worker_fails_the_round(enter, answering, monkeypatch):
    rounds = enter()
    for event in ({"event": "progress"}, {"event": "result"}, {"event": "error"}, {"event": 5}):
        answering(event)
        assert rounds.run().reason.startswith("KeyError: ")
        assert not rounds.runner.busy
        assert rounds.seen[-1].stage == "done"

    def spawn(*_: object) -> subprocess.Popen[str]:
        raise OSError("too many open files")

    monkeypatch.setattr(worker_process, "spawn_worker", spawn)
    assert "OSError: too many open files" in rounds.run().reason
    assert rounds.states() == ["failed"] * 5


def test_a_subscriber_that_raises_does_not_break_the_round(enter, answering, monkeypatch):
    rounds = enter()
    with_students(rounds)
    answering(verdict("000002", "000001", [1]))
    monkeypatch.setattr(rounds.runner, "_on_change", None)
    rounds.run()
    assert rounds.states() == ["promoted"]
    assert not rounds.runner.busy


def test_a_client_may_start_the_next_round_as_soon_as_it_is_told_of_the_end(
    enter, answering, monkeypatch
):
    rounds = enter()
    answering({"event": "error", "message": "no"})
    answers = []

    def call_again(record: RoundRecord) -> None:
        rounds.seen.append(record)
        if record.stage == "done" and record.number < 4:
            answers.append(rounds.runner.start().number)

    runner = RoundRunner(rounds.state, rounds.store, SHORT, call_again)
    monkeypatch.setattr(rounds, "runner", runner)
    runner.start()
    wait_until(lambda: rounds.seen and rounds.seen[-1].number == 4 and not runner.busy)
    runner.wait()
    assert answers == [2, 3, 4]
    told = [(r.number, r.stage) for r in rounds.seen]
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
    rounds = enter(ENDLESS)
    assert rounds.states() == ["interrupted"]
    assert rounds.runner.resume_interrupted() is None
    assert worker_pids(state) == []


def test_a_damaged_frame_is_rejected_and_the_round_goes_on(state, enter):
    rounds = enter()
    ids = rounds.store.labelled_ids
    first, held_out = ids("train")[0], ids("held_out")[3]
    with closing(sqlite3.connect(state.frames)) as connection, connection:
        connection.execute("UPDATE images SET jpeg = x'00' WHERE frame_id = ?", (first,))
        connection.execute("UPDATE labels SET depth = x'00' WHERE frame_id = ?", (held_out,))
    rounds.run()
    assert rounds.states() == ["refused"], rounds.runner.record.reason
    assert (rounds.runner.record.train_frames, rounds.runner.record.held_out_frames) == (11, 11)
    assert rounds.store.stats().rejected == {"undecodable": 2}
