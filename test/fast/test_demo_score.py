"""Scores of the published stream, against values worked out from all pixels at once."""

import math

import numpy as np
import pytest

from tiekd_ros.demo.results import Scoreboard, StreamScore, View, matching_views


def view(depth, truth, seed: int = 0) -> View:
    image = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return View(seed, image, np.asarray(depth, np.float32), np.asarray(truth, np.float32))


def test_errors_are_pooled_over_all_known_pixels_of_all_frames():
    rng = np.random.default_rng(0)
    truths = rng.uniform(1, 5, (3, 4, 6)).astype(np.float32)
    depths = truths + rng.uniform(-0.1, 0.1, truths.shape).astype(np.float32)
    truths[1, 0, :3] = np.nan
    score = StreamScore()
    for depth, truth in zip(depths, truths, strict=True):
        score.add(view(depth, truth))
    known = np.isfinite(truths)
    error = depths[known].astype(np.float64) - truths[known]
    assert (score.frames, score.pixels) == (3, known.sum())
    assert score.rmse == pytest.approx(np.sqrt(np.mean(error**2)))
    assert score.abs_rel == pytest.approx(np.mean(np.abs(error) / truths[known]))
    assert score.constant_rmse == pytest.approx(truths[known].astype(np.float64).std())


def test_no_constant_beats_the_constant_rmse():
    truth = np.random.default_rng(1).uniform(1, 5, (8, 8))
    score = StreamScore()
    score.add(view(truth, truth))
    tried = min(math.sqrt(np.mean((c - truth) ** 2)) for c in np.linspace(1, 5, 400))
    assert score.constant_rmse <= tried + 1e-6


def test_infinite_depth_counts_as_the_end_of_the_range_and_a_hole_as_the_farthest():
    board = Scoreboard()
    board.add("000001", view([[np.inf, -np.inf, np.nan]], [[5.0, 1.0, 2.0]]), 0.5, 6.0)
    assert board.of("000001").rmse == pytest.approx(math.sqrt((1 + 0.25 + 16) / 3))


def test_without_a_known_pixel_there_is_no_score():
    score = StreamScore()
    score.add(view([[1.0]], [[np.nan]]))
    score.add(view([[1.0]], [[0.0]]))
    assert score.frames == 0
    assert math.isnan(score.rmse)
    assert math.isnan(score.constant_rmse)


def test_each_student_has_its_own_score_and_sizes_are_brought_together():
    board = Scoreboard()
    board.add("000001", view(np.full((2, 2), 2.0), np.full((4, 4), 1.0)), 0.1, 10.0)
    board.add("000002", view(np.full((4, 4), 1.0), np.full((4, 4), 1.0)), 0.1, 10.0)
    assert board.of("000001").pixels == 16
    assert board.of("000002").rmse == 0
    assert board.of("000003").frames == 0


def test_views_of_the_same_place_are_paired_and_no_place_is_shown_twice():
    flat = np.ones((2, 2))
    before = [view(flat, flat, seed) for seed in range(6)]
    after = [view(flat, flat, seed) for seed in (90, 4, 91, 1, 4, 1)]
    pairs = matching_views(before, after, 9)
    assert [(old.stamp_ns, new.stamp_ns) for old, new in pairs] == [(4, 4), (1, 1)]
    assert len(matching_views(before, after, 1)) == 1
    assert matching_views([], after, 2) == matching_views(before, [], 2) == []
