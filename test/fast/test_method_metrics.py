"""Metrics against values worked out by hand, and the best constant against trying them all."""

import math

import numpy as np
import pytest

from tiekd_ros.core.errors import BadDepthError
from tiekd_ros.method.metrics import best_constant, depth_metrics, mean_metrics


def test_metrics_of_two_pixels_are_those_worked_out_by_hand():
    truth = np.array([[2.0, 4.0]])
    predicted = np.array([[1.0, 5.0]])
    m = depth_metrics(predicted, truth, 0.1, 10.0)
    assert m.abs_rel == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert m.sq_rel == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert m.rmse == pytest.approx(1.0)
    logs = np.array([-math.log(2), math.log(1.25)])
    assert m.rmse_log == pytest.approx(math.sqrt((logs[0] ** 2 + logs[1] ** 2) / 2))
    assert m.log10 == pytest.approx((math.log10(2) + math.log10(1.25)) / 2)
    # silog: 100 * sqrt(mean(d^2) - mean(d)^2), half the distance of two log errors
    assert m.silog == pytest.approx(100 * (logs[1] - logs[0]) / 2)
    assert (m.a1, m.a2, m.a3) == (0.0, 0.5, 0.5)  # ratios 2 and 1.25: < is strict


def test_only_known_truth_inside_the_range_counts_and_predictions_are_clamped_to_it():
    truth = np.array([[np.nan, 0.0, 0.05, 2.0, 10.0, 50.0, np.inf]])
    predicted = np.array([[1.0, 1.0, 1.0, 3.0, np.nan, np.nan, 1.0]])
    assert depth_metrics(predicted, truth, 0.1, 10.0).abs_rel == pytest.approx(0.5)
    clamped = depth_metrics(np.array([[-5.0, np.inf]]), np.array([[2.0, 4.0]]), 1.0, 10.0)
    assert clamped.rmse == pytest.approx(math.sqrt((1 + 36) / 2))
    assert depth_metrics(np.ones((2, 2)), np.full((2, 2), np.nan), 0.1, 10.0) is None


def test_silog_forgives_a_wrong_scale_and_rmse_does_not():
    truth = np.random.default_rng(0).uniform(1, 4, (8, 8))
    m = depth_metrics(1.5 * truth, truth, 0.1, 10.0)
    assert m.silog == pytest.approx(0, abs=1e-5)
    assert m.abs_rel == pytest.approx(0.5)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(BadDepthError, match=r"\(2, 2\) with \(2, 3\)"):
        depth_metrics(np.ones((2, 2)), np.ones((2, 3)), 0.1, 10.0)
    with pytest.raises(BadDepthError, match="NaN where the truth is known"):
        depth_metrics(np.full((2, 2), np.nan), np.ones((2, 2)), 0.1, 10.0)
    with pytest.raises(BadDepthError, match="no image had a valid pixel"):
        mean_metrics([])
    with pytest.raises(BadDepthError, match="no depth map has a valid pixel"):
        best_constant([np.full((2, 2), np.nan)], 0.1, 10.0)


def test_the_mean_is_over_images_not_pixels():
    one = depth_metrics(np.array([[3.0]]), np.array([[2.0]]), 0.1, 10.0)
    other = depth_metrics(np.full((1, 9), 2.0), np.full((1, 9), 2.0), 0.1, 10.0)
    assert mean_metrics([one, other]).abs_rel == pytest.approx(0.25)


@pytest.mark.parametrize("seed", range(4))
def test_the_best_constant_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    truths = [rng.uniform(0.5, rng.uniform(2, 9.5), (12, 16)) for _ in range(5)]
    truths[0][:6] = np.nan
    truths[1][0] = 30.0

    def mean_rmse(constant: float) -> float:
        each = [depth_metrics(np.full_like(t, constant), t, 0.1, 10.0).rmse for t in truths]
        return float(np.mean(each))

    tried = min(mean_rmse(c) for c in np.linspace(0.1, 10.0, 2000))
    assert mean_rmse(best_constant(truths, 0.1, 10.0)) <= tried + 1e-4
