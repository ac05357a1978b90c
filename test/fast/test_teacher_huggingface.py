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
from helpers.teachers import INTRINSICS, StubBackend, client_of, picture
from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.images import encode_png
from tiekd_ros.teacher.backend import check_request, label_all
from tiekd_ros.teacher.backends.huggingface import HuggingFaceSettings
from tiekd_ros.teacher.errors import (
    BackendError,
    BackendRefusal,
    RelativeTeacherError,
    TeacherRefusedError,
)
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


def no_images(folder):
    (folder / "preprocessor_config.json").unlink()


def become_bert(folder):
    """No depth model, which is said before any other advice."""
    (folder / "config.json").write_text('{"model_type": "bert"}')
    no_images(folder)


def edit_weights(folder, change):
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    weights = {name: change(name, tensor) for name, tensor in load_file(file).items()}
    kept = {name: tensor for name, tensor in weights.items() if tensor is not None}
    save_file(kept, file, metadata={"format": "pt"})


def pickle_weights(folder):
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def edit(path, **changes):
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def test_a_metric_checkpoint_s_depth_comes_over_the_wire(metric):
    backend = load(metric)
    image = picture()
    with client_of(backend) as client:
        answer = client.infer(sent(image))
        assert client.identity() == backend.identity
    assert (backend.identity.name, backend.identity.metric) == ("tiny-metric", True)
    alone = backend.infer(image, request()).depth
    np.testing.assert_allclose(answer.depth, alone, rtol=FP16_RELATIVE_ERROR)
    assert 0 < alone.min() < alone.max() <= 10
    images = [picture(seed) for seed in range(4)]
    for image, answer in zip(images, label_all(backend, images, [request()] * 4), strict=True):
        np.testing.assert_allclose(answer.depth, backend.infer(image, request()).depth, **CLOSE)


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
    huge = "neck.convs.0.weight"
    edit_weights(copy, lambda name, tensor: tensor * 1e6 if name == huge else tensor)
    with pytest.raises(BackendError, match=r"float16: .*overflows; say dtype=float32"):
        load(copy, dtype="float16")
    assert np.isfinite(load(copy, dtype="float32").infer(picture(), request()).depth).any()


@pytest.mark.parametrize(
    ("write", "farthest"),
    [(write_glpn, 10.01), (write_zoe, 8.5), (write_depth_anything, 10.01)],
    ids=["glpn", "zoe", "depth_anything"],
)
def test_metric_networks_answer_metres_of_the_image_s_view(tmp_path, write, farthest):
    backend = load(write(tmp_path / "net"))
    assert backend.identity.metric
    for width, height in ((128, 96), (96, 150)):
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
        assert (backend.identity.metric, backend.meaning) == (False, "inverse_depth")
        with client_of(backend) as client, pytest.raises(RelativeTeacherError):
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
    smaller = load(copy, input_side=28)
    assert smaller.identity.version != first
    image = picture(0, 320, 240)
    sizes = [each.infer(image, request()).depth.size for each in (smaller, load(metric))]
    assert sizes[0] < sizes[1]
    edit(copy / "config.json", max_depth=20)
    assert version() != first
    edit(copy / "config.json", max_depth=10)
    write_depth_anything(copy, seed=1)
    assert version() != first


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (
            lambda f: (f / "config.json").unlink(),
            r"no checkpoint of a depth model: .* config\.json",
        ),
        (lambda f: (f / "config.json").write_text("{"), "no checkpoint that transformers knows"),
        (lambda f: edit(f / "config.json", model_type="owl"), "no checkpoint that transformers"),
        (become_bert, r"is not a depth model: .* of a bert network"),
        (pickle_weights, "pickled weights are not read"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), "cannot be loaded"),
        (no_images, "preprocessor_config"),
        (lambda f: edit(f / "config.json", fusion_hidden_size=16), "cannot be loaded"),
        (
            lambda f: edit_weights(f, lambda name, t: None if name.startswith("head.") else t),
            r"lacks .* weights, head.*would be random",
        ),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused(copy, break_it, words):
    break_it(copy)
    with pytest.raises(BackendError, match=words):
        load(copy)


