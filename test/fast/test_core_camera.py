"""Intrinsics and camera models: resizing keeps the view; rectified images against OpenCV."""

import math
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from tiekd_ros.core.camera import CameraModel, Intrinsics, Rectified, Rectifier
from tiekd_ros.core.errors import BadImageError, BadIntrinsicsError
from tiekd_ros.core.images import fit_mask

CAMERA = Intrinsics(60.0, 61.0, 31.5, 23.5)


def test_what_describes_no_camera_is_refused_with_its_values():
    for values in (
        (0, 61, 31, 23),
        (60, -1, 31, 23),
        (math.nan, 61, 31, 23),
        (60, 61, math.inf, 23),
    ):
        with pytest.raises(BadIntrinsicsError, match="calibrate") as caught:
            Intrinsics(*values)
        assert str(values) in str(caught.value)
    with pytest.raises(BadIntrinsicsError, match="calibrate"):
        Intrinsics.from_matrix(np.zeros(9))  # uncalibrated
    with pytest.raises(BadIntrinsicsError, match="9 numbers, got 12"):
        Intrinsics.from_matrix(np.ones((3, 4)))
    for matrix in (CAMERA.matrix(), list(CAMERA.matrix().flat)):
        assert Intrinsics.from_matrix(matrix) == CAMERA


def test_scaling_keeps_the_rays_through_the_image_corners_and_cropping_the_focal_lengths():
    # Corners of a 64x48 image lie at -0.5 and 63.5; of its 128x24 version at -0.5 and 127.5.
    scaled = CAMERA.scaled(2.0, 0.5)
    for before, after in ((-0.5, -0.5), (63.5, 127.5)):
        ray = (before - CAMERA.cx) / CAMERA.fx
        assert (after - scaled.cx) / scaled.fx == pytest.approx(ray)
    for before, after in ((-0.5, -0.5), (47.5, 23.5)):
        ray = (before - CAMERA.cy) / CAMERA.fy
        assert (after - scaled.cy) / scaled.fy == pytest.approx(ray)
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
    assert part.intrinsics(64, 48) == CAMERA  # an image of the full size is the whole


def test_a_model_fits_its_own_size_to_the_last_bit_and_without_a_size_the_images():
    exact = CameraModel.pinhole(Intrinsics(0.1, 1 / 3, 0.1, 1e-9), 64, 48)
    assert exact.of_view(64, 48) == exact
    unsized = replace(MODEL, width=0, height=0)
    assert unsized.intrinsics(100, 80) == CAMERA
    assert replace(unsized, binning=(2, 2)).intrinsics(32, 24) == CAMERA.scaled(0.5, 0.5)
    # What binning rounds is no other shape, another aspect ratio is.
    assert replace(MODEL, width=33, height=25, binning=(4, 4)).of_view(8, 6).is_calibrated
    other = replace(MODEL, width=128, height=144, d=(0.1,)).of_view(64, 48)
    assert (other.width, other.height, other.is_calibrated) == (64, 48, False)
    assert not any([*other.k, *other.p, *other.d])


WIDTH, HEIGHT = 160, 120
K = (110.0, 0.0, 82.0, 0.0, 112.0, 58.0, 0.0, 0.0, 1.0)
LENSES = {
    "plumb_bob": [-0.28, 0.09, 0.001, -0.002, 0.01],
    "rational_polynomial": [0.4, -0.1, 0.001, -0.001, 0.01, 0.7, -0.05, 0.01],
    "equidistant": [0.05, -0.02, 0.004, -0.001],
}


def lens(distortion_model: str, d: list[float] | None = None, **changes: Any) -> CameraModel:
    pinhole = CameraModel.pinhole(Intrinsics.from_matrix(K), WIDTH, HEIGHT)
    values = tuple(LENSES[distortion_model] if d is None else d)
    return replace(pinhole, distortion_model=distortion_model, d=values, **changes)


def scene(width: int = WIDTH, height: int = HEIGHT) -> Any:
    """Return a smooth picture, so that a wrong place shows and interpolation does not."""
    y, x = np.mgrid[0:height, 0:width]
    waves = (np.sin(x / 9.0), np.cos(y / 7.0), np.sin((x + y) / 11.0))
    return np.stack([127.5 + 100 * wave for wave in waves], -1).astype(np.uint8)


def rectified(image: Any, model: CameraModel) -> Rectified:
    return Rectifier().rectified(image, model)


