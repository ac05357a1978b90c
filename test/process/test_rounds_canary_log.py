"""Where canary evaluations begin and end, and what is written down of them and of rounds."""

from __future__ import annotations

import dataclasses
import json
import os

from helpers.canaries import CANARY_PLAN, promote_bad
from helpers.frames import small_plan
from helpers.rounds import said, verdict
from helpers.students import small_student
from tiekd_ros.rounds import worker_process
from tiekd_ros.rounds.round_log import CanaryRecord, RoundLog, RoundRecord


def test_a_promotion_over_another_is_evaluated_and_ends_the_evaluation_before(
    enter, monkeypatch, open_canary
):
    rounds = enter(small_plan())
    for number, parent in enumerate((None, "000001", "000002"), start=1):
        card = rounds.registry.add(small_student(number, round=number, parent=parent)).version
        monkeypatch.setattr(worker_process, "spawn_worker", said(verdict(card, parent, [1])))
        rounds.run()
    first, second, third = rounds.log.records()
    assert first.canary is None  # there is no student to go back to
    assert second.canary.state == "superseded"
    assert second.canary.reason == "student 000003 was promoted in its place"
    assert third.canary == CanaryRecord("000002", after_id=24)
    opened = open_canary()
    opened.look()
    assert (opened.canary.record, opened.told()) == (third, [])


def test_an_adopted_candidate_is_evaluated_too(enter):
    rounds = enter(small_plan())
    rounds.registry.promote(rounds.registry.add(small_student(1)).version)
    rounds.registry.add(small_student(2, round=4, status="accepted", parent="000001"))
    rounds.log.save(RoundRecord(4))
    assert rounds.runner.resume_interrupted().canary == CanaryRecord("000001", after_id=24)


def test_several_promotions_in_a_row_that_did_not_last_are_a_reason_for_distrust(
    state, open_canary, judged_worse, monkeypatch
):
    promote_bad(state)
    log = RoundLog(state.rounds)
    opened = open_canary()
    opened.look()
    assert opened.canary.rolled_back_in_a_row == 0  # as of the last look
    opened.look()
    assert (opened.canary.rolled_back_in_a_row, opened.canary.distrusts_rounds) == (1, False)
    gone = log.record(2)
    log.save(dataclasses.replace(gone, number=3))
    log.save(RoundRecord(4, state="refused"))
    assert [log.refused_in_a_row(most) for most in (0, 3)] == [0, 1]
    log.save(dataclasses.replace(gone, number=5))
    assert log.refused_in_a_row(3) == 0
    opened.look()
    assert opened.canary.distrusts_rounds
    opened.canary.set_plan(small_plan(canary={"enabled": False}))
    assert not opened.canary.distrusts_rounds
    opened.canary.set_plan(CANARY_PLAN)
    log.save(RoundRecord(6, state="promoted", version="000001"))
    opened.look()
    assert not opened.canary.distrusts_rounds


def test_a_change_within_the_same_tick_of_the_file_systems_clock_is_seen(state, open_canary):
    promote_bad(state, after_id=24)
    opened = open_canary()
    opened.look()
    now_ns = opened.log.changed_ns()
    opened.log.save(RoundRecord(3, state="promoted", version="000002"))
    os.utime(state.rounds, ns=(now_ns, now_ns))
    opened.look()
    assert opened.canary.record == RoundRecord(3, state="promoted", version="000002")


def test_a_record_survives_its_file_and_one_without_a_canary_can_be_read(tmp_path):
    log = RoundLog(tmp_path)
    record = RoundRecord(1, canary=CanaryRecord("000001", 5, before={"rmse": 1.0}))
    for step in (0, 9):
        log.save(dataclasses.replace(record, step=step))
        assert list(log.records()) == [dataclasses.replace(record, step=step)]
    assert [p.name for p in tmp_path.iterdir()] == ["000001.json"]
    log.save(record)
    values = json.loads((tmp_path / "000001.json").read_text())
    del values["canary"]
    (tmp_path / "000001.json").write_text(json.dumps(values))
    assert log.record(1) == RoundRecord(1)
    assert log.record(2) is None
    for canary in ("5", "[]", '{"unknown": 1}', '"text"'):  # damaged: passed over
        (tmp_path / "000001.json").write_text(f'{{"number": 1, "canary": {canary}}}')
        assert list(log.records()) == []
