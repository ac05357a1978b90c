"""The published augmentation, its random draws, and the learning rate."""

from dataclasses import replace

import numpy as np
import pytest

from helpers.official import REFERENCE, needs_reference
from tiekd_ros.core.errors import BadDepthError, BadImageError
from tiekd_ros.method.paper.pipeline import (
    KITTI_AUGMENTATION,
    NYU_AUGMENTATION,
    Draws,
    apply_draws,
    augment,
    draw,
)

MEAN, STD = np.array((123.675, 116.28, 103.53)), np.array((58.395, 57.12, 57.375))
SMALL = replace(KITTI_AUGMENTATION, kb_size=(40, 64), crop_size=(36, 44))
NOTHING = Draws(1, 0, 1, 0, 0, 1, 1, 1, 1, 1, 1)


def frame(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image, rng.uniform(1, 80, (height, width)).astype(np.float32)


@needs_reference
@pytest.mark.parametrize("sample", range(3))
def test_a_seed_gives_the_published_view(sample):
    f = np.load(REFERENCE / "train_pipeline_kd.npz")
    image = np.ascontiguousarray(f[f"in_img_bgr_{sample}"][..., ::-1])
    rng = np.random.RandomState(int(f[f"seed_{sample}"]))
    view = augment(image, f[f"in_depth_{sample}"], f[f"in_kd_{sample}"], SMALL, rng)
    assert np.array(view.draws) == pytest.approx(f[f"draws_{sample}"], rel=1e-12)
    # A grey level, and single pixels of the truth: what versions of OpenCV may differ by.
    assert np.abs(view.image - f[f"out_img_{sample}"]).max() < 0.04
    assert np.mean(view.truth != f[f"out_depth_{sample}"]) < 0.01
    assert np.array_equal(view.teacher[None], f[f"out_kd_{sample}"])


def test_without_any_step_the_view_is_the_normalised_corner_of_the_kb_crop():
    image, truth = frame(47, 71)
    teacher = frame(40, 64, seed=1)[1]
    view = apply_draws(image, truth, teacher, SMALL, NOTHING)
    rows, columns = slice(7, 43), slice(3, 47)
    assert np.allclose(view.image, (image[rows, columns] - MEAN) / STD, atol=1e-5)
    assert np.array_equal(view.truth, truth[rows, columns])
    assert np.array_equal(view.teacher, teacher[:36, :44])


def test_flip_and_crop_move_picture_truth_and_teacher_alike():
    image, truth = frame(40, 64)
    view = apply_draws(image, truth, truth, SMALL, NOTHING._replace(flip=0.1, top=2, left=7))
    mirrored = truth[2:38, ::-1][:, 7:51]
    assert np.array_equal(view.truth, mirrored)
    assert np.array_equal(view.teacher, mirrored)
    picture = (image[2:38, ::-1][:, 7:51] - MEAN) / STD
    assert np.allclose(view.image, picture, atol=1e-5)


def test_the_published_rotation_leaves_the_teacher_behind():
    image, truth = frame(40, 64)
    turned = NOTHING._replace(rotate=0.1, degrees=2.5)
    published = apply_draws(image, truth, truth, SMALL, turned)
    assert np.array_equal(published.teacher, truth[:36, :44])
    assert not np.array_equal(published.truth, published.teacher)
    mended = apply_draws(image, truth, truth, replace(SMALL, rotate_teacher=True), turned)
    assert np.array_equal(mended.truth, mended.teacher)


def test_rotation_is_clockwise_and_brings_in_unknown_depth():
    # A line of depth through the middle, from left to right.
    numbers = replace(SMALL, kb_size=None, crop_size=(41, 61))
    image = np.zeros((41, 61, 3), np.uint8)
    truth = np.ones((41, 61), np.float32)
    truth[20] = 9.0
    turned = NOTHING._replace(rotate=0.1, degrees=10.0)
    view = apply_draws(image, truth, None, numbers, turned)
    assert view.truth[:, 5].argmax() < 20 < view.truth[:, 55].argmax()
    assert (view.truth == 0).any()
    assert view.teacher is None


def test_colours_change_on_the_scale_of_grey_levels_and_stay_within_it():
    image = np.full((36, 44, 3), 200, np.uint8)
    numbers = replace(SMALL, kb_size=None)
    changed = NOTHING._replace(colour=0.1, gamma=0.95, brightness=1.1, blue=0.9, green=1, red=1.1)
    view = apply_draws(image, None, None, numbers, changed)
    grey = 200**0.95 * 1.1 * np.array((1.1, 1.0, 0.9))
    assert np.allclose(view.image[0, 0], (grey - MEAN) / STD, atol=1e-5)
    bright = apply_draws(image, None, None, numbers, changed._replace(gamma=1.1))
    assert np.allclose(bright.image[0, 0], (255 - MEAN) / STD, atol=1e-5)


def test_nyu_cuts_the_frame_off_picture_truth_and_teacher():
    image, truth = frame(480, 640)
    view = apply_draws(image, truth, truth, NYU_AUGMENTATION, NOTHING)
    assert view.image.shape == (416, 544, 3)
    assert np.array_equal(view.truth, truth[45:461, 43:587])
    assert np.array_equal(view.teacher, view.truth)


def test_draws_are_within_their_ranges_and_as_often_as_they_should_be():
    rng = np.random.RandomState(0)
    draws = np.array([draw(rng, KITTI_AUGMENTATION, 352, 1216) for _ in range(2000)])
    columns = dict(zip(Draws._fields, draws.T, strict=True))
    assert (columns["top"] == 0).all()  # KITTI's crop is as high as its picture
    assert columns["left"].min() == 0
    assert columns["left"].max() == 512
    assert np.abs(columns["degrees"]).max() <= 2.5
    for name in ("gamma", "brightness", "blue", "green", "red"):
        assert 0.9 <= columns[name].min() < 0.91 < 1.09 < columns[name].max() <= 1.1
    for name in ("rotate", "flip", "colour"):
        assert np.mean(columns[name] < 0.5) == pytest.approx(0.5, abs=0.04)
    nyu = [draw(rng, NYU_AUGMENTATION, 427, 565).brightness for _ in range(500)]
    assert 0.75 <= min(nyu) < 0.77 < 1.23 < max(nyu) <= 1.25


def test_what_does_not_fit_is_refused():
    rng = np.random.RandomState(0)
    image, truth = frame(375, 1242)
    kitti, uncut = KITTI_AUGMENTATION, replace(KITTI_AUGMENTATION, kb_size=None)
    for picture, depth, teacher, numbers, error, fault in (
        (image, truth, truth, kitti, BadDepthError, r"map is \(375, 1242\).*\(352, 1216\)"),
        (image, truth[:-1], None, kitti, BadDepthError, "both must have one size"),
        (image[:300], None, None, kitti, BadImageError, "1242x300, smaller than the 1216x352"),
        (image[:, :600], None, None, NYU_AUGMENTATION, BadImageError, "fit a picture of 375x600"),
        (image[:300], None, None, uncut, BadImageError, "than the training crop 352x704"),
    ):
        with pytest.raises(error, match=fault):
            augment(picture, depth, teacher, numbers, rng)
