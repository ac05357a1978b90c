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
from helpers.teachers import METRIC, RELATIVE, StubBackend, client_of, depth_request
from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.images import encode_png
from tiekd_ros.datasets import DatasetError, RgbdFolder
from tiekd_ros.teacher.backend import check_request
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
from tiekd_ros.teacher.errors import (
    BackendError,
    BackendRefusal,
    RelativeTeacherError,
    TeacherRefusedError,
)
from tiekd_ros.teacher.protocol import DepthRequest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


SCALE, SHIFT = 0.7, 0.15  # 1 / depth = SCALE * brightness + SHIFT: 1.2 to 6.7 m


def depth_of(image):
    return (1 / (SCALE * brightness_of(image) + SHIFT)).astype(np.float32)


def request_of(intrinsics=None, image=b""):
    return DepthRequest(image, intrinsics, 0, "camera")


class Relative(StubBackend):
    """A stub of a network that says what its numbers are."""

    def __init__(self, answer, meaning="relative_depth"):
        super().__init__(answer, RELATIVE)
        self.meaning = meaning


def recording(path, frames, depth_of=depth_of):
    images = [grey_picture(seed) for seed in range(frames)]
    return write_rgbd(path, images, [depth_of(image) for image in images])


@pytest.fixture
def network(tmp_path):
    """Answers 3 * brightness - 1, so that 1 / depth is 0.7 / 3 of it, plus 0.15 + 0.7 / 3."""
    card = {"input": {"multiple_of": 16}, "output": {"meaning": "inverse_depth"}}
    return export(tmp_path / "midas.onnx", Brightness(1.0, 3.0), card, open_dimensions=(0, 2, 3))


@pytest.fixture
def folder(tmp_path):
    return recording(tmp_path / "room", 6)


def fit_of(network, folder):
    return OnnxSettings(model=str(network), align=str(folder)).build()


def test_a_relative_network_serves_metres_after_its_fit_and_none_before(network, folder, caplog):
    image = grey_picture(9)
    plain = OnnxSettings(model=str(network)).build()
    with client_of(plain) as client, pytest.raises(RelativeTeacherError):
        client.infer(depth_request(image))
    with caplog.at_level(logging.INFO):
        fitted = fit_of(network, folder)
    with client_of(fitted) as client:
        identity = client.identity()
        answer = client.infer(depth_request(image))
    assert (identity.metric, identity.name) == (True, "midas")
    assert "-aligned-" in identity.version
    np.testing.assert_allclose(answer.depth, depth_of(image), rtol=0.05)  # of JPEG
    assert fitted.fit.scale == pytest.approx(SCALE / 3, rel=0.01)
    assert fitted.fit.shift == pytest.approx(SHIFT - SCALE / 3, rel=0.01)
    assert fitted.fit.median_error < 0.01
    assert "median error" in caplog.text
    assert f"1/depth = {fitted.fit.scale:.6g} x - " in caplog.text


def test_the_version_is_of_what_the_fit_reads_and_not_of_its_rounding(network, folder, tmp_path):
    def version(path=folder):
        return fit_of(network, path).identity.version

    before = version()
    for stray in (".DS_Store", "notes.txt", "images/.thumbnails", "depth/readme.txt"):
        (folder / stray).write_text("said")
    assert version() == before
    assert version(recording(tmp_path / "other", 4, lambda each: 2 * depth_of(each))) != before
    one, other = (
        AlignedBackend(Relative(lambda image, _, by=by: depth_of(image) * by), folder, 0.05)
        for by in (np.float32(1.0), np.float32(1.00001))
    )
    assert one.fit.scale != other.fit.scale
    assert one.identity == other.identity
    (folder / "meta.yaml").write_text("depth_units_per_m: 1001\n")
    assert version() != before


def test_a_teacher_that_does_not_fit_is_refused_with_the_reason(network, folder, tmp_path):
    rng = np.random.default_rng(0)
    noisy = recording(
        tmp_path / "noise", 4, lambda _: np.exp(rng.normal(1, 1.5, (48, 64))).astype(np.float32)
    )
    with pytest.raises(BackendError, match=r"median error .* at most 25\.0% is served"):
        fit_of(network, noisy)
    with pytest.raises(DatasetError, match="nowhere"):
        fit_of(network, tmp_path / "nowhere")
    growing = recording(tmp_path / "growing", 4, lambda image: 1 + 4 * brightness_of(image))
    shrinks = Relative(lambda image, _: 1 + brightness_of(image), "inverse_depth")
    for teacher, frames, words in (
        (shrinks, growing, r"best scale is -.*must be positive"),
        (StubBackend(identity=RELATIVE), folder, "does not say what its numbers are"),
        (Relative(np.full((48, 64), np.nan, np.float32)), folder, "0 known pixels in common"),
    ):
        with pytest.raises(BackendError, match=words):
            AlignedBackend(teacher, frames, 10.0)