def test_what_is_neither_folder_nor_hub_id_or_no_device_is_refused(metric, tmp_path, monkeypatch):
    monkeypatch.chdir(metric.parent)
    for model, words in (
        (tmp_path / "nowhere", "no folder here, and no hub id"),
        (f"{metric.name}/model.safetensors", rf"is a file; give the folder .* {metric.name}$"),
    ):
        with pytest.raises(InvalidSettingError, match=words):
            load(model)
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


def test_a_hub_model_that_is_cached_needs_no_network_and_another_is_refused(metric, offline_hub):
    with pytest.raises(BackendError, match=r"no folder 'nobody/nothing' is here.*give the folder"):
        load("nobody/nothing")
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = offline_hub / "models--nobody--tiny"
    shutil.copytree(metric, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    identity = load("nobody/tiny").identity
    assert identity.name == "nobody/tiny"
    assert identity.version == load(metric).identity.version


# Depth Pro, whose metres need a focal length.

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


@pytest.fixture(scope="module")
def pro(tmp_path_factory):
    return load(write_depth_pro(tmp_path_factory.mktemp("pro") / "pro"))


@pytest.mark.parametrize(("width", "height"), [(128, 96), (96, 126)])
def test_its_metres_are_the_library_s_with_its_guess_and_with_the_camera_s_focal_length(
    pro, width, height
):
    image = picture(0, width, height)
    guessed = pro.infer(image, request(None)).depth
    loaded = pro._checkpoint
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
    measured = pro.infer(image, request(camera)).depth
    expected = theirs * (0.7 * guessed.shape[1] / focal)
    known = np.isfinite(measured)
    np.testing.assert_allclose(measured[known], expected[known], rtol=1e-4)


def test_each_image_of_a_batch_keeps_its_own_focal_length_and_else_it_is_guessed(pro):
    assert pro.identity.metric
    image = picture()
    requests = [request(Intrinsics(f, f, 31.5, 23.5)) for f in (40.0, 80.0)]
    alone = [pro.infer(image, asked).depth for asked in requests]
    short, long = alone
    known = np.isfinite(short) & np.isfinite(long)
    assert known.any()
    np.testing.assert_allclose(long[known], 2 * short[known], rtol=1e-4)
    guessed = pro.infer(image, request(None)).depth
    both = np.isfinite(guessed) & np.isfinite(short)
    ratio = guessed[both] / short[both]
    np.testing.assert_allclose(ratio, np.median(ratio), rtol=1e-3)  # one focal length for all
    for answer, expected in zip(pro.infer_batch([image] * 2, requests), alone, strict=True):
        np.testing.assert_allclose(answer.depth, expected, rtol=1e-3)


def test_unsuitable_images_are_refused_before_they_are_decoded(metric, pro, tmp_path):
    def header(width, height):  # all else is missing, which decoding would find
        return encode_png(np.zeros((height, width, 3), np.uint8))[:60]

    small = load(metric, max_input_pixels=100_000)
    unguessing = load(write_depth_pro(tmp_path / "pro", field_of_view=False))
    for backend, data, intrinsics, words in (
        (small, header(4000, 4), INTRINSICS, "max_input_pixels"),
        (unguessing, header(64, 48), None, r"focal length.*intrinsics"),
    ):
        with client_of(backend) as client:
            with pytest.raises(TeacherRefusedError, match=words):
                client.infer(DepthRequest(data, intrinsics, 0, "camera"))
            client.infer(sent(picture()))
    with pytest.raises(BackendRefusal, match="focal length"):
        unguessing.infer(picture(), request(None))
    for backend in (pro, StubBackend()):  # one that guesses it, one that checks nothing
        check_request(backend, request(None), 48, 64)
