"""Boundary F1 and flying pixels on a disc before a wall, where both are known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from tiekd_ros.core.errors import BadDepthError
from tiekd_ros.core.images import DepthMap
from tiekd_ros.method.metrics import boundary_errors


def disc(near_m: float = 1.0, far_m: float = 3.0) -> DepthMap:
    depth = np.full((80, 100), far_m, np.float32)
    return cv2.circle(depth, (50, 40), 20, near_m, -1)


def test_the_truth_itself_has_every_outline_and_no_flying_pixel():
    f1, flying = boundary_errors(disc(), disc())
    assert f1 == pytest.approx(1.0)
    assert flying == 0.0


def test_scale_does_not_matter_to_outlines():
    assert boundary_errors(2 * disc(), disc()).f1 == pytest.approx(1.0)


def test_a_blurred_map_flies_and_loses_its_outlines():
    soft = cv2.GaussianBlur(disc(), (0, 0), 3.0)
    f1, flying = boundary_errors(soft, disc())
    assert f1 < 0.5
    assert flying > 0.5


def test_a_flat_map_has_no_outline_and_flies_only_between_the_surfaces():
    flat = np.full_like(disc(), 2.0)
    assert boundary_errors(flat, disc()).f1 == pytest.approx(0.0, abs=1e-6)
    assert boundary_errors(flat, disc()).flying == 1.0
    assert boundary_errors(np.full_like(disc(), 3.0), disc()).flying == 0.0


def test_outlines_that_are_not_there_cost_precision():
    noise = np.random.default_rng(0).uniform(0.7, 1.3, disc().shape).astype(np.float32)
    assert boundary_errors(disc() * noise, disc()).f1 < 0.5


def test_unknown_truth_does_not_count():
    truth = disc()
    truth[:, :40] = np.nan
    predicted = disc()
    predicted[:, :38] = 0.3  # nothing is known there
    assert boundary_errors(predicted, truth).f1 == pytest.approx(1.0)
    f1, flying = boundary_errors(disc(), np.full_like(truth, 2.0))
    assert np.isnan(f1)
    assert np.isnan(flying)


def test_maps_of_two_sizes_are_refused():
    with pytest.raises(BadDepthError, match="shape"):
        boundary_errors(disc()[1:], disc())
