"""What a fit to metres says about the images of another camera than the one it was made with."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from helpers.teachers import METRIC, RELATIVE, StubBackend, serving
from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.images import encode_png
from tiekd_ros.teacher.backend import BackendRefusal, check_request
from tiekd_ros.teacher.backends.alignment import LARGEST_STRETCH, AlignedBackend
from tiekd_ros.teacher.backends.ensemble import EnsembleBackend
from tiekd_ros.teacher.backends.onnx import OnnxSettings
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.errors import TeacherRefusedError
from tiekd_ros.teacher.protocol import DepthRequest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from helpers.onnx_teachers import (
    Brightness,
    FocalBrightness,
    brightness_of,
    export,
    grey_picture,
    write_rgbd,
)

WIDTH, HEIGHT, FOCAL = 160, 120, 60.0  # the last is what write_rgbd puts into K.txt
RADIUS_M = 0.5
OPEN = {"input": {"multiple_of": 4}, "output": {"meaning": "metric"}}


def camera(focal, width=WIDTH, height=HEIGHT):
    return Intrinsics(focal, focal, width / 2, height / 2)


def request(intrinsics=None, image=b""):
    return DepthRequest(image, intrinsics, 0, "camera")


def ball(depth_m, focal=FOCAL):
    """Return a picture of a white ball of a known size at a distance, by a camera."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    radius = focal * RADIUS_M / depth_m
    centre = (WIDTH * 8 - 8, HEIGHT * 8 - 8)  # in sixteenths of a pixel, as the radius
    cv2.circle(image, centre, round(radius * 16), (255, 255, 255), -1, cv2.LINE_AA, 4)
    return image


class SizeNetwork:
    """Judges by the apparent size of the ball, and knows nothing of cameras."""

    identity = RELATIVE

    def __init__(self, meaning):
        self.meaning = meaning

    def infer(self, image, request):
        radius = np.sqrt(brightness_of(image).sum() / np.pi)
        number = {"inverse_depth": 3 * radius + 2, "relative_depth": 9 / radius}.get(
            self.meaning, 55 * RADIUS_M / radius
        )
        return StubBackend(np.full((HEIGHT, WIDTH), number, np.float32)).infer(image, request)

    def seen_focal_px(self, intrinsics, height, width):
        return intrinsics.fx * WIDTH / width, intrinsics.fy * HEIGHT / height


@pytest.fixture
def balls(tmp_path):
    depths = (1.0, 1.5, 2.0, 2.5, 3.0, 1.2, 1.7, 2.2)
    maps = [np.full((HEIGHT, WIDTH), depth, np.float32) for depth in depths]
    return write_rgbd(tmp_path / "balls", [ball(depth) for depth in depths], maps)


@pytest.mark.parametrize("meaning", ["inverse_depth", "relative_depth", "metric"])
@pytest.mark.parametrize("focal", [45.0, FOCAL, 85.0])
def test_metres_are_right_for_cameras_of_other_focal_lengths(balls, meaning, focal):
    network = SizeNetwork(meaning)
    network.identity = METRIC if meaning == "metric" else RELATIVE
    fitted = AlignedBackend(network, balls, 0.05)
    for depth_m in (1.4, 2.4):
        (answer,) = fitted.infer_batch([ball(depth_m, focal)], [request(camera(focal))])
        np.testing.assert_allclose(answer.depth, depth_m, rtol=0.03)


def test_an_image_without_intrinsics_counts_as_one_of_the_fit_s_camera(balls):
    fitted = AlignedBackend(SizeNetwork("inverse_depth"), balls, 0.05)
    without, same = (fitted.infer(ball(2.0), request(each)) for each in (None, camera(FOCAL)))
    np.testing.assert_array_equal(without.depth, same.depth)
    np.testing.assert_allclose(without.depth, 2.0, rtol=0.03)


def test_each_image_of_a_batch_is_stretched_by_its_own_camera(balls):
    fitted = AlignedBackend(SizeNetwork("relative_depth"), balls, 0.05)
    asked = [request(camera(focal)) for focal in (50.0, 75.0)]
    short, long = fitted.infer_batch([ball(2.0), ball(2.0)], asked)
    np.testing.assert_allclose(long.depth, 1.5 * short.depth, rtol=1e-5)


@pytest.mark.parametrize("focal", [FOCAL * LARGEST_STRETCH * 1.01, FOCAL / LARGEST_STRETCH / 1.01])
def test_a_camera_too_far_from_the_fit_s_is_refused_before_its_image_is_decoded(balls, focal):
    fitted = AlignedBackend(SizeNetwork("inverse_depth"), balls, 0.05)
    asked = request(camera(focal), b"\x89PNG")
    with pytest.raises(BackendRefusal, match=rf"focal length of {focal:.0f} .* metres at .* 60"):
        check_request(fitted, asked, HEIGHT, WIDTH)
    with pytest.raises(BackendRefusal, match="--align"):
        fitted.infer(ball(2.0), asked)
    with (
        serving(fitted) as url,
        TeacherClient(ClientSettings(url=url)) as client,
        pytest.raises(TeacherRefusedError, match="fitted to metres"),
    ):
        client.infer(request(camera(focal), encode_png(ball(2.0))))


