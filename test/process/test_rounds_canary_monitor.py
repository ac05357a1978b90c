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
from tiekd_ros.cli.main import app
from tiekd_ros.core.errors import RoundRefusedError
from tiekd_ros.rounds import canary_monitor, worker_process
from tiekd_ros.rounds.round import run_round
from tiekd_ros.rounds.round_log import RoundLog
from tiekd_ros.student.registry import StudentRegistry

COMPANION = """
import sys, threading
from pathlib import Path
from helpers.canaries import Tower
from tiekd_ros.core.state import StateFolder
tower = Tower(StateFolder(Path(sys.argv[1])))
tower.canary.check()
while not tower.pause_in_judging():
    threading.Event().wait(0.05)
print("judging", flush=True)
tower.canary.wait()
"""

# Kills.


def test_a_killed_worker_is_told_and_judging_begins_anew(state, open_canary, monkeypatch):
    monkeypatch.setattr(canary_monitor, "_RETRY_S", 0.0)
    promote_bad(state)
    tower = open_canary()
    tower.canary.check()
    wait_until(tower.pause_in_judging)
    assert tower.canary.busy
    (worker,) = worker_pids(state)
    os.kill(worker, signal.SIGKILL)
    tower.canary.wait()
    assert "killed by signal 9" in tower.canary.trouble
    assert tower.told()[-1] == "waiting"
    assert tower.registry.live() == "000002"
    tower.look()
    assert tower.result().state == "rolled back"
    assert tower.canary.trouble == ""


def test_what_fails_is_tried_again_later_however_often_it_failed(state, open_canary, monkeypatch):
    monkeypatch.setattr(worker_process, "spawn_worker", said({"event": "error", "message": "no"}))
    promote_bad(state)
    tower = open_canary()
    for count in range(1, 4):
        for _ in range(2):  # not at once
            tower.look()
            assert (tower.canary.trouble, tower.canary.busy) == ("no", False)
            assert tower.told() == ["judging", "waiting"] * count
        monkeypatch.setattr(tower.canary, "_retry_at_s", 0.0)


def test_an_evaluation_whose_companion_was_killed_is_taken_up(state, open_canary, judged_worse):
    promote_bad(state)
    companion = start_python("-c", COMPANION, str(state.root))
    assert companion.stdout.readline() == "judging\n", companion.stderr.read()
    tower = open_canary()
    tower.look()
    assert tower.told() == []  # the other one is at it
    companion.send_signal(signal.SIGKILL)
    companion.communicate()
    wait_until(lambda: not worker_pids(state))
    assert tower.result().state == "waiting"
    tower.look()
    assert tower.result().state == "rolled back"
    assert tower.registry.live() == "000001"


def decide(state) -> None:
    """Leave the record as a process does that was killed right after its verdict."""
    log = RoundLog(state.rounds)
    record = log.record(2)
    canary = dataclasses.replace(record.canary, state="rolling back", reason="much worse")
    log.save(dataclasses.replace(record, canary=canary))


def test_a_verdict_of_a_killed_process_is_carried_out(state, open_canary):
    promote_bad(state)
    decide(state)
    tower = open_canary()
    tower.look()
    assert tower.told() == ["rolled back"]  # without judging again
    assert tower.registry.live() == "000001"
    reason = tower.registry.card("000002").reason
    assert reason.startswith("rolled back by the canary evaluation: much worse")


def test_a_process_killed_between_going_back_and_writing_it_down_did_it_once(state, open_canary):
    registry = StudentRegistry(state.students)
    registry.promote(registry.add(small_student(3)).version)
    promote_over(state, small_student(1), small_student(2))
    registry.rollback()
    decide(state)
    tower = open_canary()
    tower.look()
    assert tower.result().state == "rolled back"
    assert (registry.live(), registry.history()) == ("000002", ["000001"])
    assert registry.card("000003").status == "rolled back"


def test_a_verdict_of_a_killed_process_gives_way_to_a_promotion_by_hand(state, open_canary):
    promote_bad(state)
    decide(state)
    tower = open_canary()
    chosen = tower.registry.add(small_student()).version
    tower.registry.promote(chosen)
    tower.look()
    assert tower.result().state == "superseded"
    assert "live is 000003 after 000002" in tower.result().reason
    assert tower.registry.live() == chosen


