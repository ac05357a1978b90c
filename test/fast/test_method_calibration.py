"""A scale fitted to labels: found again among outliers, and 1 where labels say little else."""

from __future__ import annotations

import numpy as np
import pytest

from tiekd_ros.core.images import DepthMap
from tiekd_ros.method.calibration import label_factor, scale_for


def maps(count: int = 12) -> list[DepthMap]:
    rng = np.random.default_rng(0)
    return [rng.uniform(0.5, 6.0, (48, 64)).astype(np.float32) for _ in range(count)]


@pytest.mark.parametrize(("factor", "scale"), [(2.5, 2.15), (0.4, 0.465), (1.1, 1.0), (0.9, 1.0)])
def test_a_factor_is_found_though_a_fifth_of_the_labels_is_wrong(factor, scale):
    said = maps()
    labels = [np.float32(factor) * one for one in said]
    for label in labels:
        label[:5] = 9.0
        label[5:10] = 0.2
        label[20:30] = np.nan
    found = label_factor(said, labels)
    assert found == pytest.approx(factor, rel=0.01)
    assert scale_for(found) == pytest.approx(scale, rel=0.01)


def test_a_frame_with_few_known_pixels_counts_like_any_other():
    said = maps(3)
    labels = [3.0 * said[0], 3.0 * said[1], said[2]]
    for label in labels[:2]:
        label[2:] = np.nan
    assert label_factor(said, labels) > 2.5


def test_without_a_known_pixel_nothing_changes():
    said = maps(2)
    assert label_factor(said, [np.full_like(one, np.nan) for one in said]) == 1.0
