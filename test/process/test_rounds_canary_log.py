"""Where watches begin and end, and what is written down of them."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest

from helpers.canaries import WATCHING, promote_bad
from helpers.frames import small_plan
from helpers.rounds import House, said, verdict
from helpers.students import small_student
from tiekd_ros.rounds import worker_process as following
from tiekd_ros.rounds.round_log import CanaryRecord, RoundLog, RoundRecord


def promote_by_rounds(state, monkeypatch, parents: list[str | None]) -> House:
    """Have rounds promote students one over the other."""
    house = House(state, small_plan())
    for number, parent in enumerate(parents, start=1):
        card = house.registry.add(small_student(number, round=number, parent=parent)).version
        monkeypatch.setattr(following, "spawn_worker", said(verdict(card, parent, [1])))
        house.runner.start()
        house.runner.wait()
    house.store.close()
    return house


def test_a_first_student_is_not_watched_and_the_next_one_is(state, monkeypatch, watch_over):
    house = promote_by_rounds(state, monkeypatch, [None, "000001"])
    first, second = house.log.records()
    assert first.canary is None
    assert second.canary == CanaryRecord("000001", after_id=24)
    tower = watch_over()
    tower.look()
    assert (tower.canary.record, tower.told()) == (second, [])


def test_a_promotion_ends_the_watch_over_the_one_before(state, monkeypatch):
    house = promote_by_rounds(state, monkeypatch, [None, "000001", "000002"])
    states = [r.canary and (r.canary.state, r.canary.reason) for r in house.log.records()]
    ended = ("superseded", "student 000003 was promoted in its place")
    assert states == [None, ended, ("waiting", "")]


def test_an_adopted_candidate_is_watched_too(state):
    house = House(state, small_plan())
    house.registry.promote(house.registry.add(small_student(1)).version)
    house.registry.add(small_student(2, round=4, status="accepted", parent="000001"))
    house.log.save(RoundRecord(4))
    assert house.runner.resume_interrupted().canary == CanaryRecord("000001", after_id=24)
    house.store.close()


def test_several_promotions_in_a_row_that_did_not_last_are_a_reason_for_distrust(
    state, watch_over, judged_worse, monkeypatch
):
    promote_bad(state)
    log = RoundLog(state.rounds)
    tower = watch_over()
    tower.look()
    assert tower.canary.rolled_back_in_a_row == 0  # as of the last look
    tower.look()
    assert (tower.canary.rolled_back_in_a_row, tower.canary.distrusts_rounds) == (1, False)
    gone = log.record(2)
    log.save(dataclasses.replace(gone, number=3))
    log.save(RoundRecord(4, state="refused"))
    log.save(dataclasses.replace(gone, number=5))
    tower.look()
    assert tower.canary.distrusts_rounds
    tower.canary.set_plan(small_plan(canary={"enabled": False}))
    assert not tower.canary.distrusts_rounds
    tower.canary.set_plan(WATCHING)
    log.save(RoundRecord(6, state="promoted", version="000001"))
    tower.look()
    assert not tower.canary.distrusts_rounds


def test_a_change_within_the_same_tick_of_the_file_systems_clock_is_seen(state, watch_over):
    promote_bad(state, after_id=24)
    tower = watch_over()
    tower.look()
    now_ns = tower.log.changed_ns()
    tower.log.save(RoundRecord(3, state="promoted", version="000002"))
    os.utime(state.rounds, ns=(now_ns, now_ns))
    tower.look()
    assert tower.canary.record == RoundRecord(3, state="promoted", version="000002")


def test_a_watch_survives_its_file_and_a_record_without_one_can_be_read(tmp_path):
    log = RoundLog(tmp_path)
    record = RoundRecord(1, canary=CanaryRecord("000001", 5, before={"rmse": 1.0}))
    log.save(record)
    assert log.record(1) == record
    values = json.loads((tmp_path / "000001.json").read_text())
    del values["canary"]
    (tmp_path / "000001.json").write_text(json.dumps(values))
    assert log.record(1) == RoundRecord(1)
    assert log.record(2) is None


@pytest.mark.parametrize("canary", ["5", "[]", '{"unknown": 1}', '"text"'])
def test_a_record_with_a_damaged_watch_is_passed_over(tmp_path, canary):
    log = RoundLog(tmp_path)
    (tmp_path / "000001.json").write_text(f'{{"number": 1, "canary": {canary}}}')
    assert list(log.records()) == []