def test_depth_in_an_unknown_unit_or_in_metres_that_are_off_gets_a_scale_alone(folder, tmp_path):
    for teacher, frames, scale in (
        (Relative(lambda image, _: depth_of(image) / 8), folder, 8),
        (StubBackend(lambda image, _: depth_of(image) * 1.3, METRIC), folder, 1 / 1.3),
        (Relative(lambda image, _: depth_of(image) / 2), recording(tmp_path / "one", 1), 2),
    ):
        fitted = AlignedBackend(teacher, frames, 0.05)
        assert (fitted.fit.scale, fitted.fit.shift) == (pytest.approx(scale, rel=0.01), 0)
        assert fitted.identity.name == METRIC.name
        image = grey_picture(9)
        depth = fitted.infer(image, request_of()).depth
        np.testing.assert_allclose(depth, depth_of(image), rtol=0.01)
    assert fitted.fit.frames == 1  # which makes the fit and judges it


def test_what_lies_far_beyond_the_measured_depth_is_unknown_and_an_image_of_it_refused(folder):
    teacher = Relative(lambda image, _: 1 / depth_of(image) - SHIFT, "inverse_depth")
    fitted = AlignedBackend(teacher, folder, 0.05)
    beyond = 1 / (fitted.fit.farthest_m * 1.1)
    depth = fitted.fit.metres(np.array([[1 / 5.0, beyond, 0, -1]], np.float32) - np.float32(SHIFT))
    assert depth[0, 0] == pytest.approx(5.0, rel=0.02)
    assert np.isnan(depth[0, 1:]).all()
    teacher.answer = np.full((4, 4), beyond - SHIFT, np.float32)
    with pytest.raises(BackendRefusal, match=r"all of it is beyond 1\d\.\d m"):
        fitted.infer(grey_picture(1), request_of())
    teacher.answer = np.full((4, 4), np.nan, np.float32)  # the network's own doing
    assert np.isnan(fitted.infer(grey_picture(1), request_of()).depth).all()


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


def test_frames_that_the_teacher_refuses_are_left_out_and_other_parts_judge_it(folder, tmp_path):
    def answer(image, _):
        return BackendRefusal("not this") if np.array_equal(image, first) else depth_of(image)

    first = RgbdFolder(folder).image(0)
    fit = fit_to_folder(Relative(answer), RgbdFolder(folder), 0.1)
    assert fit.frames == 4  # of six, one is behind the border and one refused
    assert fit.scale == pytest.approx(1, rel=0.01)

    def off_in_parts(image, _):
        wrong = any(np.array_equal(image, walk.image(each)) for each in off)
        return depth_of(image) * np.float32(1.5 if wrong else 1.0)

    walk, off = RgbdFolder(recording(tmp_path / "walk", 20)), (*range(4, 8), *range(12, 16))
    fit = fit_to_folder(Relative(off_in_parts), walk, 1.0)
    assert fit.scale == pytest.approx(1, rel=0.01)
    assert fit.median_error == pytest.approx(0.5, abs=0.02)


def test_frames_that_judge_lie_in_blocks_apart_from_those_that_make_the_fit():
    for count, apart in ((2, 1), (3, 1), (5, 1), (6, 2), (11, 2), (20, 2), (45, 3), (64, 4)):
        frames = list(range(100, 100 + count))
        making, judging = split_frames(frames)
        assert making[0] == frames[0]
        assert judging
        assert min(abs(a - b) for a in making for b in judging) == apart
        assert sum(after - before > 1 for before, after in pairwise(judging)) <= 1  # two blocks
        assert len(making) + len(judging) >= 0.6 * count


# Cameras of other focal lengths than the fit's.

WIDTH, HEIGHT, FOCAL = 160, 120, 60.0  # the last is what write_rgbd puts into K.txt
RADIUS_M = 0.5
OPEN = {"input": {"multiple_of": 4}, "output": {"meaning": "metric"}}


def camera(focal, width=WIDTH, height=HEIGHT):
    return Intrinsics(focal, focal, width / 2, height / 2)


