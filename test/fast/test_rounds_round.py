"""One round in this process: what a second student inherits, and what it is judged against."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from helpers.frames import SIZE, small_plan
from helpers.students import FASTEST, small_student
from tiekd_ros.core.errors import RoundRefusedError
from tiekd_ros.core.images import encode_depth_png
from tiekd_ros.core.state import StateFolder
from tiekd_ros.framelog import FrameStore
from tiekd_ros.method.comparison import PairedErrors
from tiekd_ros.rounds.gate import GateSettings, GateVerdict, judge_against_incumbent
from tiekd_ros.rounds.round import run_round
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import CheckpointError, Student, StudentCard
from tiekd_ros.student.registry import StudentRegistry


@pytest.fixture
def live(state) -> StudentRegistry:
    """A registry whose live student, untrained, has other bins than the plan asks for."""
    registry = StudentRegistry(state.students)
    torch.manual_seed(0)
    bins = DepthBins(count=17, max_depth_m=20.0)
    registry.add(Student.fresh(StudentCard(bins, SIZE, FASTEST, status="accepted")))
    registry.promote("000001")
    return registry


def events_of(
    state: StateFolder, number: int = 2, **groups: dict[str, Any]
) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    few = {"iterations": 3, **groups.pop("train", {})}
    run_round(state, small_plan(train=few, **groups), number, events.append)
    return events


def run(state: StateFolder, number: int = 2, **groups: dict[str, Any]) -> dict[str, Any]:
    return events_of(state, number, **groups)[-1]


def spoil(state: StateFolder, ids: list[int]) -> None:
    with closing(sqlite3.connect(state.frames)) as connection, connection:
        for frame_id in ids:
            connection.execute("UPDATE images SET jpeg = x'00' WHERE frame_id = ?", (frame_id,))


def test_a_second_student_inherits_its_shape_and_is_judged_against_the_first(state, live):
    before = live.load("000001")
    files = sorted((live.root / "000001").iterdir())
    kept = [path.read_bytes() for path in files]
    result = run(state, loss={"sigma_relative": 0.08}, gate={"min_gain": 1.0})
    assert [path.read_bytes() for path in files] == kept
    assert live.live() == "000001"
    assert (result["baseline"], result["parent"]) == ("incumbent", "000001")
    after = live.load(result["version"])
    assert (after.card.version, after.card.parent, after.card.round) == ("000002", "000001", 2)
    assert (after.card.bins, after.card.input_size) == (before.card.bins, before.card.input_size)
    assert after.card.target.relative == 0.08  # as it was taught, not as its parent was
    assert after.card.created != "" != after.card.weights_sha256
    one, other = before.network.state_dict(), after.network.state_dict()
    for name in ("backbone.conv1.conv.weight", "neck.bn.running_mean", "head.weight"):
        assert not torch.equal(one[name], other[name])
    assert not result["accepted"]  # too little gain: it is kept, and not promoted
    assert (after.card.status, after.card.reason) == ("refused", result["reason"])
    assert after.card.scores["baseline"] == "incumbent"
    checks = {check["name"]: check["passed"] for check in after.card.scores["checks"]}
    assert checks["AbsRel"] is False
    assert "AbsRel on known frames" not in checks  # the first student has learnt from none
    assert after.card.confidence.tolerance == 0.1
    assert 0 <= after.card.scores["confidence"]["mean"] <= 1
    with pytest.raises(CheckpointError, match="refused by the gate"):
        live.promote(result["version"])


def test_frames_of_before_the_incumbent_are_those_it_must_not_forget(state, live):
    incumbent = live.load("000001")
    with FrameStore(state.frames) as store:
        held_out, train = store.labelled_ids("held_out"), store.labelled_ids("train")
    last = held_out[len(held_out) // 2 - 1]  # half of the held-out frames came until then
    learnt = [frame_id for frame_id in train if frame_id <= last]
    card = replace(incumbent.card, version="", training={"frame_ids": learnt})
    known = sum(frame_id < max(learnt) for frame_id in held_out)
    assert 0 < known < len(held_out)
    live.promote(live.add(Student(card, incumbent.network)).version)
    seen: list[int] = []

    def judge(known: PairedErrors, new: PairedErrors, settings: GateSettings) -> GateVerdict:
        seen.extend((len(known), len(new)))
        return judge_against_incumbent(known, new, settings)

    with mock.patch("tiekd_ros.rounds.round.judge_against_incumbent", judge):
        result = run(state)
    assert seen == [known, len(held_out) - known]
    names = [check["name"] for check in live.card(result["version"]).scores["checks"]]
    assert "AbsRel on known frames" in names


def test_a_student_taught_as_published_says_the_published_width(state, live):
    result = run(state, loss={"objective": "paper", "sigma_relative": 0.08})
    target = live.load(result["version"]).card.target
    assert (round(target.floor_m, 1), target.relative) == (2.3, 0.0)


@pytest.mark.parametrize(("objective", "warned"), [("mse", True), ("si", False)])
def test_unknown_depth_that_would_be_taken_for_zero_is_told(state, live, objective, warned):
    with FrameStore(state.frames) as store:
        first = store.labelled_ids("train")[0]
    hole = np.full((SIZE.height, SIZE.width), 2.0, np.float32)
    hole[:7] = np.nan
    png = encode_depth_png(hole)
    with closing(sqlite3.connect(state.frames)) as connection, connection:
        connection.execute("UPDATE labels SET depth = ? WHERE frame_id = ?", (png, first))
    warnings = [e["message"] for e in events_of(state, loss={"objective": objective})
                if e["event"] == "warning"]  # fmt: skip
    assert len(warnings) == warned
    if warned:
        assert "'mse' takes unknown depth for 0 m" in warnings[0]
        assert "loss.objective tiekd leaves it out" in warnings[0]


def test_a_damaged_incumbent_ends_the_round_before_it_starts(state, live):
    (live.root / "000001" / "student.safetensors").write_bytes(b"spoiled")
    with pytest.raises(CheckpointError, match="000001"):
        run(state)
    assert live.versions() == ["000001"]


def test_a_round_trains_on_no_more_frames_than_asked_and_each_draws_anew(state):
    few = {"max_frames": 6, "max_held_out": 3}
    results = [run(state, number, distill=few) for number in (2, 2, 3, 4)]
    with FrameStore(state.frames) as store:
        ids = store.labelled_ids("train")
    for result in results:
        assert (result["train_frames"], result["held_out_frames"]) == (6, 3)
        assert set(result["train_ids"]) <= set(ids)  # never on held-out ones
        assert result["train_ids"][-3:] == ids[-3:]
    draws = [result["train_ids"] for result in results]
    assert draws[0] == draws[1]
    assert draws[1] != draws[2] or draws[2] != draws[3]


def test_the_same_seed_gives_the_same_scores_and_judging_tells_its_progress(state, live):
    StudentRegistry(state.students).add(small_student())  # not live, so no incumbent
    events = events_of(state)
    assert events[-1]["parent"] == "000001"
    assert events[-1]["after"] == run(state)["after"]
    assert np.isfinite(list(events[-1]["after"].values())).all()
    judging = [e for e in events if e["event"] == "progress" and e["stage"] == "judging"]
    assert [(e["step"], e["steps"]) for e in (judging[0], judging[-1])] == [(1, 12), (12, 12)]
    assert len(judging) < 12  # throttled


def test_damaged_frames_are_passed_over_and_named(state):
    with FrameStore(state.frames) as store:
        train, held_out = store.labelled_ids("train"), store.labelled_ids("held_out")
    spoil(state, [train[0], held_out[0]])
    events = events_of(state)
    assert {"event": "undecodable", "ids": [train[0], held_out[0]]} in events
    assert events[-1]["train_ids"] == train[1:]
    assert events[-1]["held_out_frames"] == 11


def test_a_round_with_too_few_sound_frames_is_refused_and_names_the_others(state):
    with FrameStore(state.frames) as store:
        ids = store.labelled_ids("train")
    spoil(state, ids[-1:])
    with pytest.raises(RoundRefusedError, match="another draw"):
        run(state, distill={"max_frames": 1})
    spoil(state, ids[:4])
    events: list[dict[str, Any]] = []
    with pytest.raises(RoundRefusedError, match=r"7 for training \(need 8\)"):
        run_round(state, small_plan(), 2, events.append)
    assert events[-1] == {"event": "undecodable", "ids": [*ids[:4], ids[-1]]}
