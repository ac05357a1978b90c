"""The fit of a network's numbers to metres, and what it serves to other cameras."""

from __future__ import annotations

import logging
from itertools import pairwise

import cv2
import numpy as np
import pytest

from helpers.depth_data import write_rgbd
from helpers.onnx_teachers import (
    Brightness,
    FocalBrightness,
    brightness_of,
    export,
    grey_picture,
)
from helpers.teachers import METRIC, RELATIVE, StubBackend, depth_request, serving
from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.images import encode_png
from tiekd_ros.datasets import DatasetError, RgbdFolder
from tiekd_ros.teacher.backend import BackendRefusal, check_request
from tiekd_ros.teacher.backends.alignment import (
    LARGEST_STRETCH,
    AlignedBackend,
    fit_inverse,
    fit_scale,
    fit_to_folder,
    split_frames,
)
from tiekd_ros.teacher.backends.ensemble import EnsembleBackend
from tiekd_ros.teacher.backends.onnx import OnnxSettings
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.errors import BackendError, RelativeTeacherError, TeacherRefusedError
from tiekd_ros.teacher.protocol import DepthRequest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


SCALE, SHIFT = 0.7, 0.15  # 1 / depth = SCALE * brightness + SHIFT: 1.2 to 6.7 m


def depth_of(image):
    return (1 / (SCALE * brightness_of(image) + SHIFT)).astype(np.float32)


def request():
    return DepthRequest(b"", None, 0, "")


class Relative(StubBackend):
    """A stub of a network that says what its numbers are."""

    def __init__(self, answer, meaning):
        super().__init__(answer, RELATIVE)
        self.meaning = meaning


@pytest.fixture
def network(tmp_path):
    """Answers 3 * brightness - 1, so that 1 / depth is 0.7 / 3 of it, plus 0.15 + 0.7 / 3."""
    card = {"input": {"multiple_of": 16}, "output": {"meaning": "inverse_depth"}}
    return export(tmp_path / "midas.onnx", Brightness(1.0, 3.0), card, open_dimensions=(0, 2, 3))


@pytest.fixture
def folder(tmp_path):
    images = [grey_picture(seed) for seed in range(6)]
    return write_rgbd(tmp_path / "room", images, [depth_of(image) for image in images])


def test_a_relative_network_serves_metres_after_its_fit_and_none_before(network, folder):
    asked = OnnxSettings(model=str(network))
    with (
        serving(asked.build()) as url,
        TeacherClient(ClientSettings(url=url)) as client,
        pytest.raises(RelativeTeacherError),
    ):
        client.infer(depth_request(grey_picture(9)))

    fitted = OnnxSettings(model=str(network), align=str(folder)).build()
    image = grey_picture(9)
    with serving(fitted) as url, TeacherClient(ClientSettings(url=url)) as client:
        identity = client.identity()
        answer = client.infer(depth_request(image))
    assert identity.metric
    assert identity.name == "midas"
    assert "-aligned-" in identity.version
    np.testing.assert_allclose(answer.depth, depth_of(image), rtol=0.05)  # of JPEG


def test_the_fit_is_what_was_put_in_and_is_said_with_its_error(network, folder, caplog):
    with caplog.at_level(logging.INFO):
        fitted = OnnxSettings(model=str(network), align=str(folder)).build()
    assert fitted.fit.scale == pytest.approx(SCALE / 3, rel=0.01)
    assert fitted.fit.shift == pytest.approx(SHIFT - SCALE / 3, rel=0.01)
    assert fitted.fit.median_error < 0.01
    assert "median error" in caplog.text
    assert f"1/depth = {fitted.fit.scale:.6g} x - " in caplog.text


def test_another_fit_is_another_version(network, folder, tmp_path):
    def version(path):
        return OnnxSettings(model=str(network), align=str(path)).build().identity.version

    images = [grey_picture(seed) for seed in range(4)]
    doubled = write_rgbd(tmp_path / "other", images, [2 * depth_of(image) for image in images])
    assert version(folder) == version(folder)
    assert version(doubled) != version(folder)


def test_rounding_changes_the_fit_s_last_digits_and_not_the_version(folder):
    fitted = [
        AlignedBackend(
            Relative(lambda image, _, by=by: depth_of(image) * np.float32(by), "relative_depth"),
            folder,
            0.05,
        )
        for by in (1.0, 1.00001)
    ]
    assert fitted[0].fit.scale != fitted[1].fit.scale
    assert fitted[0].identity == fitted[1].identity


