"""Checkpoints of transformers label images; what they cannot do is said before they serve."""

from __future__ import annotations
import __future__

import ast
import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers.checkpoints import (
    write_depth_anything,
    write_depth_pro,
    write_dpt,
    write_glpn,
    write_zoe,
)
from helpers.strangers import refusal
from helpers.teachers import INTRINSICS, StubBackend, picture, serving
from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.images import encode_png
from tiekd_ros.teacher.backend import BackendRefusal, check_request, label_all
from tiekd_ros.teacher.backends.huggingface import HuggingFaceSettings
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.errors import BackendError, RelativeTeacherError, TeacherRefusedError
from tiekd_ros.teacher.protocol import DepthRequest

pytest.importorskip("transformers")


FP16_RELATIVE_ERROR = 2.0**-11

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def load(folder, **options):
    return HuggingFaceSettings(model=str(folder), **options).build()


def request(intrinsics=INTRINSICS):
    return DepthRequest(b"", intrinsics, 0, "camera")


def sent(image, intrinsics=INTRINSICS):
    return DepthRequest(encode_png(image), intrinsics, 0, "camera")


@pytest.fixture(scope="module")
def metric(tmp_path_factory):
    """A metric Depth Anything of up to 10 m; not to be changed."""
    return write_depth_anything(tmp_path_factory.mktemp("metric") / "tiny-metric")


@pytest.fixture
def copy(metric, tmp_path):
    """The same, to be changed."""
    return shutil.copytree(metric, tmp_path / "tiny-metric")


def edit(path, **changes):
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def test_a_metric_checkpoint_s_depth_comes_over_the_wire(metric):
    backend = load(metric)
    image = picture()
    with serving(backend) as url, TeacherClient(ClientSettings(url=url)) as client:
        answer = client.infer(sent(image))
        assert client.identity() == backend.identity
    assert backend.identity.name == "tiny-metric"
    assert backend.identity.metric
    alone = backend.infer(image, request()).depth
    np.testing.assert_allclose(answer.depth, alone, rtol=FP16_RELATIVE_ERROR)
    assert 0 < alone.min() < alone.max() <= 10


def test_the_answer_is_what_transformers_itself_answers(metric):
    pytest.importorskip("PIL")
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    image = picture()
    inputs = AutoImageProcessor.from_pretrained(metric)(images=image, return_tensors="pt")
    network = AutoModelForDepthEstimation.from_pretrained(metric).eval()
    with torch.inference_mode():
        theirs = network(**inputs).predicted_depth[0].numpy()
    ours = load(metric).infer(image, request()).depth
    np.testing.assert_allclose(ours, theirs, rtol=0.02)  # its images are rounded to bytes


def test_a_batch_has_the_same_answers_as_its_images_alone(metric):
    backend = load(metric)
    images = [picture(seed) for seed in range(4)]
    for image, answer in zip(images, label_all(backend, images, [request()] * 4), strict=True):
        np.testing.assert_allclose(answer.depth, backend.infer(image, request()).depth, **CLOSE)


def test_neighbours_in_a_batch_do_not_vote_for_the_head_of_a_zoe_of_several(tmp_path):
    backend = load(write_zoe(tmp_path / "zoe", heads=2))
    images = [picture(seed) for seed in range(8)]
    loaded = backend._checkpoint
    with torch.no_grad():  # as many images for the one head as for the other
        pixels = loaded.recipe.prepare(images, loaded.device, loaded.dtype).pixels
        near, far = loaded.network(pixel_values=pixels).domain_logits.T
        last = loaded.network.metric_head.mlp_classifier.linear2
        last.bias[0] += (far - near).median()
        votes = loaded.network(pixel_values=pixels).domain_logits.argmax(1)
    assert set(votes.tolist()) == {0, 1}
    alone = [backend.infer(image, request()).depth for image in images]
    for depth, answer in zip(alone, label_all(backend, images, [request()] * 8), strict=True):
        np.testing.assert_allclose(answer.depth, depth, **CLOSE)


def test_a_network_that_overflows_in_half_precision_is_told_of_float32(copy):
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    weights["neck.convs.0.weight"] *= 1e6
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackendError, match=r"float16: .*overflows; say dtype=float32"):
        load(copy, dtype="float16")
    assert np.isfinite(load(copy, dtype="float32").infer(picture(), request()).depth).any()


@pytest.mark.parametrize(
    ("write", "farthest"),
    [(write_glpn, 10.01), (write_zoe, 8.5), (write_depth_anything, 10.01)],
    ids=["glpn", "zoe", "depth_anything"],
)
@pytest.mark.parametrize(("width", "height"), [(128, 96), (96, 150)])
def test_metric_networks_answer_metres_of_the_image_s_view(
    tmp_path, write, farthest, width, height
):
    backend = load(write(tmp_path / "net"))
    assert backend.identity.metric
    depth = backend.infer(picture(0, width, height), request()).depth
    assert depth.shape[1] / depth.shape[0] == pytest.approx(width / height, rel=0.02)
    assert depth.size <= width * height
    known = depth[np.isfinite(depth)]
    assert known.size > 0
    assert 0 < known.min() <= known.max() <= farthest


def test_relative_networks_are_served_as_relative_and_never_silently_scaled(tmp_path):
    for name, folder in (
        ("anything", write_depth_anything(tmp_path / "anything", metric=False)),
        ("midas", write_dpt(tmp_path / "midas")),
    ):
        backend = load(folder)
        assert backend.identity.name == f"{name} (inverse_depth)"
        assert not backend.identity.metric
        assert backend.meaning == "inverse_depth"
        with (
            serving(backend) as url,
            TeacherClient(ClientSettings(url=url)) as client,
            pytest.raises(RelativeTeacherError),
        ):
            client.infer(sent(picture()))


