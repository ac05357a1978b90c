"""Augmentation: every variation is a possible view of a possible scene.

The scene is a wall that stands askew, with a pattern painted on it as a function of the
direction of view: image, depth and intrinsics of any view of it can be worked out.
"""

import math

import numpy as np
import pytest
import torch

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.method.samples import AugmentSettings, Sample, augment, cell_depth, fit_sample
from tiekd_ros.student.architecture import InputSize

HEIGHT, WIDTH = 96, 128
CAMERA = Intrinsics(100.0, 105.0, 55.0, 40.0)
PLAIN = AugmentSettings(flip=0.0, zoom=1.0, brightness=0.0, gamma=0.0, colour=0.0)
SLOPE_X, SLOPE_Y, DISTANCE_M = 0.5, -0.3, 4.0


def rays(camera: Intrinsics) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return (x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy


def wall(camera: Intrinsics) -> Sample:
    """Return what a camera sees of the wall z = DISTANCE + SLOPE_X x + SLOPE_Y y."""
    u, v = rays(camera)
    depth = DISTANCE_M / (1 - SLOPE_X * u - SLOPE_Y * v)
    red = 128 + 100 * np.sin(6 * u)
    green = 128 + 100 * np.sin(6 * v)
    image = np.stack([red, green, np.full_like(red, 60)], -1)
    return Sample(image.round().astype(np.uint8), depth.astype(np.float32), camera)


def surface(sample: Sample) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the 3-D points that a sample shows, in metres."""
    u, v = rays(sample.intrinsics)
    return u * sample.depth, v * sample.depth, sample.depth


INNER = (slice(4, -4), slice(4, -4))  # borders are made up by repeating


def check_is_a_view_of_the_wall(sample: Sample, sign: float, zoom: float) -> None:
    """Check points and pattern: each point of the wall, mirrored if sign = -1, where x and y
    stay and z is `zoom` times smaller.
    """
    x, y, z = surface(sample)
    wanted = (DISTANCE_M + SLOPE_X * sign * x + SLOPE_Y * y) / zoom
    # Depth is taken from the nearest pixel: off by half a pixel of the slope.
    error = np.abs(z - wanted)[INNER]
    assert np.nanmax(error) < 0.6 * np.nanmax(np.abs(np.gradient(z)[1]))
    u, v = sign * x / (z * zoom), y / (z * zoom)
    for channel, ray in ((0, u), (1, v)):
        pattern = 128 + 100 * np.sin(6 * ray)
        # Eighth of a pixel: OpenCV's warps work with coordinates of 1/32 pixel.
        per_pixel = 100 * 6 / min(CAMERA.fx, CAMERA.fy)
        difference = np.abs(sample.image[..., channel] - pattern)[INNER]
        assert np.nanmax(difference) < 1.5 + per_pixel / 8


def test_a_plain_sample_stays_as_it_is():
    before = wall(CAMERA)
    after = augment(before, PLAIN, np.random.default_rng(0))
    np.testing.assert_array_equal(after.depth, before.depth)
    assert np.abs(after.image.astype(int) - before.image).max() <= 1
    assert after.intrinsics.as_tuple() == pytest.approx(before.intrinsics.as_tuple())
    check_is_a_view_of_the_wall(after, 1.0, 1.0)


def test_mirroring_moves_image_depth_and_principal_point_together():
    before = wall(CAMERA)
    settings = AugmentSettings(flip=1.0, zoom=1.0, brightness=0.0, gamma=0.0, colour=0.0)
    after = augment(before, settings, np.random.default_rng(0))
    np.testing.assert_array_equal(after.depth, before.depth[:, ::-1])
    assert np.abs(after.image.astype(int) - before.image[:, ::-1]).max() <= 1
    assert after.intrinsics.as_tuple() == pytest.approx((100.0, 105.0, WIDTH - 1 - 55.0, 40.0))
    check_is_a_view_of_the_wall(after, -1.0, 1.0)


def test_magnifying_shows_the_same_scene_closer():
    for flip in (0.0, 1.0):
        settings = AugmentSettings(flip=flip, zoom=1.6, brightness=0.0, gamma=0.0, colour=0.0)
        for seed in range(5):
            after = augment(wall(CAMERA), settings, np.random.default_rng(seed))
            zoom = np.random.default_rng(seed).uniform(1.0, 1.6)
            assert (after.intrinsics.fx, after.intrinsics.fy) == (CAMERA.fx, CAMERA.fy)
            check_is_a_view_of_the_wall(after, -1.0 if flip else 1.0, zoom)


def test_unknown_depth_stays_unknown_and_spreads_nowhere():
    before = wall(CAMERA)
    before.depth[20:50, 30:70] = np.nan
    settings = AugmentSettings(flip=1.0, zoom=1.5)
    for seed in range(5):
        after = augment(before, settings, np.random.default_rng(seed))
        zoom = np.random.default_rng(seed).uniform(1.0, 1.5)
        hole = np.isnan(after.depth)
        rows, columns = hole.any(1).sum(), hole.any(0).sum()
        assert hole.sum() == rows * columns  # still one rectangle
        assert rows <= 30 * zoom + 1
        assert columns <= 40 * zoom + 1
        assert np.nanmin(after.depth) >= before.depth[np.isfinite(before.depth)].min() / zoom


def test_colours_change_and_depth_does_not():
    before = wall(CAMERA)
    settings = AugmentSettings(flip=0.0, zoom=1.0, brightness=0.5, gamma=0.5, colour=0.5)
    after = augment(before, settings, np.random.default_rng(0))
    np.testing.assert_array_equal(after.depth, before.depth)
    assert np.abs(after.image.astype(int) - before.image).mean() > 5


def test_the_same_seed_gives_the_same_variation_with_intrinsics_and_without():
    before = wall(CAMERA)
    bare = Sample(before.image, before.depth)
    one, two, other = (
        augment(sample, AugmentSettings(), np.random.default_rng(seed))
        for sample, seed in ((before, 1), (bare, 1), (before, 2))
    )
    np.testing.assert_array_equal(one.image, two.image)
    np.testing.assert_array_equal(one.depth, two.depth)
    assert two.intrinsics is None
    assert not np.array_equal(one.image, other.image)


def test_fitting_brings_image_label_and_intrinsics_to_one_size():
    view = wall(CAMERA)
    label = view.depth[::2, ::2].copy()
    label[0, 0] = np.nan
    fitted = fit_sample(view.image, label, CAMERA, InputSize(64, 96))
    assert fitted.image.shape == (64, 96, 3)
    assert fitted.depth.shape == (64, 96)
    assert np.isnan(fitted.depth[0, 0])
    assert np.isfinite(fitted.depth[4:, 4:]).all()  # no depth is mixed with unknown
    assert fitted.intrinsics == CAMERA.scaled(96 / WIDTH, 64 / HEIGHT)


def test_a_quarter_is_the_mean_of_what_is_known_of_one_surface():
    depth = torch.full((1, 1, 8, 8), math.nan)
    depth[0, 0, 0, 0], depth[0, 0, 1, 2] = 2.9, 3.1
    depth[0, 0, :4, 4:] = 7.0
    depth[0, 0, 0, 4:], depth[0, 0, 1, 4:6] = 2.0, 3.0  # six of sixteen are in front of it
    depth[0, 0, 5, 5] = math.inf
    depth[0, 0, 6, 6] = 1.5
    quarter = cell_depth(depth, 4)
    expected = torch.tensor([[[[3.0, 7.0], [math.nan, 1.5]]]])
    torch.testing.assert_close(quarter, expected, equal_nan=True)
