"""Depth Pro's metres: by the camera's focal length, else by the one that the network guesses."""

from __future__ import annotations
import __future__

import ast
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from helpers.checkpoints import write_depth_pro
from helpers.teachers import INTRINSICS, StubBackend, picture, serving
from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.images import encode_png
from tiekd_ros.teacher.backend import BackendRefusal, check_request
from tiekd_ros.teacher.backends.huggingface import HuggingFaceSettings
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.errors import TeacherRefusedError
from tiekd_ros.teacher.protocol import DepthRequest

LIBRARY = "transformers.models.depth_pro.image_processing_depth_pro"
BILINEAR = 2  # PIL's number


def load(folder, **options):
    return HuggingFaceSettings(model=str(folder), **options).build()


def request(intrinsics=INTRINSICS):
    return DepthRequest(b"", intrinsics, 0, "camera")


def library_s_metres(outputs, size):
    """Return what transformers' own code makes of the network's outputs, and the focal length.

    The method is taken out of its file, which cannot be imported without torchvision; the method
    itself needs none.
    """
    path = Path(importlib.util.find_spec(LIBRARY).origin)
    nodes = ast.walk(ast.parse(path.read_text()))
    name = "post_process_depth_estimation"
    (method,) = [n for n in nodes if isinstance(n, ast.FunctionDef) and n.name == name]
    mapping = {BILINEAR: SimpleNamespace(value="bilinear")}
    found = {"torch": torch, "pil_torch_interpolation_mapping": mapping}
    flags = __future__.annotations.compiler_flag
    exec(compile(ast.Module([method], []), str(path), "exec", flags), found)
    (result,) = found[name](SimpleNamespace(resample=BILINEAR), outputs, [size])
    return result["predicted_depth"].numpy(), float(result["focal_length"])


@pytest.mark.parametrize(("width", "height"), [(128, 96), (96, 126)])
def test_its_metres_are_the_library_s_with_its_guess_and_with_the_camera_s_focal_length(
    tmp_path, width, height
):
    backend = load(write_depth_pro(tmp_path / "pro"))
    image = picture(0, width, height)
    guessed = backend.infer(image, request(None)).depth
    loaded = backend._checkpoint
    with torch.inference_mode():
        prepared = loaded.recipe.prepare([image], loaded.device, loaded.dtype)
        outputs = loaded.network(pixel_values=prepared.pixels)
        theirs, focal = library_s_metres(outputs, guessed.shape)
    assert 0.5 < focal / guessed.shape[1] < 1.5
    known = np.isfinite(guessed)
    assert known.mean() > 0.1
    assert np.ptp(guessed[known]) > 0
    np.testing.assert_allclose(guessed[known], theirs[known], rtol=1e-4)
    camera = Intrinsics(0.7 * width, 0.7 * width, width / 2, height / 2)
    measured = backend.infer(image, request(camera)).depth
    expected = theirs * (0.7 * guessed.shape[1] / focal)
    known = np.isfinite(measured)
    np.testing.assert_allclose(measured[known], expected[known], rtol=1e-4)


def test_depth_pro_takes_the_camera_s_focal_length_and_else_guesses_it(tmp_path):
    backend = load(write_depth_pro(tmp_path / "pro"))
    assert backend.identity.metric
    image = picture()
    short, long = (
        backend.infer(image, request(Intrinsics(f, f, 31.5, 23.5))).depth for f in (40.0, 80.0)
    )
    known = np.isfinite(short) & np.isfinite(long)
    assert known.any()
    np.testing.assert_allclose(long[known], 2 * short[known], rtol=1e-4)
    guessed = backend.infer(image, request(None)).depth
    both = np.isfinite(guessed) & np.isfinite(short)
    ratio = guessed[both] / short[both]
    np.testing.assert_allclose(ratio, np.median(ratio), rtol=1e-3)  # one focal length for all


def test_each_image_of_a_batch_keeps_its_own_focal_length(tmp_path):
    backend = load(write_depth_pro(tmp_path / "pro"))
    requests = [request(Intrinsics(f, f, 31.5, 23.5)) for f in (40.0, 80.0)]
    images = [picture(0), picture(1)]
    answers = backend.infer_batch(images, requests)
    for image, asked, answer in zip(images, requests, answers, strict=True):
        np.testing.assert_allclose(answer.depth, backend.infer(image, asked).depth, rtol=1e-3)


def test_depth_pro_without_its_guess_refuses_an_image_without_intrinsics(tmp_path):
    backend = load(write_depth_pro(tmp_path / "pro", field_of_view=False))
    with (
        serving(backend) as url,
        TeacherClient(ClientSettings(url=url)) as client,
        pytest.raises(TeacherRefusedError, match=r"focal length.*intrinsics"),
    ):
        client.infer(DepthRequest(encode_png(picture()), None, 0, "camera"))
    assert np.isfinite(backend.infer(picture(), request()).depth).any()


def test_a_request_that_lacks_the_focal_length_is_refused_before_its_image_is_decoded(tmp_path):
    backend = load(write_depth_pro(tmp_path / "pro", field_of_view=False))
    check_request(backend, request(), 48, 64)
    with pytest.raises(BackendRefusal, match="focal length"):
        check_request(backend, request(None), 48, 64)
    guessing = load(write_depth_pro(tmp_path / "guessing"))
    check_request(guessing, request(None), 48, 64)
    check_request(StubBackend(), request(None), 48, 64)  # one that checks nothing
    with (
        serving(backend) as url,
        TeacherClient(ClientSettings(url=url)) as client,
        pytest.raises(TeacherRefusedError, match="focal length"),
    ):
        # All but the header is missing, which decoding would find.
        client.infer(DepthRequest(encode_png(picture())[:60], None, 0, "camera"))