WIDE = np.zeros((HEIGHT * 3 // 4, WIDTH, 3), np.uint8)  # 16:9, where the fit's frames are 4:3


@pytest.mark.parametrize("intrinsics", [camera(FOCAL, *WIDE.shape[1::-1]), None])
def test_an_image_that_the_network_would_see_stretched_is_refused(balls, intrinsics):
    fitted = AlignedBackend(SizeNetwork("inverse_depth"), balls, 0.05)
    with pytest.raises(BackendRefusal, match="stretched" if intrinsics else "another aspect"):
        fitted.infer(WIDE, request(intrinsics))
    with pytest.raises(BackendRefusal, match="aspect"):
        check_request(fitted, request(intrinsics), *WIDE.shape[:2])


def test_a_little_unequal_stretch_counts_half_for_rows_and_columns(balls):
    fitted = AlignedBackend(SizeNetwork("relative_depth"), balls, 0.05)
    oblong = Intrinsics(FOCAL, FOCAL * 1.08, WIDTH / 2, HEIGHT / 2)
    plain, other = (fitted.infer(ball(2.0), request(each)) for each in (camera(FOCAL), oblong))
    np.testing.assert_allclose(other.depth, 1.08**0.5 * plain.depth, rtol=1e-5)


def test_a_focal_length_too_far_in_columns_alone_is_refused_as_well(balls):
    fitted = AlignedBackend(SizeNetwork("inverse_depth"), balls, 0.05)
    tall = Intrinsics(FOCAL * 1.45, FOCAL * 1.55, WIDTH / 2, HEIGHT / 2)
    with pytest.raises(BackendRefusal, match=r"beyond a factor of 1\.5"):
        fitted.infer(ball(2.0), request(tall))


def test_members_of_an_ensemble_refuse_it_before_the_image_is_decoded_too(balls):
    fitted = AlignedBackend(SizeNetwork("inverse_depth"), balls, 0.05)
    both = EnsembleBackend([fitted, fitted])
    check_request(both, request(camera(FOCAL)), HEIGHT, WIDTH)
    with pytest.raises(BackendRefusal, match="fitted to metres"):
        check_request(both, request(camera(2 * FOCAL)), HEIGHT, WIDTH)


def fitted_network(folder, tmp_path, network, card, **given):
    path = export(tmp_path / "net.onnx", network, card, **given)
    return OnnxSettings(model=str(path), align=str(folder)).build()


@pytest.fixture
def room(tmp_path):
    images = [grey_picture(seed) for seed in range(6)]
    depths = [1 + 2 * brightness_of(image) for image in images]
    return write_rgbd(tmp_path / "room", images, depths)


def test_a_smaller_image_of_the_same_camera_is_the_same_to_a_network_of_a_fixed_input(
    room, tmp_path
):
    card = {"output": {"meaning": "metric"}}
    fitted = fitted_network(room, tmp_path, Brightness(0.5, 1.0), card, shape=(1, 3, 48, 64))
    image = np.full((24, 32, 3), 255, np.uint8)
    answer = fitted.infer(image, request(camera(30.0, 32, 24)))
    np.testing.assert_allclose(answer.depth, 3.0, rtol=0.02)
    wider = fitted.infer(image, request(camera(24.0, 32, 24)))
    np.testing.assert_allclose(wider.depth, 3.0 * 0.8, rtol=0.02)
    with pytest.raises(BackendRefusal, match="stretched"):
        fitted.infer(image[:18], request(camera(30.0, 32, 18)))


def test_to_one_that_works_at_the_image_s_own_size_its_focal_length_is_shorter(room, tmp_path):
    fitted = fitted_network(room, tmp_path, Brightness(0.5, 1.0), OPEN, open_dimensions=(0, 2, 3))
    image = np.full((36, 48, 3), 255, np.uint8)
    said = fitted.infer(image, request(camera(45.0, 48, 36)))
    np.testing.assert_allclose(said.depth, 3.0 * 0.75, rtol=0.02)
    np.testing.assert_array_equal(said.depth, fitted.infer(image, request()).depth)


def test_a_network_that_takes_the_focal_length_is_not_corrected_twice(room, tmp_path):
    card = {"input": {"multiple_of": 4, "focal": "focal"}, "output": {"meaning": "metric"}}
    fitted = fitted_network(
        room, tmp_path, FocalBrightness(0.5, 1.0), card,
        inputs=("image", "focal"), open_dimensions=(0, 2, 3),
    )  # fmt: skip
    image = grey_picture(9)
    for focal in (30.0, 60.0, 110.0):
        answer = fitted.infer(image, request(camera(focal, 64, 48)))
        truth = (1 + 2 * brightness_of(image)) * focal / 60
        np.testing.assert_allclose(answer.depth, truth, rtol=0.02)


def test_depth_that_was_measured_is_not_stretched(room):
    measured = AlignedBackend(
        StubBackend(lambda image, _: 1 + 2 * brightness_of(image), METRIC), room, 0.05
    )
    image = grey_picture(9)
    answer = measured.infer(image, request(camera(300.0, 64, 48)))
    np.testing.assert_allclose(answer.depth, 1 + 2 * brightness_of(image), rtol=0.01)
