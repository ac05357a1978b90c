"""Intrinsics: what describes no camera is refused; resizing keeps the view."""

import math

import numpy as np
import pytest

from tiekd_ros.camera import Intrinsics
from tiekd_ros.errors import BadIntrinsicsError

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