def test_dpt_on_dinov2_does_not_say_what_it_answers_so_the_user_must(tmp_path):
    folder = write_dpt(tmp_path / "dinov2", dinov2=True)
    edit(folder / "preprocessor_config.json", size={"height": 56, "width": 56})
    with pytest.raises(BackendError, match=r"dpt on dinov2 network.*--meaning"):
        load(folder)
    assert load(folder, meaning="metric").identity.metric
    assert load(folder, meaning="relative_depth").meaning == "relative_depth"


def test_a_lower_precision_labels_nearly_the_same_under_the_same_identity(metric):
    whole, half = load(metric), load(metric, dtype="bfloat16")
    assert whole.identity == half.identity
    ours, theirs = (backend.infer(picture(), request()).depth for backend in (whole, half))
    np.testing.assert_allclose(theirs, ours, rtol=0.1)
    assert not np.array_equal(theirs, ours)


def test_a_changed_checkpoint_is_another_version_and_a_copy_is_not(metric, copy):
    def version():
        return load(copy).identity.version

    first = version()
    assert first == load(metric).identity.version
    assert load(copy, input_side=84).identity.version != first
    edit(copy / "config.json", max_depth=20)
    assert version() != first
    edit(copy / "config.json", max_depth=10)
    write_depth_anything(copy, seed=1)
    assert version() != first


def test_a_smaller_input_side_makes_a_smaller_answer(metric):
    image = picture(0, 320, 240)
    sizes = [load(metric, input_side=s).infer(image, request()).depth.size for s in (0, 28)]
    assert sizes[1] < sizes[0]


def test_an_unsuitable_image_is_refused_before_it_is_decoded_and_the_server_goes_on(metric):
    backend = load(metric, max_input_pixels=100_000)
    beginning = encode_png(np.zeros((4, 4000, 3), np.uint8))[:60]
    with serving(backend) as url, TeacherClient(ClientSettings(url=url)) as client:
        status, text = refusal(url, beginning)
        assert (status, "max_input_pixels" in text) == ("FAILED_PRECONDITION", True), text
        client.infer(sent(picture()))


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (
            lambda f: (f / "config.json").unlink(),
            r"no checkpoint of a depth model: .* config\.json",
        ),
        (lambda f: (f / "config.json").write_text("{"), "no checkpoint that transformers knows"),
        (lambda f: edit(f / "config.json", model_type="owl"), "no checkpoint that transformers"),
        (lambda f: (f / "model.safetensors").unlink(), "pickled weights are not read"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), "cannot be loaded"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "preprocessor_config"),
        (lambda f: edit(f / "config.json", fusion_hidden_size=16), "cannot be loaded"),
    ],
    ids=["no config", "no json", "unknown", "no weights", "no tensors", "no images", "sizes"],
)
def test_a_checkpoint_that_is_not_whole_is_refused(copy, break_it, words):
    break_it(copy)
    with pytest.raises(BackendError, match=words):
        load(copy)


def test_weights_that_are_missing_are_never_random(copy):
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
    assert 0 < len(kept) < len(weights)
    save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackendError, match=r"lacks .* weights, head.*would be random"):
        load(copy)


def test_pickled_weights_are_not_read(copy):
    from safetensors.torch import load_file

    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(BackendError, match="pickled weights are not read"):
        load(copy)


def test_what_is_neither_folder_nor_hub_id_or_no_device_is_refused(metric, tmp_path):
    with pytest.raises(InvalidSettingError, match="no folder here, and no hub id"):
        load(tmp_path / "nowhere")
    for device in ("tpu", "cuda:99"):
        with pytest.raises(InvalidSettingError, match="device"):
            load(metric, device=device)


@pytest.fixture
def offline_hub(tmp_path, monkeypatch):
    """A cache of the hub's, on a machine without a network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_hub_model_that_is_not_cached_is_refused_offline_with_what_would_do(offline_hub):
    with pytest.raises(BackendError, match=r"no folder 'nobody/nothing' is here.*give the folder"):
        load("nobody/nothing")


def test_a_hub_model_that_is_cached_needs_no_network(metric, offline_hub):
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = offline_hub / "models--nobody--tiny"
    shutil.copytree(metric, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    identity = load("nobody/tiny").identity
    assert identity.name == "nobody/tiny"
    assert identity.version == load(metric).identity.version


@pytest.fixture
def checkpoint(tmp_path):
    return write_depth_anything(tmp_path / "tiny")


def test_what_is_no_depth_model_is_told_so_before_any_other_advice(checkpoint, tmp_path):
    (checkpoint / "config.json").write_text('{"model_type": "bert"}')
    (checkpoint / "preprocessor_config.json").unlink()
    with pytest.raises(BackendError, match=r"is not a depth model: .* of a bert network"):
        load(checkpoint)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(BackendError, match="empty is no checkpoint of a depth model"):
        load(empty)


def test_a_file_of_a_checkpoint_is_not_taken_for_a_hub_id(checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint.parent)
    with pytest.raises(
        InvalidSettingError, match=rf"is a file; give the folder .* {checkpoint.name}$"
    ):
        load(f"{checkpoint.name}/model.safetensors")


LIBRARY = "transformers.models.depth_pro.image_processing_depth_pro"

BILINEAR = 2  # PIL's number


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
