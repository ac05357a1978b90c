"""Two numbers fitted to labels: found again among outliers, and harmless where they say nothing."""

from __future__ import annotations

import numpy as np
import pytest

from tiekd_ros.core.images import DepthMap
from tiekd_ros.method.calibration import fit_calibration


def maps(count: int = 12) -> list[DepthMap]:
    rng = np.random.default_rng(0)
    return [rng.uniform(0.5, 6.0, (48, 64)).astype(np.float32) for _ in range(count)]


def test_scale_and_exponent_are_found_though_a_fifth_of_the_labels_is_wrong():
    said = maps()
    labels = [(2.0 * one**0.6).astype(np.float32) for one in said]
    for label in labels:
        label[:10] = 9.0
        label[20:30] = np.nan
    found = fit_calibration(said, labels)
    assert found.scale == pytest.approx(2.0, rel=0.02)
    assert found.exponent == pytest.approx(0.6, abs=0.02)


def test_one_wall_tells_the_scale_only():
    flat = [np.full((48, 64), 2.0, np.float32)] * 12
    found = fit_calibration(flat, [one * 1.5 for one in flat])
    assert found.exponent == pytest.approx(1.0)
    assert found.scale == pytest.approx(1.5)


def test_a_base_that_knows_nothing_is_not_believed():
    said, labels = maps(), maps(13)[1:]
    assert fit_calibration(said, labels).exponent == pytest.approx(0.2)


def test_without_a_known_pixel_nothing_changes():
    said = maps(2)
    nothing = [np.full_like(one, np.nan) for one in said]
    assert fit_calibration(said, nothing).depth(said[0]) == pytest.approx(said[0])
