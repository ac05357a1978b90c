"""What a backend will not label for its size or for want of intrinsics is never decoded.

Only the beginning of each image is sent: whoever decoded it would call it unreadable, which is
INVALID_ARGUMENT.
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from helpers.onnx_teachers import Brightness, export, grey_picture, write_rgbd
from helpers.strangers import refusal
from helpers.teachers import StubBackend, serving
from tiekd_ros.core.images import encode_png
from tiekd_ros.teacher.backends.ensemble import EnsembleBackend
from tiekd_ros.teacher.backends.huggingface import HuggingFaceSettings
from tiekd_ros.teacher.backends.onnx import OnnxSettings
from tiekd_ros.teacher.backends.recorded import RecordedSettings


def beginning(width: int, height: int) -> bytes:
    return encode_png(np.zeros((height, width, 3), np.uint8))[:60]


def onnx(folder, **output):
    card = {"input": {"multiple_of": 16}, "output": {"meaning": "metric", **output}}
    path = export(folder / "net.onnx", Brightness(), card, open_dimensions=(0, 2, 3))
    return OnnxSettings(model=str(path), max_input_pixels=640 * 480).build()


def check(backend, unfit: bytes, words: str) -> None:
    with serving(backend) as url:
        status, text = refusal(url, unfit)
        assert (status, words in text) == ("FAILED_PRECONDITION", True), text


@pytest.mark.parametrize("size", [(800, 480), (64, 12)])
def test_sizes_that_do_not_suit_an_exported_network(tmp_path, size):
    backend = onnx(tmp_path)
    check(backend, beginning(*size), "send one of another size")
    check(EnsembleBackend([StubBackend(), backend]), beginning(*size), "another size")
    with serving(backend) as url:
        assert refusal(url, beginning(64, 48))[0] == "INVALID_ARGUMENT"


def test_images_without_the_intrinsics_that_an_exported_network_needs(tmp_path):
    check(onnx(tmp_path, canonical_focal_px=100.0), beginning(64, 48), "focal length")


def test_sizes_that_do_not_suit_a_checkpoint(tmp_path):
    pytest.importorskip("transformers")
    from helpers.checkpoints import write_depth_anything

    folder = str(write_depth_anything(tmp_path / "net"))
    backend = HuggingFaceSettings(model=folder, max_input_pixels=100_000).build()
    check(backend, beginning(4000, 4), "max_input_pixels")


def test_pictures_of_another_shape_than_the_recorded_ones(tmp_path):
    image = grey_picture()
    folder = write_rgbd(tmp_path / "room", [image], [np.ones(image.shape[:2], np.float32)])
    recorded = RecordedSettings(frames=str(folder)).build()
    check(recorded, beginning(64, 64), "another aspect ratio")
    with serving(recorded) as url:
        assert refusal(url, beginning(64, 48))[0] == "INVALID_ARGUMENT"
