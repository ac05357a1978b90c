"""The demo's own arithmetic: scores of the stream, frames lost by swaps, and when it has failed."""

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
    print_result,
    scored,
    write_sheet,
)
from tiekd_ros.demo.score import (
    LEAST_S,
    SETTLE_S,
    UNFINISHED_S,
    Scoreboard,
    ScoredFrame,
    StreamScore,
    lost_by_swaps,
    matching_frames,
    measured_seconds,
    measured_turn,
)
from tiekd_ros.rounds.round_log import RoundKind

# Frames lost by swaps, on streams made by hand: a stall must never pass as a clean swap.

RATE_HZ = 10
SWAP = 60.0
TAKES = 5.0  # from asking for a student to its announcement


def ns(seconds: float) -> int:
    return round(seconds * 1e9)


def stamps(begin: float, end: float) -> list[int]:
    """Return the stamps from begin to end in s, at the camera's rate."""
    return [ns(n / RATE_HZ) for n in range(round(begin * RATE_HZ), round(end * RATE_HZ))]


IMAGES = stamps(0, 120)


def lost(depths: list[int], images: list[int] = IMAGES, *swaps: float) -> int:
    return lost_by_swaps(
        images, depths, [(ns(swap - TAKES), ns(swap)) for swap in swaps or (SWAP,)]
    )


def test_every_frame_of_a_stall_around_the_announcement_counts():
    assert lost(stamps(20, 120)) == 0
    for stall in (0.5, 1.5, 5.0):
        assert lost(stamps(20, SWAP - stall) + stamps(SWAP, 120)) == stall * RATE_HZ
    for stall in (0.5, 1.5):
        assert lost(stamps(20, SWAP) + stamps(SWAP + stall, 120)) == stall * RATE_HZ
    assert lost(stamps(20, 58) + stamps(59, 120), IMAGES, SWAP, SWAP + 1) == RATE_HZ  # once


def test_a_stream_that_dies_at_a_swap_is_lost():
    assert lost(stamps(20, SWAP)) >= 3 * RATE_HZ
    images = stamps(0, SWAP + 2)  # shortly before the end
    assert lost(stamps(20, SWAP), images) == pytest.approx((2 - UNFINISHED_S) * RATE_HZ, abs=1)
    assert lost([], stamps(SWAP, SWAP + 2)) > 0


def test_images_far_from_a_swap_before_the_first_student_or_still_on_their_way_are_not_lost():
    assert lost(stamps(SWAP - TAKES / 2, 120)) == 0
    assert lost(stamps(20, 30) + stamps(31, 120)) == 0
    assert lost(stamps(20, SWAP + 1.7), stamps(0, SWAP + 2)) == 0
    assert lost([], []) == lost_by_swaps(IMAGES, [], []) == 0


# Students are compared over the same stretch of the camera's path, away from any swap.


def test_whole_turns_are_measured_and_no_more_than_needed():
    for turn_s in (0.7, 10.0, 24.0, 25.0, 60.0):
        seconds = measured_seconds(turn_s)
        assert seconds / turn_s == pytest.approx(round(seconds / turn_s))
        assert seconds >= LEAST_S
        assert seconds == turn_s or seconds < LEAST_S + turn_s


def test_the_first_turn_begins_when_the_swap_has_settled_and_takes_its_time():
    for since in (-3.0, 0.0, SETTLE_S - 0.01):
        assert measured_turn(since, 60.0) is None
    for since, turn in ((SETTLE_S, 0), (SETTLE_S + 59.9, 0), (SETTLE_S + 60.1, 1)):
        assert measured_turn(since, 60.0) == turn


# Scores, against values worked out from all pixels at once.


def frame(depth, truth, seed: int = 0) -> ScoredFrame:
    image = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return ScoredFrame(seed, image, np.asarray(depth, np.float32), np.asarray(truth, np.float32))