def test_a_fit_that_is_too_bad_is_refused_with_its_error(network, tmp_path):
    rng = np.random.default_rng(0)
    images = [grey_picture(seed) for seed in range(4)]
    noise = [np.exp(rng.normal(1, 1.5, (48, 64))).astype(np.float32) for _ in images]
    folder = write_rgbd(tmp_path / "noise", images, noise)
    with pytest.raises(BackendError, match=r"median error .* at most 25\.0% is served"):
        OnnxSettings(model=str(network), align=str(folder)).build()


def test_numbers_that_shrink_towards_the_camera_are_no_inverse_depth(tmp_path):
    images = [grey_picture(seed) for seed in range(4)]
    folder = write_rgbd(
        tmp_path / "room", images, [1 + 4 * brightness_of(image) for image in images]
    )
    teacher = Relative(lambda image, _: 1 + brightness_of(image), "inverse_depth")
    with pytest.raises(BackendError, match=r"best scale is -.*must be positive"):
        AlignedBackend(teacher, folder, 10.0)


def test_depth_in_an_unknown_unit_gets_a_scale_alone(folder):
    teacher = Relative(lambda image, _: depth_of(image) / 8, "relative_depth")
    fitted = AlignedBackend(teacher, folder, 0.05)
    assert fitted.fit.scale == pytest.approx(8, rel=0.01)
    assert fitted.fit.shift == 0
    image = grey_picture(9)
    np.testing.assert_allclose(fitted.infer(image, request()).depth, depth_of(image), rtol=0.01)


def test_metres_that_are_off_are_corrected_too(folder):
    teacher = StubBackend(lambda image, _: depth_of(image) * 1.3, METRIC)
    fitted = AlignedBackend(teacher, folder, 0.05)
    assert fitted.fit.scale == pytest.approx(1 / 1.3, rel=0.01)
    assert fitted.identity.name == METRIC.name


def test_what_lies_far_beyond_the_measured_depth_is_unknown(folder):
    teacher = Relative(lambda image, _: 1 / depth_of(image) - SHIFT, "inverse_depth")
    fitted = AlignedBackend(teacher, folder, 0.05)
    farthest = fitted.fit.farthest_m
    values = np.array([[1 / 5.0, 1 / (farthest * 1.1), 0, -1]], np.float32) - np.float32(SHIFT)
    depth = fitted.fit.metres(values)
    assert depth[0, 0] == pytest.approx(5.0, rel=0.02)
    assert np.isnan(depth[0, 1:]).all()


def test_an_image_that_is_all_beyond_the_fit_is_refused_and_a_blind_network_is_not_excused(folder):
    teacher = Relative(lambda image, _: 1 / depth_of(image) - SHIFT, "inverse_depth")
    fitted = AlignedBackend(teacher, folder, 0.05)
    teacher.answer = np.full((4, 4), 1 / (fitted.fit.farthest_m * 1.1) - SHIFT, np.float32)
    with pytest.raises(BackendRefusal, match=r"all of it is beyond 1\d\.\d m"):
        fitted.infer(grey_picture(1), request())
    teacher.answer = np.full((4, 4), np.nan, np.float32)
    assert np.isnan(fitted.infer(grey_picture(1), request()).depth).all()


def test_what_the_fit_does_not_read_is_no_part_of_the_version(network, folder):
    def version():
        return OnnxSettings(model=str(network), align=str(folder)).build().identity.version

    before = version()
    for stray in (".DS_Store", "notes.txt", "images/.thumbnails", "depth/readme.txt"):
        (folder / stray).write_text("said")
    assert version() == before
    (folder / "meta.yaml").write_text("depth_units_per_m: 1001\n")
    assert version() != before


def test_outliers_hardly_move_the_fit():
    rng = np.random.default_rng(1)
    depth = rng.uniform(0.5, 8.0, 5000)
    values = (1 / depth - 0.1) / 0.4 + rng.normal(0, 0.01, 5000)
    values[:750] = rng.uniform(0, 5, 750)  # 15 % are wrong
    scale, shift = fit_inverse(values, depth)
    assert scale == pytest.approx(0.4, rel=0.03)
    assert shift == pytest.approx(0.1, abs=0.01)
    ratio = fit_scale(np.r_[depth, np.full(2000, 50.0)] / 3, np.r_[depth, np.full(2000, 1.0)])
    assert ratio == pytest.approx(3, rel=0.01)


def test_frames_that_the_teacher_refuses_are_left_out(folder):
    refused = RgbdFolder(folder).image(0)

    def answer(image, _):
        if np.array_equal(image, refused):
            return BackendRefusal("not this one")
        return depth_of(image)

    fit = fit_to_folder(Relative(answer, "relative_depth"), RgbdFolder(folder), 0.1)
    assert fit.frames == 4  # of six, one is behind the border and one refused
    assert fit.scale == pytest.approx(1, rel=0.01)


