"""Random views for training: the same everywhere, as varied as promised, depth still exact."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pytest
from random_world import RandomisedWorld, RandomView, random_exposure

SEEDS = (7, 8)
SIZE = (80, 60)
COUNT = 12
FLOOR_TOLERANCE_M = 1e-4


@lru_cache(maxsize=2)
def world(seed: int) -> RandomisedWorld:
    return RandomisedWorld(seed)


@lru_cache(maxsize=64)
def view(seed: int, index: int) -> RandomView:
    return world(seed).view(index, *SIZE)


def points_of(shown: RandomView) -> npt.NDArray[np.float64]:
    """Return the world point of every pixel, (H, W, 3), metres."""
    height, width = shown.depth.shape
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    camera, z = shown.intrinsics, shown.depth.astype(np.float64)
    rays = [(x - camera.cx) / camera.fx * z, (y - camera.cy) / camera.fy * z, z]
    return np.stack(rays, axis=-1) @ shown.pose[:3, :3].T + shown.pose[:3, 3]


def test_depth_is_finite_and_puts_the_floor_at_height_zero() -> None:
    """Nothing lies below the floor, and what is seen below the camera's horizon reaches it."""
    for seed in SEEDS:
        views = [view(seed, index) for index in range(COUNT)]
        heights = np.concatenate([points_of(shown)[..., 2].ravel() for shown in views])
        assert heights.min() > -FLOOR_TOLERANCE_M
        on_floor = np.abs(heights) < FLOOR_TOLERANCE_M
        assert 0.05 < on_floor.mean() < 0.7
        assert heights.max() < 2.9  # no ceiling is higher
        depths = np.stack([shown.depth for shown in views])
        assert np.isfinite(depths).all()
        assert 0.03 < depths.min() < depths.max() < 20.0


def test_cameras_vary_as_promised_some_near_things_and_few_before_bare_walls() -> None:
    views = [view(seed, index) for seed in SEEDS for index in range(COUNT)]
    angles = np.array([2 * np.degrees(np.arctan(SIZE[0] / 2 / v.intrinsics.fx)) for v in views])
    heights = np.array([v.pose[2, 3] for v in views])
    assert 50 <= angles.min() < 60
    assert 90 < angles.max() <= 100
    assert 0.3 <= heights.min() < 0.6
    assert 1.6 < heights.max() <= 1.9
    yaws = np.array([np.arctan2(v.pose[1, 2], v.pose[0, 2]) for v in views])
    assert (np.histogram(yaws, 4, (-np.pi, np.pi))[0] > 0).all()
    for v in views:
        assert np.allclose(v.pose[:3, :3] @ v.pose[:3, :3].T, np.eye(3), atol=1e-9)
        assert np.linalg.det(v.pose[:3, :3]) == pytest.approx(1.0)
    assert np.mean([(v.depth < 1.0).mean() for v in views]) > 0.05
    near, far = np.percentile([v.depth for v in views], (5, 95), axis=(1, 2))
    assert np.mean(far / near < 1.8) < 0.3


def test_a_view_depends_on_seed_and_index_alone() -> None:
    later, first = world(8).view(5, *SIZE), view(8, 5)
    assert _digest(later) == _digest(first) != _digest(view(8, 6))
    assert _digest(view(7, 0)) != _digest(view(8, 0))


def test_size_changes_the_pixels_and_not_the_scene() -> None:
    small, large = view(7, 2), world(7).view(2, 2 * SIZE[0], 2 * SIZE[1])
    assert np.array_equal(small.pose, large.pose)
    assert large.intrinsics.fx == pytest.approx(2 * small.intrinsics.fx)


def test_a_sensor_changes_colours_and_moves_nothing() -> None:
    """A bright half beside a dark one stays where it is in every kind of picture."""
    linear = np.full((40, 60, 3), 40.0, np.float32)
    linear[:, 30:] = 180.0
    for seed in range(40):
        image = random_exposure(linear.copy(), np.random.default_rng(seed))
        assert image.shape == linear.shape
        assert image.dtype == np.uint8
        grey = image.astype(float).mean(axis=(0, 2))
        assert grey[36:].mean() > grey[:24].mean()
        assert abs(int(np.argmax(np.diff(grey))) - 29) <= 3


def _digest(shown: RandomView) -> str:
    return hashlib.sha256(shown.image.tobytes() + shown.depth.tobytes()).hexdigest()
