"""The canary evaluation with a real worker: what is judged, and what follows from it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from helpers.canaries import CANARY_PLAN, FRAMES, KNOWN, promote_bad, promote_good
from helpers.frames import fill_store, more_views, small_plan
from helpers.rounds import worker_pids
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.framelog import Label
from tiekd_ros.rounds.canary import CanarySettings, evaluate_canary
from tiekd_ros.rounds.round_log import RoundLog, RoundRecord


def test_a_student_that_is_clearly_worse_is_rolled_back_and_marked(state, open_canary):
    promote_bad(state)
    opened = open_canary()
    opened.look()
    assert opened.told() == ["judging", "rolled back"], opened.canary.trouble
    assert opened.registry.live() == "000001"
    result = opened.result()
    assert result.frames == FRAMES
    assert result.after["rmse"] > 1.05 * result.before["rmse"]
    assert "on 8 frames since its promotion" in result.reason
    card = opened.registry.card("000002")
    assert card.status == "rolled back"
    assert card.reason == (
        f"rolled back by the canary evaluation: {result.reason} (at the gate: better at the gate)"
    )
    opened.look()
    assert len(opened.seen) == 2  # it is over
    assert worker_pids(state) == []
    assert opened.store.unlabelled(1) == []  # nobody could be asked


def test_labels_of_a_student_that_is_rolled_back_are_asked_for_again_and_newer_ones_stay(
    state, open_canary
):
    promote_bad(state)
    opened = open_canary()
    labelled = opened.store.labelled_ids()
    opened.canary.teacher_name = "exact"
    opened.store.reject(2, "blurred")
    imported = Label(np.full((8, 8), 2.0, np.float32), "measured", "1")
    opened.store.put_label(3, imported)
    learnt = [i for i in labelled if i <= KNOWN and i not in (2, 3)]
    opened.look()
    assert opened.told()[-1] == "rolled back", opened.canary.trouble
    assert f"asked again for {len(learnt)} labels that were new to it" in opened.result().reason
    assert [frame.id for frame in opened.store.unlabelled(100)] == learnt
    assert opened.store.labelled_ids() == [i for i in labelled if i > KNOWN or i == 3]
    assert opened.store.stats().rejected == {"blurred": 1}
    opened.store.put_label(learnt[0], Label(np.full((8, 8), 2.0, np.float32), "teacher", "2"))
    assert learnt[0] in opened.store.labelled_ids()
    assert opened.store.ask_again([10**6, learnt[0]], "exact") == 0


def test_a_good_student_stays_and_is_judged_once(state, open_canary):
    promote_good(state)
    opened = open_canary()
    opened.look()
    assert opened.told() == ["judging", "kept"], opened.canary.trouble
    assert opened.registry.live() == "000002"
    assert opened.registry.card("000002").status == "accepted"
    assert opened.result().after["rmse"] < opened.result().before["rmse"]
    fill_store(state.frames, more_views(4, first=30), first=30)
    opened.look()
    assert len(opened.seen) == 2


def test_it_waits_for_frames_that_came_after_the_promotion(state, open_canary):
    promote_bad(state, after_id=24)
    opened = open_canary()
    for count in range(FRAMES):
        opened.look()
        assert opened.canary.labels_since == count
        assert opened.told() == []
        fill_store(state.frames, more_views(1, first=30 + count), first=30 + count)
    opened.look()
    assert opened.told() == ["judging", "rolled back"]


def test_it_judges_on_nothing_that_a_round_knew_and_pauses_between_frames(state):
    promote_bad(state)
    events: list[dict[str, Any]] = []
    pauses: list[int] = []
    since = 24 - KNOWN

    def pause() -> float:
        pauses.append(1)
        return 0.0

    evaluate_canary(state, CanarySettings(frames=since), 2, events.append, pause)
    assert (events[-1]["frames"], len(pauses)) == (since, since)
    events.clear()
    evaluate_canary(state, CanarySettings(frames=since + 1), 2, events.append)
    assert events == [{"event": "result", "frames": since}]
    RoundLog(state.rounds).save(RoundRecord(1, state="promoted", version="000001"))
    with pytest.raises(TiekdError, match="round 1 has no student to be evaluated"):
        evaluate_canary(state, CANARY_PLAN.canary, 1, events.append)


def test_switched_off_it_does_nothing_and_goes_on_where_it_is_switched_on(
    state, open_canary, judged_worse
):
    promote_bad(state)
    opened = open_canary(small_plan(canary={"frames": FRAMES, "enabled": False}))
    opened.look()
    assert (opened.told(), opened.registry.live()) == ([], "000002")
    opened.canary.set_plan(CANARY_PLAN)
    opened.look()
    assert opened.registry.live() == "000001"


def test_frames_that_cannot_be_compared_are_replaced_by_newer_ones(state, open_canary):
    promote_bad(state, after_id=24 - FRAMES)
    opened = open_canary()
    damaged = opened.store.labelled_ids(after_id=24 - FRAMES)[-3:]
    with closing(sqlite3.connect(state.frames)) as connection, connection:
        broken = "UPDATE images SET jpeg = x'00' WHERE frame_id IN (?, ?)"
        connection.execute(broken, damaged[:2])
    unknown = np.full((72, 96), 99.0, np.float32)  # beyond the student's range
    opened.store.put_label(damaged[2], Label(unknown, "exact", "1"))
    opened.look()
    assert opened.told() == ["judging", "waiting"]
    assert opened.store.stats().rejected == {"undecodable": 2}
    assert (opened.canary.labels_since, opened.canary.labels_needed) == (FRAMES - 2, FRAMES + 1)
    for count in range(3):
        opened.look()
        assert len(opened.seen) == 2  # not each second anew
        fill_store(state.frames, more_views(1, first=30 + count), first=30 + count)
    opened.look()
    assert opened.told()[2:] == ["judging", "rolled back"]
