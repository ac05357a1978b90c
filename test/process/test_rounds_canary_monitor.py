"""The canary of a promoted student when it is killed, beside others, and over rounds."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from typing import Any

import pytest
from typer.testing import CliRunner

from helpers.canaries import promote_bad, promote_over
from helpers.children import start_python, wait_until
from helpers.frames import small_plan
from helpers.rounds import said, worker_pids
from helpers.students import small_student
from tiekd_ros.cli.__main__ import app
from tiekd_ros.core.errors import RoundRefusedError
from tiekd_ros.rounds import canary_monitor, worker_process
from tiekd_ros.rounds.round import run_round
from tiekd_ros.rounds.round_log import RoundLog
from tiekd_ros.student.registry import StudentRegistry

COMPANION = """
import sys, threading
from pathlib import Path
from helpers.canaries import OpenCanary
from tiekd_ros.core.state import StateFolder
opened = OpenCanary(StateFolder(Path(sys.argv[1])))
opened.canary.check()
while not opened.pause_in_judging():
    threading.Event().wait(0.05)
print("judging", flush=True)
opened.canary.wait()
"""

# Kills.


def test_a_killed_worker_is_told_and_judging_begins_anew(state, open_canary, monkeypatch):
    monkeypatch.setattr(canary_monitor, "_RETRY_S", 0.0)
    promote_bad(state)
    opened = open_canary()
    opened.canary.check()
    wait_until(opened.pause_in_judging)
    assert opened.canary.busy
    (worker,) = worker_pids(state)
    os.kill(worker, signal.SIGKILL)
    opened.canary.wait()
    assert "killed by signal 9" in opened.canary.trouble
    assert opened.told()[-1] == "waiting"
    assert opened.registry.live() == "000002"
    opened.look()
    assert opened.result().state == "rolled back"
    assert opened.canary.trouble == ""


def test_what_fails_is_tried_again_later_however_often_it_failed(state, open_canary, monkeypatch):
    monkeypatch.setattr(worker_process, "spawn_worker", said({"event": "error", "message": "no"}))
    promote_bad(state)
    opened = open_canary()
    for count in range(1, 4):
        for _ in range(2):  # not at once
            opened.look()
            assert (opened.canary.trouble, opened.canary.busy) == ("no", False)
            assert opened.told() == ["judging", "waiting"] * count
        monkeypatch.setattr(opened.canary, "_retry_at_s", 0.0)


def test_an_evaluation_whose_companion_was_killed_is_taken_up(state, open_canary, judged_worse):
    promote_bad(state)
    companion = start_python("-c", COMPANION, str(state.root))
    assert companion.stdout.readline() == "judging\n", companion.stderr.read()
    opened = open_canary()
    opened.look()
    assert opened.told() == []  # the other one is at it
    companion.send_signal(signal.SIGKILL)
    companion.communicate()
    wait_until(lambda: not worker_pids(state))
    assert opened.result().state == "waiting"
    opened.look()
    assert opened.result().state == "rolled back"
    assert opened.registry.live() == "000001"


def decide(state) -> None:
    """Leave the record as a process does that was killed right after its verdict."""
    log = RoundLog(state.rounds)
    record = log.record(2)
    canary = dataclasses.replace(record.canary, state="rolling back", reason="much worse")
    log.save(dataclasses.replace(record, canary=canary))


def test_a_verdict_of_a_killed_process_is_carried_out(state, open_canary):
    promote_bad(state)
    decide(state)
    opened = open_canary()
    opened.look()
    assert opened.told() == ["rolled back"]  # without judging again
    assert opened.registry.live() == "000001"
    reason = opened.registry.card("000002").reason
    assert reason.startswith("rolled back by the canary evaluation: much worse")


def test_a_process_killed_between_going_back_and_writing_it_down_did_it_once(state, open_canary):
    registry = StudentRegistry(state.students)
    registry.promote(registry.add(small_student(3)).version)
    promote_over(state, small_student(1), small_student(2))
    registry.rollback()
    decide(state)
    opened = open_canary()
    opened.look()
    assert opened.result().state == "rolled back"
    assert (registry.live(), registry.history()) == ("000002", ["000001"])
    assert registry.card("000003").status == "rolled back"


def test_a_verdict_of_a_killed_process_gives_way_to_a_promotion_by_hand(state, open_canary):
    promote_bad(state)
    decide(state)
    opened = open_canary()
    chosen = opened.registry.add(small_student()).version
    opened.registry.promote(chosen)
    opened.look()
    assert opened.result().state == "superseded"
    assert "live is 000003 after 000002" in opened.result().reason
    assert opened.registry.live() == chosen


def test_stopped_in_mid_judging_it_leaves_no_worker_and_can_be_taken_up(state, open_canary):
    promote_bad(state)
    opened = open_canary()
    opened.canary.check()
    wait_until(opened.pause_in_judging)
    opened.canary.stop()
    assert not opened.canary.busy
    assert worker_pids(state) == []
    assert opened.result().state == "waiting"
    opened.canary.check()
    assert not opened.canary.busy


# Others on the same folder.


def test_a_student_promoted_while_it_judges_is_left_alone(state, open_canary):
    promote_bad(state)
    opened = open_canary()
    chosen = opened.registry.add(small_student()).version
    opened.canary.check()
    wait_until(opened.pause_in_judging)
    opened.registry.promote(chosen)
    opened.canary.resume()
    opened.canary.wait()
    assert opened.result().state == "superseded"
    assert "live is 000003 after 000002 and not 000002 after 000001" in opened.result().reason
    assert (opened.registry.live(), opened.registry.history()) == (chosen, ["000001", "000002"])
    assert opened.registry.card("000002").status == "accepted"


def test_a_rollback_by_hand_ends_it_without_judging(state, open_canary):
    promote_bad(state)
    opened = open_canary()
    opened.registry.rollback()
    opened.look()
    assert opened.told() == ["superseded"]
    assert opened.result().reason == "student 000001 is live meanwhile"
    assert opened.registry.live() == "000001"


def test_no_round_while_it_judges_and_no_judging_while_a_round_runs(state, open_canary, enter):
    promote_bad(state)
    opened, rounds = open_canary(), enter()
    with opened.log.lock():
        opened.look()
        assert opened.told() == []
        assert opened.canary.trouble == ""
    opened.canary.check()
    wait_until(opened.pause_in_judging)
    busy = "busy: the canary evaluation of student 000002 is judging"
    with pytest.raises(RoundRefusedError, match=busy):
        rounds.runner.start()
    opened.canary.resume()
    opened.canary.wait()
    assert opened.result().state == "rolled back"
    opened.log.lock().close()


def test_after_a_rollback_its_predecessor_goes_on_unless_it_is_promoted_by_name(
    state, open_canary, judged_worse
):
    promote_bad(state)
    opened = open_canary()
    opened.look()
    listed = CliRunner().invoke(app, ["students", "list", "--json", "--state", str(state.root)])
    one, other = json.loads(listed.output)
    assert (one["live"], other["live"], other["status"]) == (True, False, "rolled back")
    assert other["reason"].startswith("rolled back by the canary evaluation: much worse")
    events: list[dict[str, Any]] = []
    run_round(state, small_plan(train={"iterations": 1}), 3, events.append)
    assert events[-1]["parent"] == "000001"
    opened.registry.promote("000002")
    opened.look()
    assert len(opened.seen) == 2  # it is left alone
    assert opened.registry.live() == "000002"


def test_a_predecessor_that_is_gone_leaves_the_student_live_and_is_told(
    state, open_canary, judged_worse, monkeypatch
):
    promote_bad(state)
    opened = open_canary()
    weights = opened.registry.root / "000001" / "student.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(b"")
    opened.look()
    assert "000001" in opened.canary.trouble
    assert (opened.registry.live(), opened.result().state) == ("000002", "rolling back")
    weights.write_bytes(whole)
    monkeypatch.setattr(opened.canary, "_retry_at_s", 0.0)
    opened.look()
    assert (opened.registry.live(), opened.result().state) == ("000001", "rolled back")


def test_a_pointer_that_cannot_be_read_is_told_until_it_can(state, open_canary, judged_worse):
    promote_bad(state)
    opened = open_canary()
    pointer = opened.registry.root / "live.json"
    whole = pointer.read_text()
    pointer.write_text("{")
    opened.look()
    assert "live.json is damaged" in opened.canary.trouble
    pointer.write_text(whole)
    opened.look()
    assert opened.canary.trouble == ""
    assert opened.registry.live() == "000001"


def test_a_subscriber_that_raises_breaks_nothing(state, open_canary, judged_worse, monkeypatch):
    promote_bad(state)
    opened = open_canary()
    monkeypatch.setattr(opened.canary, "_on_change", None)
    opened.look()
    assert opened.result().state == "rolled back"
    assert not opened.canary.busy