def ball(depth_m, focal=FOCAL):
    """Return a picture of a white ball of a known size at a distance, by a camera."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    radius = focal * RADIUS_M / depth_m
    centre = (WIDTH * 8 - 8, HEIGHT * 8 - 8)  # in sixteenths of a pixel, as the radius
    cv2.circle(image, centre, round(radius * 16), (255, 255, 255), -1, cv2.LINE_AA, 4)
    return image


class SizeNetwork:
    """Judges by the apparent size of the ball, and knows nothing of cameras."""

    def __init__(self, meaning):
        self.meaning = meaning
        self.identity = METRIC if meaning == "metric" else RELATIVE

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


def test_metres_are_right_for_cameras_of_other_focal_lengths(balls):
    for meaning in ("inverse_depth", "relative_depth", "metric"):
        fitted = AlignedBackend(SizeNetwork(meaning), balls, 0.05)
        for focal in (45.0, FOCAL, 85.0):
            for depth_m in (1.4, 2.4):
                answer = fitted.infer(ball(depth_m, focal), request_of(camera(focal)))
                np.testing.assert_allclose(answer.depth, depth_m, rtol=0.03)
        without = fitted.infer(ball(2.0), request_of())  # counts as one of the fit's camera
        own = fitted.infer(ball(2.0), request_of(camera(FOCAL)))
        np.testing.assert_array_equal(without.depth, own.depth)


def test_each_image_is_stretched_by_its_own_camera_and_rows_and_columns_count_half(balls):
    fitted = AlignedBackend(SizeNetwork("relative_depth"), balls, 0.05)
    oblong = Intrinsics(FOCAL, FOCAL * 1.08, WIDTH / 2, HEIGHT / 2)
    cameras = (camera(50.0), camera(75.0), camera(FOCAL), oblong)
    short, long, plain, other = (
        answer.depth for answer in fitted.infer_batch([ball(2.0)] * 4, [*map(request_of, cameras)])
    )
    np.testing.assert_allclose(long, 1.5 * short, rtol=1e-5)
    np.testing.assert_allclose(other, 1.08**0.5 * plain, rtol=1e-5)


WIDE = (HEIGHT * 3 // 4, WIDTH)  # 16:9, where the fit's frames are 4:3


def test_a_camera_too_far_from_the_fit_s_is_refused_before_its_image_is_decoded(balls):
    fitted = AlignedBackend(SizeNetwork("inverse_depth"), balls, 0.05)
    near, far = FOCAL / LARGEST_STRETCH / 1.01, FOCAL * LARGEST_STRETCH * 1.01
    tall = Intrinsics(FOCAL * 1.45, FOCAL * 1.55, WIDTH / 2, HEIGHT / 2)
    for intrinsics, size, words in (
        (camera(near), (HEIGHT, WIDTH), rf"focal length of {near:.0f} .* metres at .* 60.*--align"),
        (camera(far), (HEIGHT, WIDTH), rf"focal length of {far:.0f} .* metres at .* 60.*--align"),
        (tall, (HEIGHT, WIDTH), r"beyond a factor of 1\.5"),
        (camera(FOCAL, *WIDE[::-1]), WIDE, "stretched.*aspect"),
        (None, WIDE, "another aspect"),
    ):
        asked = request_of(intrinsics, b"\x89PNG")
        with pytest.raises(BackendRefusal, match=words):
            check_request(fitted, asked, *size)
        with pytest.raises(BackendRefusal, match=words):
            fitted.infer(np.zeros((*size, 3), np.uint8), asked)
    both = EnsembleBackend([fitted, fitted])
    check_request(both, request_of(camera(FOCAL)), HEIGHT, WIDTH)
    with pytest.raises(BackendRefusal, match="fitted to metres"):
        check_request(both, request_of(camera(far)), HEIGHT, WIDTH)
    with client_of(fitted) as client, pytest.raises(TeacherRefusedError, match="fitted to metres"):
        client.infer(request_of(camera(far), encode_png(ball(2.0))))


def fitted_network(folder, tmp_path, network, card, **given):
    return fit_of(export(tmp_path / "net.onnx", network, card, **given), folder)


@pytest.fixture
def room(tmp_path):
    return recording(tmp_path / "room", 6, lambda image: 1 + 2 * brightness_of(image))


def test_what_counts_is_the_focal_length_in_pixels_of_the_network_s_input(room, tmp_path):
    card = {"output": {"meaning": "metric"}}
    fixed = fitted_network(room, tmp_path, Brightness(0.5, 1.0), card, shape=(1, 3, 48, 64))
    white = np.full((36, 48, 3), 255, np.uint8)
    for focal, width, height in ((30.0, 32, 24), (24.0, 32, 24)):
        answer = fixed.infer(white[:height, :width], request_of(camera(focal, width, height)))
        np.testing.assert_allclose(answer.depth, 3.0 * focal / 30, rtol=0.02)
    with pytest.raises(BackendRefusal, match="stretched"):
        fixed.infer(white[:18, :32], request_of(camera(30.0, 32, 18)))
    own = fitted_network(room, tmp_path, Brightness(0.5, 1.0), OPEN, open_dimensions=(0, 2, 3))
    said = own.infer(white, request_of(camera(45.0, 48, 36)))
    np.testing.assert_allclose(said.depth, 3.0 * 0.75, rtol=0.02)
    np.testing.assert_array_equal(said.depth, own.infer(white, request_of()).depth)


def test_what_knows_the_focal_length_or_was_measured_is_not_corrected(room, tmp_path):
    card = {"input": {"multiple_of": 4, "focal": "focal"}, "output": {"meaning": "metric"}}
    takes_it = fitted_network(
        room, tmp_path, FocalBrightness(0.5, 1.0), card,
        inputs=("image", "focal"), open_dimensions=(0, 2, 3),
    )  # fmt: skip
    image = grey_picture(9)
    truth = 1 + 2 * brightness_of(image)
    for focal in (30.0, 60.0, 110.0):
        answer = takes_it.infer(image, request_of(camera(focal, 64, 48)))
        np.testing.assert_allclose(answer.depth, truth * focal / 60, rtol=0.02)
    stub = StubBackend(lambda image, _: 1 + 2 * brightness_of(image), METRIC)
    answer = AlignedBackend(stub, room, 0.05).infer(image, request_of(camera(300.0, 64, 48)))
    np.testing.assert_allclose(answer.depth, truth, rtol=0.01)
