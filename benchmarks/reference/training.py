"""Checks of the learning rate and the augmentation."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from reference.checks import EXACT, Fixture, FixtureError, Tolerance
from tiekd_ros.method.paper import Augmentation, Draws, augment
from tiekd_ros.training.recipes import get_recipe

_RATE = Tolerance(1e-9)
_REFERENCE_OPENCV = "5.0."  # whose rotation the files hold, pixel for pixel


def check_one_cycle(fixture: Fixture) -> None:
    """Check a file of learning rates per iteration."""
    iterations = int(fixture.number("total_iters"))
    recipe = get_recipe("paper-kitti")
    peak = recipe.plan.train.learning_rate
    max_lr = fixture.number("max_lr") if "max_lr" in fixture else peak
    rates = [recipe.rate(step, iterations, max_lr) for step in range(iterations)]
    fixture.compare("lr", rates, _RATE)


def check_pipeline(fixture: Fixture) -> None:
    """Check a file of augmented samples."""
    sizes = {name: tuple(fixture.take(name).tolist()) for name in ("kb_size", "crop_size")}
    numbers = replace(get_recipe("paper-kitti").augmentation, **sizes)
    if len(fixture.take("draw_names")) != len(Draws._fields):
        raise FixtureError(f"expected {len(Draws._fields)} draws per sample")
    samples = sorted(int(key) for key in fixture.keys("in_img_bgr_") if key.isdecimal())
    if not samples:
        raise FixtureError("there is no sample in_img_bgr_0")
    for sample in samples:
        _check_sample(fixture, numbers, sample)


def _check_sample(fixture: Fixture, numbers: Augmentation, sample: int) -> None:
    image = np.ascontiguousarray(fixture.take(f"in_img_bgr_{sample}")[:, :, ::-1])
    rng = np.random.RandomState(int(fixture.number(f"seed_{sample}")))
    view = augment(
        image, fixture.take(f"in_depth_{sample}"), fixture.take(f"in_kd_{sample}"), numbers, rng
    )
    fixture.compare(f"draws_{sample}", np.array(view.draws), Tolerance(1e-12))
    rotated = view.draws.rotate < numbers.rotate_share
    if rotated and not cv2.__version__.startswith(_REFERENCE_OPENCV):
        # Another OpenCV may round a grey level or a nearest pixel differently.
        grey_level = 1.74 * 1.1**2 / 57.12  # at the strongest change of colour
        note = f"OpenCV {cv2.__version__}, reference {_REFERENCE_OPENCV}*"
        fixture.compare(f"out_img_{sample}", view.image, Tolerance(grey_level, "grey level"), note)
        different = np.mean(fixture.take(f"out_depth_{sample}") != view.truth)
        label = f"out_depth_{sample}: pixels that differ"
        fixture.compare_values(label, different, 0.0, Tolerance(0.01, "share"), note)
    else:
        fixture.compare(f"out_img_{sample}", view.image, Tolerance(1e-5))
        fixture.compare(f"out_depth_{sample}", view.truth, EXACT)
    teacher = None if view.teacher is None else view.teacher[None]
    fixture.compare(f"out_kd_{sample}", teacher, EXACT)
