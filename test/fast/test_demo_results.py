"""When the demo says that it failed, and what it shows of numbers that are not known."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tiekd_ros.demo.results import (
    LEAST_FRAMES,
    NOISE,
    DemoResult,
    RoundResult,
    Scoreboard,
    View,
    print_result,
    scored,
    write_sheet,
)

REFUSED = RoundResult(
    accepted=False, reason="worse than a constant", version="000001", held_out_before={},
    held_out_after={}, baseline="constant", frames=20, held_out_frames=4, train_seconds=10.0,
    trigger_to_live_seconds=None,
)  # fmt: skip
ACCEPTED = replace(
    REFUSED, accepted=True, reason="better", trigger_to_live_seconds=20.0, rmse=0.5, abs_rel=0.1,
    frames_measured=100,
)  # fmt: skip
GOOD = DemoResult(
    scene="a scene", rounds=[ACCEPTED, replace(ACCEPTED, version="000002", rmse=0.4)],
    frames_published=1000, dropped_by_swap=0, student="000002", state="/state", rmse=0.4,
    abs_rel=0.1, constant_rmse=1.0, frames_measured=100,
)  # fmt: skip


def with_rounds(*rounds: RoundResult) -> DemoResult:
    return replace(GOOD, rounds=list(rounds))


def test_a_good_run_has_no_failures():
    assert GOOD.failures == []


def test_depth_that_is_no_better_than_a_constant_fails():
    (failure,) = replace(GOOD, rmse=1.0).failures
    assert "not better than the best constant" in failure


def test_a_dropped_frame_fails():
    assert replace(GOOD, dropped_by_swap=3).failures == ["3 frames were dropped by a swap"]


@pytest.mark.parametrize(("factor", "fails"), [(1 + NOISE / 2, False), (1 + 2 * NOISE, True)])
def test_a_second_student_may_be_worse_by_the_noise_and_no_more(factor, fails):
    second = replace(ACCEPTED, version="000002", rmse=ACCEPTED.rmse * factor)
    failures = with_rounds(ACCEPTED, second).failures
    assert bool(failures) is fails
    assert all("student 000002 made the stream worse" in text for text in failures)


def test_a_refused_candidate_is_no_worse():
    assert with_rounds(ACCEPTED, replace(REFUSED, rmse=0.5)).failures == []


def test_a_student_accepted_after_a_refused_one_has_nothing_to_be_compared_with():
    assert with_rounds(REFUSED, ACCEPTED).failures == []


@pytest.mark.parametrize("which", [0, 1])
def test_a_student_measured_on_a_handful_of_frames_fails(which):
    rounds = [ACCEPTED, replace(ACCEPTED, version="000002")]
    rounds[which] = replace(rounds[which], frames_measured=LEAST_FRAMES - 1)
    (failure,) = with_rounds(*rounds).failures
    assert f"measured on {LEAST_FRAMES - 1} frames only" in failure


def nothing_accepted() -> DemoResult:
    before = replace(GOOD, rounds=[REFUSED, replace(REFUSED, version="000002")], student=None)
    return scored(before, Scoreboard())


def test_without_an_accepted_student_the_demo_fails_and_says_so():
    assert nothing_accepted().failures == ["no student was accepted, so there was no depth"]


def test_what_is_not_known_is_null_for_programs_and_a_dash_for_people(tmp_path):
    result = nothing_accepted()
    values = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    for name in ("rmse", "abs_rel", "constant_rmse", "student"):
        assert values[name] is None
    assert values["rounds"][0]["rmse"] is None
    console = Console(file=io.StringIO(), width=120)
    assert write_sheet(tmp_path / "sheet.png", result, Scoreboard()) is None
    print_result(console, result, Path("/out"), None)
    shown = console.file.getvalue()
    assert "nan" not in shown
    assert "- > -" in shown
    assert "failed: no student was accepted" in shown


def test_an_accepted_student_that_was_never_measured_is_shown_and_fails(tmp_path):
    result = scored(with_rounds(ACCEPTED), Scoreboard())
    assert len(result.failures) == 2
    console = Console(file=io.StringIO(), width=120)
    print_result(console, result, Path("/out"), write_sheet(tmp_path / "s", result, Scoreboard()))
    assert "nan" not in console.file.getvalue()


def test_the_score_is_of_the_last_accepted_students_first_turn():
    board = Scoreboard()
    image = np.zeros((4, 4, 3), np.uint8)

    def add(version: str, turn: int, error: float) -> None:
        truth = np.array([[1, 2, 3, 4]] * 4, np.float32)
        view = View(0, image, truth + np.float32(error), truth)
        board.add(version, view, 0.1, 10.0, turn)

    for version, turn, error in (
        ("000001", 0, 0.5), ("000001", 0, 0.5), ("000001", 1, 0.25), ("000001", 1, 0.25),
        ("000001", 2, 9.0), ("000003", 0, 0.125),
    ):  # fmt: skip
        add(version, turn, error)
    rounds = [ACCEPTED, replace(REFUSED, version="000002"), replace(ACCEPTED, version="000003")]
    result = scored(with_rounds(*rounds), board)
    assert [r.rmse for r in result.rounds] == pytest.approx([0.5, 0.5, 0.125])
    assert result.rounds[0].rmse_repeated == pytest.approx([0.25])  # turn 2 is not whole
    assert (result.rmse, result.frames_measured) == (pytest.approx(0.125), 1)
    assert result.constant_rmse == pytest.approx(math.sqrt(1.25))


def test_a_round_is_read_from_its_status():
    status = {
        "state": "accepted", "reason": "better", "version": "000001", "baseline": "constant",
        "train_frames": "20", "held_out_frames": "4", "train_seconds": "10.5",
        "before.rmse": "1.0", "after.rmse": "0.5",
    }  # fmt: skip
    entry = RoundResult.from_status(status, 20.0)
    assert entry.accepted
    assert (entry.held_out_before, entry.held_out_after) == ({"rmse": 1.0}, {"rmse": 0.5})
    assert math.isnan(entry.rmse)