def test_a_teacher_without_a_meaning_or_without_known_pixels_cannot_be_fitted(folder):
    with pytest.raises(BackendError, match="does not say what its numbers are"):
        AlignedBackend(StubBackend(identity=RELATIVE), folder, 0.1)
    blind = Relative(np.full((48, 64), np.nan, np.float32), "relative_depth")
    with pytest.raises(BackendError, match="0 known pixels in common"):
        AlignedBackend(blind, folder, 0.1)


def test_a_folder_that_is_not_there_is_refused(network, tmp_path):
    missing = str(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="nowhere"):
        OnnxSettings(model=str(network), align=missing).build()


def test_a_teacher_that_is_off_in_another_part_of_the_recording_is_found_out(tmp_path):
    images = [grey_picture(seed) for seed in range(20)]
    folder = write_rgbd(tmp_path / "walk", images, [depth_of(image) for image in images])
    off = [images[index] for index in (*range(4, 8), *range(12, 16))]

    def answer(image, _):
        wrong = any(np.array_equal(image, each) for each in off)
        return depth_of(image) * np.float32(1.5 if wrong else 1.0)

    fit = fit_to_folder(Relative(answer, "relative_depth"), RgbdFolder(folder), 1.0)
    assert fit.scale == pytest.approx(1, rel=0.01)
    assert fit.median_error == pytest.approx(0.5, abs=0.02)
    with pytest.raises(BackendError, match="does not fit"):
        AlignedBackend(Relative(answer, "relative_depth"), folder, 0.25)


@pytest.mark.parametrize(
    ("count", "apart"), [(2, 1), (3, 1), (5, 1), (6, 2), (11, 2), (20, 2), (45, 3), (64, 4)]
)
def test_frames_that_judge_lie_in_blocks_apart_from_those_that_make_the_fit(count, apart):
    frames = list(range(100, 100 + count))
    making, judging = split_frames(frames)
    assert making[0] == frames[0]
    assert judging
    assert min(abs(a - b) for a in making for b in judging) == apart
    assert sum(after - before > 1 for before, after in pairwise(judging)) <= 1  # two blocks
    assert len(making) + len(judging) >= 0.6 * count


def test_a_single_frame_makes_the_fit_and_is_its_own_judge(tmp_path):
    image = grey_picture(1)
    folder = write_rgbd(tmp_path / "one", [image], [depth_of(image)])
    fit = fit_to_folder(
        Relative(lambda image, _: depth_of(image) / 2, "relative_depth"), RgbdFolder(folder), 0.1
    )
    assert (fit.frames, fit.scale) == (1, pytest.approx(2, rel=0.01))


WIDTH, HEIGHT, FOCAL = 160, 120, 60.0  # the last is what write_rgbd puts into K.txt

RADIUS_M = 0.5

OPEN = {"input": {"multiple_of": 4}, "output": {"meaning": "metric"}}


def camera(focal, width=WIDTH, height=HEIGHT):
    return Intrinsics(focal, focal, width / 2, height / 2)


def request_of(intrinsics=None, image=b""):
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
        (answer,) = fitted.infer_batch([ball(depth_m, focal)], [request_of(camera(focal))])
        np.testing.assert_allclose(answer.depth, depth_m, rtol=0.03)


def test_an_image_without_intrinsics_counts_as_one_of_the_fit_s_camera(balls):
    fitted = AlignedBackend(SizeNetwork("inverse_depth"), balls, 0.05)
    without, same = (fitted.infer(ball(2.0), request_of(each)) for each in (None, camera(FOCAL)))
    np.testing.assert_array_equal(without.depth, same.depth)
    np.testing.assert_allclose(without.depth, 2.0, rtol=0.03)


def test_each_image_of_a_batch_is_stretched_by_its_own_camera(balls):
    fitted = AlignedBackend(SizeNetwork("relative_depth"), balls, 0.05)
    asked = [request_of(camera(focal)) for focal in (50.0, 75.0)]
    short, long = fitted.infer_batch([ball(2.0), ball(2.0)], asked)
    np.testing.assert_allclose(long.depth, 1.5 * short.depth, rtol=1e-5)


@pytest.mark.parametrize("focal", [FOCAL * LARGEST_STRETCH * 1.01, FOCAL / LARGEST_STRETCH / 1.01])
def test_a_camera_too_far_from_the_fit_s_is_refused_before_its_image_is_decoded(balls, focal):
    fitted = AlignedBackend(SizeNetwork("inverse_depth"), balls, 0.05)
    asked = request_of(camera(focal), b"\x89PNG")
    with pytest.raises(BackendRefusal, match=rf"focal length of {focal:.0f} .* metres at .* 60"):
        check_request(fitted, asked, HEIGHT, WIDTH)
    with pytest.raises(BackendRefusal, match="--align"):
        fitted.infer(ball(2.0), asked)
    with (
        serving(fitted) as url,
        TeacherClient(ClientSettings(url=url)) as client,
        pytest.raises(TeacherRefusedError, match="fitted to metres"),
    ):
        client.infer(request_of(camera(focal), encode_png(ball(2.0))))