def test_stopped_in_mid_judging_it_leaves_no_worker_and_can_be_taken_up(state, open_canary):
    promote_bad(state)
    tower = open_canary()
    tower.canary.check()
    wait_until(tower.pause_in_judging)
    tower.canary.stop()
    assert not tower.canary.busy
    assert worker_pids(state) == []
    assert tower.result().state == "waiting"
    tower.canary.check()
    assert not tower.canary.busy


# Others on the same folder.


def test_a_student_promoted_while_it_judges_is_left_alone(state, open_canary):
    promote_bad(state)
    tower = open_canary()
    chosen = tower.registry.add(small_student()).version
    tower.canary.check()
    wait_until(tower.pause_in_judging)
    tower.registry.promote(chosen)
    tower.canary.resume()
    tower.canary.wait()
    assert tower.result().state == "superseded"
    assert "live is 000003 after 000002 and not 000002 after 000001" in tower.result().reason
    assert (tower.registry.live(), tower.registry.history()) == (chosen, ["000001", "000002"])
    assert tower.registry.card("000002").status == "accepted"


def test_a_rollback_by_hand_ends_it_without_judging(state, open_canary):
    promote_bad(state)
    tower = open_canary()
    tower.registry.rollback()
    tower.look()
    assert tower.told() == ["superseded"]
    assert tower.result().reason == "student 000001 is live meanwhile"
    assert tower.registry.live() == "000001"


def test_no_round_while_it_judges_and_no_judging_while_a_round_runs(state, open_canary, enter):
    promote_bad(state)
    tower, house = open_canary(), enter()
    with tower.log.lock():
        tower.look()
        assert tower.told() == []
        assert tower.canary.trouble == ""
    tower.canary.check()
    wait_until(tower.pause_in_judging)
    busy = "busy: the canary evaluation of student 000002 is judging"
    with pytest.raises(RoundRefusedError, match=busy):
        house.runner.start()
    tower.canary.resume()
    tower.canary.wait()
    assert tower.result().state == "rolled back"
    tower.log.lock().close()


def test_after_a_rollback_its_predecessor_goes_on_unless_it_is_promoted_by_name(
    state, open_canary, judged_worse
):
    promote_bad(state)
    tower = open_canary()
    tower.look()
    listed = CliRunner().invoke(app, ["students", "list", "--json", "--state", str(state.root)])
    one, other = json.loads(listed.output)
    assert (one["live"], other["live"], other["status"]) == (True, False, "rolled back")
    assert other["reason"].startswith("rolled back by the canary evaluation: much worse")
    events: list[dict[str, Any]] = []
    run_round(state, small_plan(train={"iterations": 1}), 3, events.append)
    assert events[-1]["parent"] == "000001"
    tower.registry.promote("000002")
    tower.look()
    assert len(tower.seen) == 2  # it is left alone
    assert tower.registry.live() == "000002"


def test_a_predecessor_that_is_gone_leaves_the_student_live_and_is_told(
    state, open_canary, judged_worse, monkeypatch
):
    promote_bad(state)
    tower = open_canary()
    weights = tower.registry.root / "000001" / "student.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(b"")
    tower.look()
    assert "000001" in tower.canary.trouble
    assert (tower.registry.live(), tower.result().state) == ("000002", "rolling back")
    weights.write_bytes(whole)
    monkeypatch.setattr(tower.canary, "_retry_at_s", 0.0)
    tower.look()
    assert (tower.registry.live(), tower.result().state) == ("000001", "rolled back")


def test_a_pointer_that_cannot_be_read_is_told_until_it_can(state, open_canary, judged_worse):
    promote_bad(state)
    tower = open_canary()
    pointer = tower.registry.root / "live.json"
    whole = pointer.read_text()
    pointer.write_text("{")
    tower.look()
    assert "live.json is damaged" in tower.canary.trouble
    pointer.write_text(whole)
    tower.look()
    assert tower.canary.trouble == ""
    assert tower.registry.live() == "000001"


def test_a_subscriber_that_raises_breaks_nothing(state, open_canary, judged_worse, monkeypatch):
    promote_bad(state)
    tower = open_canary()
    monkeypatch.setattr(tower.canary, "_on_change", None)
    tower.look()
    assert tower.result().state == "rolled back"
    assert not tower.canary.busy
