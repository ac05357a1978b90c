"""The recorded backend knows its frames again and no others."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from helpers.teachers import depth_request, picture, ramp, serving
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.images import decode_image, encode_jpeg
from tiekd_ros.datasets import DatasetError, RgbdFolder
from tiekd_ros.teacher.backend import BackendRefusal
from tiekd_ros.teacher.backends import read_backend
from tiekd_ros.teacher.backends.recorded import RecordedBackend, RecordedSettings
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.errors import TeacherRefusedError
from tiekd_ros.teacher.protocol import DepthRequest

HOLOLENS = Path(__file__).resolve().parents[3] / "shared" / "data" / "hololens"
needs_hololens = pytest.mark.skipif(
    not HOLOLENS.is_dir(), reason=f"real frames are not here: {HOLOLENS}"
)
FP16_RELATIVE_ERROR = 2.0**-11


def write_folder(folder: Path, images: list[np.ndarray]) -> Path:
    """Write images as PNG, each with a depth ramp that its index scales."""
    for name in ("images", "depth"):
        (folder / name).mkdir(parents=True)
    for index, image in enumerate(images):
        cv2.imwrite(str(folder / "images" / f"{index:03d}.png"), image[..., ::-1])
        depth = np.nan_to_num(ramp() * (1 + index) * 1000).astype(np.uint16)
        cv2.imwrite(str(folder / "depth" / f"{index:03d}.png"), depth)
    (folder / "K.txt").write_text("60 0 31.5\n0 60 23.5\n0 0 1\n")
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "room", [picture(seed) for seed in range(4)])


def smooth(size, image):
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def test_depth_comes_over_the_wire_for_a_jpeg_of_a_recorded_frame(folder):
    backend = RecordedSettings(frames=str(folder)).build()
    with serving(backend) as url, TeacherClient(ClientSettings(url=url)) as client:
        answer = client.infer(depth_request(picture(2)))
        assert client.identity() == backend.identity
    np.testing.assert_allclose(answer.depth, ramp() * 3, rtol=FP16_RELATIVE_ERROR, atol=0.001)
    assert backend.identity.version == "room-4"
    assert backend.identity.metric


def test_an_unknown_image_is_refused_over_the_wire(folder):
    with (
        serving(RecordedBackend(folder)) as url,
        TeacherClient(ClientSettings(url=url)) as client,
        pytest.raises(TeacherRefusedError, match="unknown image: the most similar of 4"),
    ):
        client.infer(depth_request(picture(99)))


@pytest.mark.parametrize("quality", [60, 80, 92])
@pytest.mark.parametrize("size", [(320, 240), (160, 120), (640, 480)])
def test_a_frame_is_known_again_after_compression_and_resizing(tmp_path, quality, size):
    pictures = [picture(seed, 320, 240) for seed in range(4)]
    backend = RecordedBackend(write_folder(tmp_path / "room", pictures))
    for seed in range(4):
        image = decode_image(encode_jpeg(smooth(size, pictures[seed]), quality))
        assert backend.find(image) == seed


def test_a_frame_is_known_again_under_noise(folder):
    noise = np.random.default_rng(1).normal(0, 6, (48, 64, 3))
    noisy = np.clip(picture(1) + noise, 0, 255).astype(np.uint8)
    assert RecordedBackend(folder).find(noisy) == 1


def test_a_picture_between_two_recorded_ones_is_refused(tmp_path):
    first, last = picture(0), picture(1)
    slow = [cv2.addWeighted(last, share, first, 1 - share, 0) for share in (0.0, 0.02, 0.04)]
    backend = RecordedBackend(write_folder(tmp_path / "slow", [slow[0], slow[2]]))
    with pytest.raises(BackendRefusal, match="between"):
        backend.find(slow[1])


def test_two_identical_frames_are_no_contradiction(tmp_path):
    backend = RecordedBackend(
        write_folder(tmp_path / "still", [picture(0), picture(0), picture(1)])
    )
    assert backend.find(picture(0)) in (0, 1)


def test_another_aspect_ratio_is_refused(folder):
    with pytest.raises(BackendRefusal, match="aspect"):
        RecordedBackend(folder).find(smooth((48, 48), picture(0)))


def test_a_folder_of_a_single_frame_will_do(tmp_path):
    backend = RecordedBackend(write_folder(tmp_path / "one", [picture(0)]))
    assert backend.find(picture(0)) == 0


def test_a_backend_that_does_not_exist_or_lacks_its_folder_says_what_would_do(tmp_path):
    with pytest.raises(InvalidSettingError, match="'oracle': there are huggingface, onnx"):
        read_backend("oracle")
    with pytest.raises(InvalidSettingError, match="--frames"):
        RecordedSettings().build()
    with pytest.raises(DatasetError, match="does not exist"):
        RecordedSettings(frames=str(tmp_path / "nowhere")).build()


@needs_hololens
def test_every_hololens_frame_finds_itself_after_jpeg_80_and_at_half_size():
    backend = RecordedBackend(HOLOLENS)
    frames = RgbdFolder(HOLOLENS)
    for index in range(len(frames)):
        image = frames.image(index)
        assert backend.find(decode_image(encode_jpeg(image, 80))) == index
        half = smooth((image.shape[1] // 2, image.shape[0] // 2), image)
        assert backend.find(decode_image(encode_jpeg(half, 80))) == index


@needs_hololens
def test_a_hololens_frame_that_was_not_recorded_is_not_taken_for_its_neighbour():
    backend = RecordedBackend(HOLOLENS)
    frames = RgbdFolder(HOLOLENS)
    known = backend._thumbnails
    for index in range(len(frames)):
        backend._thumbnails = known.copy()
        backend._thumbnails[index] = -1000.0
        with pytest.raises(BackendRefusal, match="unknown image"):
            backend.find(frames.image(index))


@needs_hololens
def test_hololens_depth_comes_over_the_wire():
    frames = RgbdFolder(HOLOLENS)
    with (
        serving(RecordedBackend(HOLOLENS), depth_type="FP32") as url,
        TeacherClient(ClientSettings(url=url)) as client,
    ):
        data = encode_jpeg(frames.image(20), 85)
        answer = client.infer(DepthRequest(data, frames.intrinsics, 0, "camera"))
    np.testing.assert_array_equal(answer.depth, frames.depth(20))