def test_errors_are_pooled_over_all_known_pixels_of_all_frames():
    rng = np.random.default_rng(0)
    truths = rng.uniform(1, 5, (3, 4, 6)).astype(np.float32)
    depths = truths + rng.uniform(-0.1, 0.1, truths.shape).astype(np.float32)
    truths[1, 0, :3] = np.nan
    score = StreamScore()
    for depth, truth in zip(depths, truths, strict=True):
        score.add(frame(depth, truth))
    known = np.isfinite(truths)
    error = depths[known].astype(np.float64) - truths[known]
    assert (score.frames, score.pixels) == (3, known.sum())
    assert score.rmse == pytest.approx(np.sqrt(np.mean(error**2)))
    assert score.abs_rel == pytest.approx(np.mean(np.abs(error) / truths[known]))
    assert score.constant_rmse == pytest.approx(truths[known].astype(np.float64).std())


def test_no_constant_beats_the_constant_rmse():
    truth = np.random.default_rng(1).uniform(1, 5, (8, 8))
    score = StreamScore()
    score.add(frame(truth, truth))
    tried = min(math.sqrt(np.mean((c - truth) ** 2)) for c in np.linspace(1, 5, 400))
    assert score.constant_rmse <= tried + 1e-6


def test_infinite_depth_counts_as_the_end_of_the_range_and_a_hole_as_the_farthest():
    board = Scoreboard()
    assert math.isnan(board.of("000001").rmse)
    board.add("000001", frame([[1.0, 1.0]], [[np.nan, 0.0]]), 0.5, 6.0)  # nothing is known
    assert (board.of("000001").frames, board.of("000003").frames) == (0, 0)
    assert math.isnan(board.of("000001").constant_rmse)
    board.add("000001", frame([[np.inf, -np.inf, np.nan]], [[5.0, 1.0, 2.0]]), 0.5, 6.0)
    assert board.of("000001").rmse == pytest.approx(math.sqrt((1 + 0.25 + 16) / 3))


def test_each_student_has_its_own_score_and_sizes_are_brought_together():
    board = Scoreboard()
    board.add("000001", frame(np.full((2, 2), 2.0), np.full((4, 4), 1.0)), 0.1, 10.0)
    board.add("000002", frame(np.full((4, 4), 1.0), np.full((4, 4), 1.0)), 0.1, 10.0)
    assert board.of("000001").pixels == 16
    assert board.of("000002").rmse == 0


def test_views_of_the_same_place_are_paired_and_no_place_is_shown_twice():
    flat = np.ones((2, 2))
    before = [frame(flat, flat, seed) for seed in range(6)]
    after = [frame(flat, flat, seed) for seed in (90, 4, 91, 1, 4, 1)]
    pairs = matching_frames(before, after, 9)
    assert [(old.stamp_ns, new.stamp_ns) for old, new in pairs] == [(4, 4), (1, 1)]
    assert len(matching_frames(before, after, 1)) == 1
    assert matching_frames([], after, 2) == matching_frames(before, [], 2) == []


# Results.

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


def test_a_good_run_has_no_failures_and_one_that_lost_frames_or_is_no_better_than_a_constant_has():
    assert GOOD.failures == []
    (failure,) = replace(GOOD, rmse=1.0).failures
    assert "not better than the best constant" in failure
    assert replace(GOOD, dropped_by_swap=3).failures == ["3 frames were dropped by a swap"]
    for which in (0, 1):
        rounds = list(GOOD.rounds)
        rounds[which] = replace(rounds[which], frames_measured=LEAST_FRAMES - 1)
        (failure,) = with_rounds(*rounds).failures
        assert f"measured on {LEAST_FRAMES - 1} frames only" in failure


def test_a_second_student_may_be_worse_by_the_noise_and_no_more():
    for factor, fails in ((1 + NOISE / 2, False), (1 + 2 * NOISE, True)):
        second = replace(ACCEPTED, version="000002", rmse=ACCEPTED.rmse * factor)
        failures = with_rounds(ACCEPTED, second).failures
        assert bool(failures) is fails
        assert all("student 000002 made the stream worse" in text for text in failures)
    # A refused candidate is never live, and after one there is nothing to compare with.
    assert with_rounds(ACCEPTED, replace(REFUSED, rmse=0.5)).failures == []
    assert with_rounds(REFUSED, ACCEPTED).failures == []


