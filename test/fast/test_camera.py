"""Intrinsics: what describes no camera is refused; resizing keeps the view."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tiekd_ros.core.camera import CameraModel, Intrinsics
from tiekd_ros.core.errors import BadIntrinsicsError

CAMERA = Intrinsics(60.0, 61.0, 31.5, 23.5)


@pytest.mark.parametrize(
    "values",
    [(0, 61, 31, 23), (60, -1, 31, 23), (math.nan, 61, 31, 23), (60, 61, math.inf, 23)],
)
def test_what_describes_no_camera_is_refused_with_its_values(values):
    with pytest.raises(BadIntrinsicsError, match="calibrate") as caught:
        Intrinsics(*values)
    assert str(values) in str(caught.value)


def test_a_matrix_goes_there_and_back():
    assert Intrinsics.from_matrix(CAMERA.matrix()) == CAMERA
    assert Intrinsics.from_matrix(list(CAMERA.matrix().flat)) == CAMERA


def test_a_matrix_of_another_size_is_refused():
    with pytest.raises(BadIntrinsicsError, match="9 numbers, got 12"):
        Intrinsics.from_matrix(np.ones((3, 4)))


def test_the_zero_matrix_of_an_uncalibrated_camera_is_refused():
    with pytest.raises(BadIntrinsicsError):
        Intrinsics.from_matrix(np.zeros(9))


def test_scaling_keeps_the_rays_through_the_image_corners():
    # Corners of a 64x48 image lie at -0.5 and 63.5; of its 128x24 version at -0.5 and 127.5.
    scaled = CAMERA.scaled(2.0, 0.5)
    for before, after in ((-0.5, -0.5), (63.5, 127.5)):
        ray = (before - CAMERA.cx) / CAMERA.fx
        assert (after - scaled.cx) / scaled.fx == pytest.approx(ray)
    for before, after in ((-0.5, -0.5), (47.5, 23.5)):
        ray = (before - CAMERA.cy) / CAMERA.fy
        assert (after - scaled.cy) / scaled.fy == pytest.approx(ray)


def test_cropping_moves_the_principal_point_and_keeps_the_focal_lengths():
    cropped = Intrinsics(700, 710, 609.5, 172.8).cropped(13, 23)
    assert cropped.as_tuple() == pytest.approx((700, 710, 596.5, 149.8))


MODEL = CameraModel.pinhole(CAMERA, 64, 48)


def test_a_model_follows_its_region_of_interest_and_binning():
    part = replace(MODEL, roi=(10, 4, 32, 24), p=(*MODEL.p[:3], -6.0, *MODEL.p[4:]))
    seen = part.of_view(32, 24)
    assert seen.intrinsics(32, 24) == CAMERA.cropped(10, 4)
    assert (seen.width, seen.height, seen.roi) == (32, 24, None)
    assert (seen.p[2], seen.p[3], seen.p[6]) == (21.5, -6.0, 19.5)
    both = replace(part, binning=(2, 2))
    assert both.intrinsics(16, 12) == CAMERA.cropped(10, 4).scaled(0.5, 0.5)
    assert both.of_view(16, 12).p[3] == -3.0
    assert both.rectified().intrinsics(16, 12) == CAMERA.cropped(10, 4).scaled(0.5, 0.5)


def test_an_image_of_the_full_size_is_taken_for_the_whole():
    assert replace(MODEL, roi=(10, 4, 32, 24)).intrinsics(64, 48) == CAMERA


def test_a_model_of_this_very_size_stays_the_same_to_the_last_bit():
    exact = CameraModel.pinhole(Intrinsics(0.1, 1 / 3, 0.1, 1e-9), 64, 48)
    assert exact.of_view(64, 48) == exact


def test_a_model_without_a_size_is_taken_for_the_images():
    unsized = replace(MODEL, width=0, height=0)
    assert unsized.intrinsics(100, 80) == CAMERA
    assert replace(unsized, binning=(2, 2)).intrinsics(32, 24) == CAMERA.scaled(0.5, 0.5)