def through_the_lens(image: Any, info: CameraModel) -> Any:
    """Return what a camera with this lens sees of what a pinhole camera with K sees."""
    k, d = np.array(info.k).reshape(3, 3), np.array(info.d)
    pixels = np.indices((HEIGHT, WIDTH), np.float64)[::-1].reshape(2, -1).T[:, None]
    undo = cv2.fisheye if info.distortion_model == "equidistant" else cv2
    ideal = undo.undistortPoints(pixels, k, d, P=k).reshape(HEIGHT, WIDTH, 2).astype(np.float32)
    return cv2.remap(image, ideal, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


@pytest.mark.parametrize("model", LENSES)
def test_a_rectified_image_shows_what_a_pinhole_camera_would(model: str) -> None:
    info = lens(model)
    distorted = through_the_lens(scene(), info)
    view = rectified(distorted, info)
    inner = (slice(20, -20), slice(25, -25))
    error = np.abs(view.image[inner].astype(int) - scene()[inner].astype(int))
    assert error.mean() < 2
    assert error.mean() < 0.5 * np.abs(distorted[inner].astype(int) - scene()[inner]).mean()
    # The shift of the border is what the maps move.
    k, d = np.array(info.k).reshape(3, 3), np.array(info.d)
    module = cv2.fisheye if model == "equidistant" else cv2
    maps = module.initUndistortRectifyMap(k, d, np.eye(3), k, (WIDTH, HEIGHT), cv2.CV_32FC1)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    moved = np.hypot(maps[0] - x, maps[1] - y)
    assert info.border_shift_px() == pytest.approx(float(moved.max()), rel=0.05)
    assert lens(model, [0.0] * len(LENSES[model])).border_shift_px() == 0


def test_the_calibration_of_a_rectified_image_has_no_distortion_and_ps_focal_length() -> None:
    p = (90.0, 0.0, 80.0, -7.0, 0.0, 91.0, 60.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    turned, _ = cv2.Rodrigues(np.array([0.01, -0.02, 0.005]))
    model = lens("plumb_bob", p=p, r=tuple(turned.flatten()))
    found = model.rectified()
    assert found.k == (90.0, 0.0, 80.0, 0.0, 91.0, 60.0, 0.0, 0.0, 1.0)
    assert found.p == p
    assert not found.is_distorted
    assert found.r == tuple(np.eye(3).flatten())
    assert (found.width, found.height) == (WIDTH, HEIGHT)
    once = rectified(scene(), model).image
    assert rectified(once, found).image is once  # to rectify again changes nothing
    without_p = lens("plumb_bob", p=(0.0,) * 12, r=(0.0,) * 9)
    assert without_p.rectified().k == K
    expected = rectified(scene(), lens("plumb_bob")).image
    assert (rectified(scene(), without_p).image == expected).all()


def test_what_the_camera_did_not_see_is_marked() -> None:
    half_the_size = (55.0, 0.0, 82.0, 0.0, 0.0, 56.0, 58.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    model = lens("plumb_bob", p=half_the_size)
    view = rectified(np.full((HEIGHT, WIDTH, 3), 200, np.uint8), model)
    assert view.invalid_mask is not None
    assert view.invalid_mask[0].all()
    assert view.invalid_mask[:, 0].all()
    assert not view.invalid_mask[40:80, 50:110].any()
    assert fit_mask(view.invalid_mask, HEIGHT, WIDTH) is view.invalid_mask
    small = fit_mask(view.invalid_mask, HEIGHT // 2, WIDTH // 2)
    assert small.shape == (HEIGHT // 2, WIDTH // 2)
    assert abs(float(small.mean()) - float(view.invalid_mask.mean())) < 0.02


def test_what_a_polynomial_shows_again_mirrored_is_not_seen() -> None:
    pinhole = CameraModel.pinhole(Intrinsics(60.0, 60.0, 79.5, 59.5), WIDTH, HEIGHT)
    model = replace(pinhole, d=(-0.35, 0.0, 0.0, 0.0, 0.0))
    invalid_mask = rectified(scene(), model).invalid_mask
    assert invalid_mask is not None
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    radius = np.hypot(x - 79.5, y - 59.5)
    turns = 60 / np.sqrt(3 * 0.35)  # where r - 0.35 r^3 is largest
    assert invalid_mask[radius > turns + 1].all()
    assert not invalid_mask[radius < turns - 1].any()


def test_the_maps_are_those_of_the_calibration_and_made_once() -> None:
    rectifier, image = Rectifier(), scene()
    one = rectifier.rectified(image, lens("plumb_bob")).image
    other = rectifier.rectified(image, lens("equidistant")).image
    assert (one != other).any()
    assert (rectifier.rectified(image, lens("plumb_bob")).image == one).all()
    d, p = [0.3, 0.0, 0.0, 0.0, 0.0], (float("nan"),) * 12
    first = rectifier.rectified(image, lens("plumb_bob", d, p=p)).invalid_mask
    assert first is not None
    assert rectifier.rectified(image, lens("plumb_bob", d, p=p)).invalid_mask is first


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
    changed = replace(lens("plumb_bob", d), distortion_model=model)
    if k is not None:
        changed = replace(changed, k=tuple(k))
    with pytest.raises(BadImageError, match=reason):
        rectified(scene(), changed)
    assert reason in changed.distortion_fault()
    turned = cv2.Rodrigues(np.array([0.0, 1.5, 0.0]))[0].flatten()  # the image is out of sight
    with pytest.raises(BadImageError, match="nothing of it would be seen"):
        rectified(scene(), lens("plumb_bob", r=tuple(turned)))


def test_a_stereo_cameras_rotation_is_taken_out_too() -> None:
    rotation = cv2.Rodrigues(np.array([0.0, 0.05, 0.0]))[0]
    view = rectified(scene(), lens("plumb_bob", [0.0] * 5, r=tuple(rotation.flatten())))
    k = np.array(K).reshape(3, 3)
    # Pure rotation moves the image by K R K^-1.
    expected = cv2.warpPerspective(scene(), k @ rotation @ np.linalg.inv(k), (WIDTH, HEIGHT))
    inner = (slice(15, -15), slice(15, -15))
    assert np.abs(view.image[inner].astype(int) - expected[inner]).mean() < 1
    assert np.abs(view.image[inner].astype(int) - scene()[inner]).mean() > 10