WIDE = np.zeros((HEIGHT * 3 // 4, WIDTH, 3), np.uint8)  # 16:9, where the fit's frames are 4:3


@pytest.mark.parametrize("intrinsics", [camera(FOCAL, *WIDE.shape[1::-1]), None])
def test_an_image_that_the_network_would_see_stretched_is_refused(balls, intrinsics):
    fitted = AlignedBackend(SizeNetwork("inverse_depth"), balls, 0.05)
    with pytest.raises(BackendRefusal, match="stretched" if intrinsics else "another aspect"):
        fitted.infer(WIDE, request_of(intrinsics))
    with pytest.raises(BackendRefusal, match="aspect"):
        check_request(fitted, request_of(intrinsics), *WIDE.shape[:2])


def test_a_little_unequal_stretch_counts_half_for_rows_and_columns(balls):
    fitted = AlignedBackend(SizeNetwork("relative_depth"), balls, 0.05)
    oblong = Intrinsics(FOCAL, FOCAL * 1.08, WIDTH / 2, HEIGHT / 2)
    plain, other = (fitted.infer(ball(2.0), request_of(each)) for each in (camera(FOCAL), oblong))
    np.testing.assert_allclose(other.depth, 1.08**0.5 * plain.depth, rtol=1e-5)


def test_a_focal_length_too_far_in_columns_alone_is_refused_as_well(balls):
    fitted = AlignedBackend(SizeNetwork("inverse_depth"), balls, 0.05)
    tall = Intrinsics(FOCAL * 1.45, FOCAL * 1.55, WIDTH / 2, HEIGHT / 2)
    with pytest.raises(BackendRefusal, match=r"beyond a factor of 1\.5"):
        fitted.infer(ball(2.0), request_of(tall))


def test_members_of_an_ensemble_refuse_it_before_the_image_is_decoded_too(balls):
    fitted = AlignedBackend(SizeNetwork("inverse_depth"), balls, 0.05)
    both = EnsembleBackend([fitted, fitted])
    check_request(both, request_of(camera(FOCAL)), HEIGHT, WIDTH)
    with pytest.raises(BackendRefusal, match="fitted to metres"):
        check_request(both, request_of(camera(2 * FOCAL)), HEIGHT, WIDTH)


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
    answer = fitted.infer(image, request_of(camera(30.0, 32, 24)))
    np.testing.assert_allclose(answer.depth, 3.0, rtol=0.02)
    wider = fitted.infer(image, request_of(camera(24.0, 32, 24)))
    np.testing.assert_allclose(wider.depth, 3.0 * 0.8, rtol=0.02)
    with pytest.raises(BackendRefusal, match="stretched"):
        fitted.infer(image[:18], request_of(camera(30.0, 32, 18)))


def test_to_one_that_works_at_the_image_s_own_size_its_focal_length_is_shorter(room, tmp_path):
    fitted = fitted_network(room, tmp_path, Brightness(0.5, 1.0), OPEN, open_dimensions=(0, 2, 3))
    image = np.full((36, 48, 3), 255, np.uint8)
    said = fitted.infer(image, request_of(camera(45.0, 48, 36)))
    np.testing.assert_allclose(said.depth, 3.0 * 0.75, rtol=0.02)
    np.testing.assert_array_equal(said.depth, fitted.infer(image, request_of()).depth)


def test_a_network_that_takes_the_focal_length_is_not_corrected_twice(room, tmp_path):
    card = {"input": {"multiple_of": 4, "focal": "focal"}, "output": {"meaning": "metric"}}
    fitted = fitted_network(
        room, tmp_path, FocalBrightness(0.5, 1.0), card,
        inputs=("image", "focal"), open_dimensions=(0, 2, 3),
    )  # fmt: skip
    image = grey_picture(9)
    for focal in (30.0, 60.0, 110.0):
        answer = fitted.infer(image, request_of(camera(focal, 64, 48)))
        truth = (1 + 2 * brightness_of(image)) * focal / 60
        np.testing.assert_allclose(answer.depth, truth, rtol=0.02)


def test_depth_that_was_measured_is_not_stretched(room):
    measured = AlignedBackend(
        StubBackend(lambda image, _: 1 + 2 * brightness_of(image), METRIC), room, 0.05
    )
    image = grey_picture(9)
    answer = measured.infer(image, request_of(camera(300.0, 64, 48)))
    np.testing.assert_allclose(answer.depth, 1 + 2 * brightness_of(image), rtol=0.01)
