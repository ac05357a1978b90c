"""Rectified images and their calibrations, against OpenCV and against a lens made by hand."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from sensor_msgs.msg import CameraInfo, RegionOfInterest

from ros_helpers.messages import camera_info
from tiekd_ros.core.camera import Rectifier, border_shift_px, model_fault
from tiekd_ros.core.errors import BadImageError
from tiekd_ros.core.images import fit_mask
from tiekd_ros.nodes.camera.calibration import View, described_size, info_of_view, rectified_info

WIDTH, HEIGHT = 160, 120
K = [110.0, 0.0, 82.0, 0.0, 112.0, 58.0, 0.0, 0.0, 1.0]
LENSES = {
    "plumb_bob": [-0.28, 0.09, 0.001, -0.002, 0.01],
    "rational_polynomial": [0.4, -0.1, 0.001, -0.001, 0.01, 0.7, -0.05, 0.01],
    "equidistant": [0.05, -0.02, 0.004, -0.001],
}


def lens(model: str, d: list[float] | None = None) -> CameraInfo:
    info = camera_info(K, WIDTH, HEIGHT)
    info.distortion_model, info.d = model, LENSES[model] if d is None else d
    return info


def scene(width: int = WIDTH, height: int = HEIGHT) -> Any:
    """Return a smooth picture, so that a wrong place shows and interpolation does not."""
    y, x = np.mgrid[0:height, 0:width]
    waves = (np.sin(x / 9.0), np.cos(y / 7.0), np.sin((x + y) / 11.0))
    return np.stack([127.5 + 100 * wave for wave in waves], -1).astype(np.uint8)


def rectified(image: Any, info: CameraInfo) -> View:
    image, invalid_mask = Rectifier().rectified(image, info)
    return View(image, rectified_info(info), invalid_mask)


def through_the_lens(image: Any, info: CameraInfo) -> Any:
    """Return what a camera with this lens sees of what a pinhole camera with K sees."""
    k, d = np.array(info.k).reshape(3, 3), np.array(info.d)
    pixels = np.indices((HEIGHT, WIDTH), np.float64)[::-1].reshape(2, -1).T[:, None]
    undo = cv2.fisheye if info.distortion_model == "equidistant" else cv2
    ideal = undo.undistortPoints(pixels, k, d, P=k).reshape(HEIGHT, WIDTH, 2).astype(np.float32)
    return cv2.remap(image, ideal, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


@pytest.mark.parametrize("model", LENSES)
def test_a_rectified_image_shows_what_a_pinhole_camera_would(model: str) -> None:
    info = lens(model)
    view = rectified(through_the_lens(scene(), info), info)
    inner = (slice(20, -20), slice(25, -25))
    error = np.abs(view.image[inner].astype(int) - scene()[inner].astype(int))
    assert error.mean() < 2
    untouched = np.abs(through_the_lens(scene(), info)[inner].astype(int) - scene()[inner])
    assert error.mean() < 0.5 * untouched.mean()


@pytest.mark.parametrize("model", LENSES)
def test_it_is_opencvs_own_answer(model: str) -> None:
    info = lens(model)
    distorted = through_the_lens(scene(), info)
    view = rectified(distorted, info)
    k, d = np.array(info.k).reshape(3, 3), np.array(info.d)
    if model == "equidistant":
        expected = cv2.fisheye.undistortImage(distorted, k, d, Knew=k)
    else:
        expected = cv2.undistort(distorted, k, d)
    seen = np.ones((HEIGHT, WIDTH), bool) if view.invalid_mask is None else ~view.invalid_mask
    inner = cv2.erode(seen.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert inner.mean() > 0.7
    assert np.abs(view.image[inner].astype(int) - expected[inner]).max() <= 1


def test_the_calibration_of_a_rectified_image_has_no_distortion_and_ps_focal_length() -> None:
    info = lens("plumb_bob")
    info.p = [90.0, 0.0, 80.0, -7.0, 0.0, 91.0, 60.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    turned, _ = cv2.Rodrigues(np.array([0.01, -0.02, 0.005]))
    info.r = turned.flatten()
    view = rectified(scene(), info)
    assert view.info.k.tolist() == [90.0, 0.0, 80.0, 0.0, 91.0, 60.0, 0.0, 0.0, 1.0]
    assert view.info.p.tolist() == list(info.p)
    assert not any(view.info.d)
    assert view.info.r.tolist() == np.eye(3).flatten().tolist()
    assert (view.info.width, view.info.height) == (WIDTH, HEIGHT)
    # Whoever rectifies again with it changes nothing.
    again = rectified(view.image, view.info)
    assert again.image is view.image
    assert info.k[0] == K[0]


def test_where_p_is_empty_the_rectified_image_keeps_ks_focal_length() -> None:
    info = lens("plumb_bob")
    info.p, info.r = [0.0] * 12, [0.0] * 9
    view = rectified(scene(), info)
    assert view.info.k.tolist() == K
    assert view.info.p.reshape(3, 4)[:, :3].flatten().tolist() == K
    assert (view.image == rectified(scene(), lens("plumb_bob")).image).all()


def test_what_the_camera_did_not_see_is_marked() -> None:
    info = lens("plumb_bob")
    info.p = [55.0, 0.0, 82.0, 0.0, 0.0, 56.0, 58.0, 0.0, 0.0, 0.0, 1.0, 0.0]  # half the size
    view = rectified(np.full((HEIGHT, WIDTH, 3), 200, np.uint8), info)
    assert view.invalid_mask is not None
    assert view.invalid_mask[0].all()
    assert view.invalid_mask[:, 0].all()
    assert not view.invalid_mask[40:80, 50:110].any()
    assert fit_mask(view.invalid_mask, HEIGHT, WIDTH) is view.invalid_mask
    small = fit_mask(view.invalid_mask, HEIGHT // 2, WIDTH // 2)
    assert small.shape == (HEIGHT // 2, WIDTH // 2)
    assert abs(float(small.mean()) - float(view.invalid_mask.mean())) < 0.02


def test_what_a_polynomial_shows_again_mirrored_is_not_seen() -> None:
    info = camera_info([60.0, 0.0, 79.5, 0.0, 60.0, 59.5, 0.0, 0.0, 1.0], WIDTH, HEIGHT)
    info.d = [-0.35, 0.0, 0.0, 0.0, 0.0]
    invalid_mask = rectified(scene(), info).invalid_mask
    assert invalid_mask is not None
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    radius = np.hypot(x - 79.5, y - 59.5)
    turns = 60 / np.sqrt(3 * 0.35)  # where r - 0.35 r^3 is largest
    assert invalid_mask[radius > turns + 1].all()
    assert not invalid_mask[radius < turns - 1].any()


def test_another_calibration_makes_other_maps() -> None:
    rectifier, image = Rectifier(), scene()
    one = rectifier.rectified(image, lens("plumb_bob")).image
    other = rectifier.rectified(image, lens("equidistant")).image
    assert (one != other).any()
    assert (rectifier.rectified(image, lens("plumb_bob")).image == one).all()


@pytest.mark.parametrize(
    ("model", "d", "k", "reason"),
    [
        ("plumb_bob", None, [0.0] * 9, "uncalibrated"),
        ("thin_prism", [0.1] * 5, None, "'thin_prism' is not known; known are plumb_bob"),
        ("plumb_bob", [0.1] * 3, None, "3 numbers in D, plumb_bob takes 4 or 5"),
        ("equidistant", [0.1] * 8, None, "8 numbers in D, equidistant takes 4"),
        ("plumb_bob", [float("nan")] * 5, None, "not finite"),
    ],
)
def test_a_calibration_that_cannot_rectify_is_refused(
    model: str, d: list[float] | None, k: list[float] | None, reason: str
) -> None:
    info = lens("plumb_bob", d)
    info.distortion_model = model
    if k is not None:
        info.k = k
    with pytest.raises(BadImageError, match=reason):
        rectified(scene(), info)
    assert reason in model_fault(info)


def test_a_calibration_that_turns_the_image_out_of_sight_is_refused() -> None:
    info = lens("plumb_bob")
    info.r = cv2.Rodrigues(np.array([0.0, 1.5, 0.0]))[0].flatten()
    with pytest.raises(BadImageError, match="nothing of it would be seen"):
        rectified(scene(), info)


@pytest.mark.parametrize("model", LENSES)
def test_the_shift_of_the_border_is_what_rectifying_moves(model: str) -> None:
    info = lens(model)
    k, d = np.array(info.k).reshape(3, 3), np.array(info.d)
    module = cv2.fisheye if model == "equidistant" else cv2
    maps = module.initUndistortRectifyMap(k, d, np.eye(3), k, (WIDTH, HEIGHT), cv2.CV_32FC1)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    moved = np.hypot(maps[0] - x, maps[1] - y)
    assert border_shift_px(info) == pytest.approx(float(moved.max()), rel=0.05)
    assert border_shift_px(lens(model, [0.0] * len(LENSES[model]))) == 0


def test_a_region_of_interest_and_binning_are_undone() -> None:
    info = camera_info([400.0, 0.0, 319.5, 0.0, 400.0, 239.5, 0.0, 0.0, 1.0], 640, 480)
    info.roi = RegionOfInterest(x_offset=100, y_offset=60, width=400, height=300)
    info.binning_x = info.binning_y = 2
    assert described_size(info) == (200, 150)
    seen = info_of_view(info, 200, 150)
    assert (seen.width, seen.height) == (200, 150)
    assert (seen.roi, seen.binning_x, seen.binning_y) == (RegionOfInterest(), 0, 0)
    for columns, matrix in ((3, seen.k), (4, seen.p)):
        m = np.array(matrix).reshape(3, columns)
        assert (m[0, 0], m[1, 1]) == (200.0, 200.0)
        # The middle of the full image lies at (219.5, 179.5) of the region: at half of that.
        assert (m[0, 2], m[1, 2]) == ((219.5 + 0.5) / 2 - 0.5, (179.5 + 0.5) / 2 - 0.5)
    assert info.roi.width == 400


def test_a_calibration_for_another_shape_says_nothing_of_the_image() -> None:
    info = camera_info(K, 2 * WIDTH, 3 * HEIGHT)
    seen = info_of_view(info, WIDTH, HEIGHT)
    assert (seen.width, seen.height, seen.header) == (WIDTH, HEIGHT, info.header)
    assert not any([*seen.k, *seen.p, *seen.d])
    assert info.k.tolist() == K
    with pytest.raises(BadImageError, match="uncalibrated"):
        rectified(scene(), seen)


def test_what_binning_rounds_is_no_other_shape() -> None:
    info = camera_info(width=33, height=25)
    info.binning_x = info.binning_y = 4
    assert info_of_view(info, 8, 6).k[0] > 0


def test_a_plain_calibration_stays_the_same_message() -> None:
    info = lens("plumb_bob")
    assert info_of_view(info, WIDTH, HEIGHT) is info


def test_an_image_of_full_size_is_no_region_of_interest() -> None:
    info = lens("plumb_bob")
    info.roi = RegionOfInterest(x_offset=10, y_offset=10, width=50, height=50)
    seen = info_of_view(info, WIDTH, HEIGHT)
    assert seen.k.tolist() == K


def test_the_message_that_is_rectified_is_not_changed() -> None:
    info = lens("plumb_bob")
    rectified_info(info)
    assert list(info.d) == LENSES["plumb_bob"]


def test_a_stereo_cameras_rotation_is_taken_out_too() -> None:
    info = lens("plumb_bob", [0.0] * 5)
    rotation = cv2.Rodrigues(np.array([0.0, 0.05, 0.0]))[0]
    info.r = rotation.flatten()
    view = rectified(scene(), info)
    k = np.array(K).reshape(3, 3)
    # Pure rotation moves the image by K R K^-1.
    expected = cv2.warpPerspective(scene(), k @ rotation @ np.linalg.inv(k), (WIDTH, HEIGHT))
    inner = (slice(15, -15), slice(15, -15))
    assert np.abs(view.image[inner].astype(int) - expected[inner]).mean() < 1
    assert np.abs(view.image[inner].astype(int) - scene()[inner]).mean() > 10


@pytest.mark.parametrize("binning", [0, 2])
def test_a_calibration_without_a_size_is_for_the_image(binning: int) -> None:
    unset = lens("plumb_bob")
    unset.width = unset.height = 0
    unset.binning_x = unset.binning_y = binning
    info = info_of_view(unset, 80, 60)
    assert (info.width, info.height, unset.width) == (80, 60, 0)
    scale = 0.5 if binning else 1.0
    assert info.k[0] == K[0] * scale
    assert info.k[2] == (K[2] + 0.5) * scale - 0.5


def test_a_region_of_a_calibration_without_a_size_is_cut_out() -> None:
    unset = lens("plumb_bob")
    unset.width = unset.height = 0
    unset.roi = RegionOfInterest(x_offset=30, y_offset=20, width=80, height=60)
    info = info_of_view(unset, 80, 60)
    assert (info.width, info.height) == (80, 60)
    assert (info.k[2], info.k[5]) == (K[2] - 30, K[5] - 20)


def test_the_maps_of_a_calibration_with_nan_are_made_once() -> None:
    info, again = (lens("plumb_bob", [0.3, 0.0, 0.0, 0.0, 0.0]) for _ in range(2))
    info.p, again.p = [float("nan")] * 12, [float("nan")] * 12
    rectifier = Rectifier()
    first = rectifier.rectified(scene(), info).invalid_mask
    assert first is not None
    assert rectifier.rectified(scene(), again).invalid_mask is first