def shown(result: DemoResult, sheet: Path | None = None) -> str:
    console = Console(file=io.StringIO(), width=120)
    print_result(console, result, Path("/out"), sheet)
    return console.file.getvalue()


def test_what_is_not_known_is_null_for_programs_and_a_dash_for_people(tmp_path):
    before = replace(GOOD, rounds=[REFUSED, replace(REFUSED, version="000002")], student=None)
    result = scored(before, Scoreboard())
    assert result.failures == ["no student was accepted, so there was no depth"]
    values = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    for name in ("rmse", "abs_rel", "constant_rmse", "student"):
        assert values[name] is None
    assert values["rounds"][0]["rmse"] is None
    assert write_sheet(tmp_path / "sheet.png", result, Scoreboard()) is None
    assert "nan" not in shown(result)
    assert "- > -" in shown(result)
    assert "failed: no student was accepted" in shown(result)
    # An accepted student that was never measured is shown, and fails.
    result = scored(with_rounds(ACCEPTED), Scoreboard())
    assert len(result.failures) == 2
    assert "nan" not in shown(result, write_sheet(tmp_path / "s", result, Scoreboard()))


def test_the_score_is_of_the_last_accepted_students_first_turn():
    board = Scoreboard()
    truth = np.array([[1, 2, 3, 4]] * 4, np.float32)
    for version, turn, error in (
        ("000001", 0, 0.5), ("000001", 0, 0.5), ("000001", 1, 0.25), ("000001", 1, 0.25),
        ("000001", 2, 9.0), ("000003", 0, 0.125),
    ):  # fmt: skip
        board.add(version, frame(truth + np.float32(error), truth), 0.1, 10.0, turn)
    rounds = [ACCEPTED, replace(REFUSED, version="000002"), replace(ACCEPTED, version="000003")]
    result = scored(with_rounds(*rounds), board)
    assert [r.rmse for r in result.rounds] == pytest.approx([0.5, 0.5, 0.125])
    assert result.rounds[0].rmse_repeated == pytest.approx([0.25])  # turn 2 is not whole
    assert (result.rmse, result.frames_measured) == (pytest.approx(0.125), 1)
    assert result.constant_rmse == pytest.approx(math.sqrt(1.25))


def test_the_calibrated_base_has_a_row_of_its_own_and_no_round_has_to_beat_its_part_of_a_turn(
    tmp_path,
):
    base = replace(ACCEPTED, kind=RoundKind.CALIBRATION, rmse=0.3)
    second, third = (replace(ACCEPTED, version=version) for version in ("000002", "000003"))
    result = replace(with_rounds(base, second, third), first_depth_seconds=14.2)
    assert result.failures == []
    lines = [line.split() for line in shown(result).splitlines()]
    rows = [line[0] for line in lines if "accepted" in line]
    assert rows == ["base", "1", "2"]
    assert "the first after 14 s" in shown(result)
    assert "the first never" in shown(with_rounds())
    assert result.as_dict()["first_depth_seconds"] == 14.2
    assert result.as_dict()["rounds"][0]["kind"] == "calibration"
    board = Scoreboard()
    for seed, version in enumerate(("000001", "000002", "000003")):
        for place in range(2):
            board.add(version, frame(np.full((24, 32), seed + 1.0), np.ones((24, 32)), place), 0, 9)
    assert write_sheet(tmp_path / "sheet.png", result, board)  # of the first and the last


def test_a_round_is_read_from_its_status():
    status = {
        "state": "promoted", "reason": "better", "version": "000001", "baseline": "constant",
        "kind": "training",
        "train_frames": "20", "held_out_frames": "4", "train_seconds": "10.5",
        "before.rmse": "1.0", "after.rmse": "0.5",
    }  # fmt: skip
    entry = RoundResult.from_status(status, 20.0)
    assert entry.accepted
    assert (entry.held_out_before, entry.held_out_after) == ({"rmse": 1.0}, {"rmse": 0.5})
    assert math.isnan(entry.rmse)
