"""Backends: batches, short form and options, recorded, synthetic, ensembles, early refusals."""

from __future__ import annotations

import dataclasses
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from helpers.depth_data import write_rgbd
from helpers.onnx_teachers import Brightness, brightness_of, export, grey_picture
from helpers.ray_serve import FRAMES, assert_labels, write_recording
from helpers.strangers import refusal
from helpers.teachers import (
    RELATIVE,
    StubBackend,
    client_of,
    depth_request,
    picture,
    ramp,
    serving,
)
from tiekd_ros.core.errors import InvalidSettingError, TiekdError
from tiekd_ros.core.images import decode_image, encode_jpeg, encode_png
from tiekd_ros.core.settings import setting_info
from tiekd_ros.datasets import DatasetError, RgbdFolder
from tiekd_ros.teacher import backend, protocol
from tiekd_ros.teacher.backend import label_all, takes_batches
from tiekd_ros.teacher.backends import (
    BACKENDS,
    backend_options,
    network,
    read_backend,
    settings_of,
    synthetic,
)
from tiekd_ros.teacher.backends.ensemble import DISAGREEMENT, EnsembleBackend, EnsembleSettings
from tiekd_ros.teacher.backends.huggingface import HuggingFaceSettings
from tiekd_ros.teacher.backends.network import answer_size, finished
from tiekd_ros.teacher.backends.onnx import OnnxSettings
from tiekd_ros.teacher.backends.recorded import RecordedBackend, RecordedSettings
from tiekd_ros.teacher.backends.synthetic import SyntheticSettings
from tiekd_ros.teacher.errors import BackendError, BackendRefusal, TeacherRefusedError
from tiekd_ros.teacher.protocol import DepthRequest, TeacherIdentity
from tiekd_ros.worlds import IndoorWorld, WorldSettings

needs_onnx = pytest.mark.skipif(
    find_spec("onnxruntime") is None or find_spec("onnx") is None, reason="no ONNX here"
)
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "teacher_backends.md"
IMAGES = [picture(seed) for seed in range(4)]

REQUESTS = [DepthRequest(b"", None, stamp, "") for stamp in range(4)]


class Batching(StubBackend):
    """Labels batches, each image by its stamp; breaks where it is told to."""

    def __init__(self, break_with=None, bad_stamp=None):
        super().__init__(self._of)
        self.sizes = []
        self.break_with = break_with
        self.bad_stamp = bad_stamp

    def _of(self, image, request):
        if request.stamp_ns == self.bad_stamp:
            return self.break_with
        return ramp() + request.stamp_ns

    def infer_batch(self, images, requests):
        self.sizes.append(len(images))
        if self.break_with is not None:
            raise self.break_with
        return [self.infer(*pair) for pair in zip(images, requests, strict=True)]


def check(answers, bad=()):
    for stamp, answer in enumerate(answers):
        if stamp not in bad:
            np.testing.assert_array_equal(answer.depth, ramp() + stamp)


def test_images_go_as_one_batch_where_the_backend_takes_them():
    backend = Batching()
    assert takes_batches(backend)
    check(label_all(backend, IMAGES, REQUESTS))
    check(label_all(backend, IMAGES[:1], REQUESTS[:1]))  # one alone is no batch
    assert backend.sizes == [4]
    single = StubBackend(lambda image, request: ramp() + request.stamp_ns)
    assert not takes_batches(single)
    check(label_all(single, IMAGES, REQUESTS))


def test_one_bad_image_does_not_spoil_its_neighbours_labels():
    for error in (RuntimeError("out of memory"), BackendRefusal("not this")):
        backend = Batching(error, bad_stamp=2)
        answers = label_all(backend, IMAGES, REQUESTS)
        check(answers, bad={2})
        assert answers[2] is error

    class Short(Batching):
        def infer_batch(self, images, requests):
            return super().infer_batch(images, requests)[1:]

    check(label_all(Short(), IMAGES, REQUESTS))


def test_the_short_form_names_a_backend_and_its_argument():
    for text, kind, option, value in (
        ("huggingface:org/model@v1", "huggingface", "model", "org/model@v1"),
        ("onnx:/models/a.onnx", "onnx", "model", "/models/a.onnx"),
        ("recorded:room", "recorded", "frames", "room"),
        ("synthetic:7", "synthetic", "seed", 7),
        ("synthetic", "synthetic", "seed", 0),
        ("ensemble:onnx:a,onnx:b", "ensemble", "members", "onnx:a,onnx:b"),
    ):
        settings = read_backend(text)
        assert type(settings) is settings_of(kind)
        assert getattr(settings, option) == value

    assert read_backend("huggingface:A", {"model": "A"}).model == "A"
    assert read_backend("synthetic", {"seed": 4}).seed == 4
    assert read_backend("huggingface:A", {"dtype": "bfloat16"}).dtype == "bfloat16"


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("oracle:x", {}, "'oracle': there are huggingface, onnx"),
        ("", {}, "unknown teacher backend ''"),
        ("huggingface:", {}, r"needs a checkpoint: .*--model"),
        ("onnx", {}, r"needs an exported network: .*--model"),
        ("recorded", {}, r"needs a folder of frames: .*--frames"),
        ("synthetic:x", {}, "seed must be int, got 'x'"),
        ("synthetic:-1", {}, "seed must be between 0"),
        ("huggingface:A", {"model": "B"}, r"huggingface:A and model=B \(--model\) say different"),
        ("synthetic:0", {"seed": 4}, "synthetic:0 and seed=4"),
        ("synthetic:3", {"seed": 0}, "synthetic:3 and seed=0"),
        ("onnx:x", {"dtype": "float16"}, r"dtype \(--dtype\) says nothing to the backend onnx"),
        ("recorded:r", {"period_s": 1.0}, r"period_s \(--period\) says nothing"),
        ("ensemble:onnx:a,onnx:b", {"model": "X"}, "model .* says nothing to the backend ensemble"),
        ("ensemble:onnx:a,onnx:b", {"dtype": "float16"}, "dtype .* says nothing"),
        ("ensemble:synthetic:1,onnx:b", {"seed": 2}, "seed .* says nothing"),
        ("huggingface:A", {"dtype": "half"}, "dtype must be one of"),
    ],
)
def test_a_backend_that_cannot_be_or_options_that_say_nothing_to_it_are_refused(
    text, options, words
):
    with pytest.raises(InvalidSettingError, match=words):
        read_backend(text, options)


def test_an_option_of_several_kinds_has_one_type_and_default_and_names_its_kinds():
    for name, option in backend_options().items():
        kinds = [kind for kind in BACKENDS if name in fields_of(kind)]
        assert {repr(fields_of(kind)[name].default) for kind in kinds} == {repr(option.default)}
        assert all(kind in setting_info(option).description for kind in kinds)


def fields_of(kind):
    return {field.name: field for field in dataclasses.fields(settings_of(kind))}


def test_the_backend_of_the_documentation_is_served_by_its_file_and_a_row(monkeypatch):
    text = DOCUMENT.read_text().split("## Another backend")[1]
    code = re.search(r"```python\n(.+?)```", text, re.DOTALL)[1]
    module = ModuleType("tiekd_ros.teacher.backends.flat")
    for one in (backend, synthetic, network, protocol):
        own = {name: value for name, value in vars(one).items() if not name.startswith("__")}
        vars(module).update(own)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec("from __future__ import annotations\n" + code, vars(module))
    monkeypatch.setitem(BACKENDS, "flat", "FlatSettings")
    backend_options.cache_clear()
    try:
        options = backend_options()
        assert setting_info(options["distance_m"]).description == "flat: distance of everything"
        assert read_backend("flat", {"distance_m": 4.0}) == read_backend("flat:4")
        ensemble = read_backend("ensemble:flat:2,flat:4").build()
    finally:
        backend_options.cache_clear()
    assert float(ensemble.infer(IMAGES[0], REQUESTS[0]).depth[0, 0]) == 3.0


@pytest.mark.parametrize(
    ("image", "output", "size"),
    [
        ((480, 640), (240, 320), (240, 320)),  # smaller, same aspect: as it is
        ((480, 640), (518, 686), (480, 640)),  # larger: nothing gained
        ((1080, 1920), (518, 924), (518, 924)),  # the same aspect but for rounding
        ((480, 640), (384, 384), (333, 443)),  # stretched: back to the image's aspect
        ((1, 1), (64, 64), (1, 1)),
    ],
)
def test_an_answer_has_the_image_s_aspect_and_no_empty_pixels(image, output, size):
    assert answer_size(image, output) == size


def test_numbers_that_are_no_depth_become_unknown():
    values = np.array([[np.nan, np.inf, -1.0, 0.0, 2.0, 5000.0]], np.float32)
    nan = np.nan
    np.testing.assert_array_equal(finished(values, "metric"), [[nan, nan, nan, nan, 2.0, nan]])
    np.testing.assert_array_equal(
        finished(values, "inverse_depth"), [[nan, nan, nan, 0.0, 2.0, 5000.0]]
    )


# Recorded depth.

HOLOLENS = Path(__file__).resolve().parents[3] / "shared" / "data" / "hololens"

needs_hololens = pytest.mark.skipif(
    not HOLOLENS.is_dir(), reason=f"real frames are not here: {HOLOLENS}"
)


def recorded(folder: Path, *images: np.ndarray) -> RecordedBackend:
    depths = [np.full(image.shape[:2], 2.0, np.float32) for image in images]
    return RecordedBackend(write_rgbd(folder, images, depths))


def smooth(size, image):
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def test_a_recorded_frame_s_depth_comes_over_the_wire_and_an_unknown_image_is_refused(tmp_path):
    folder = write_recording(tmp_path / "room")
    backend = RecordedSettings(frames=str(folder)).build()
    assert (backend.identity.version, backend.identity.metric) == (f"room-{FRAMES}", True)
    with client_of(backend) as client:
        assert_labels(client)
        assert client.identity() == backend.identity
        with pytest.raises(TeacherRefusedError, match=f"the most similar of {FRAMES}"):
            client.infer(depth_request(picture(99)))
    with pytest.raises(BackendRefusal, match="aspect"):
        backend.find(smooth((48, 48), picture(0)))
    with pytest.raises(DatasetError, match="does not exist"):
        RecordedSettings(frames=str(tmp_path / "nowhere")).build()


def test_a_frame_is_known_again_after_compression_resizing_and_noise(tmp_path):
    pictures = [picture(seed, 320, 240) for seed in range(4)]
    backend = recorded(tmp_path / "room", *pictures)
    for size in ((320, 240), (160, 120), (640, 480)):
        for quality in (60, 92):
            for seed in range(4):
                image = decode_image(encode_jpeg(smooth(size, pictures[seed]), quality))
                assert backend.find(image) == seed
    noise = np.random.default_rng(1).normal(0, 6, pictures[1].shape)
    assert backend.find(np.clip(pictures[1] + noise, 0, 255).astype(np.uint8)) == 1


def test_a_picture_between_two_recorded_ones_is_refused_and_two_alike_are_no_contradiction(
    tmp_path,
):
    first, last = picture(0), picture(1)
    slow = [cv2.addWeighted(last, share, first, 1 - share, 0) for share in (0.0, 0.02, 0.04)]
    with pytest.raises(BackendRefusal, match="between"):
        recorded(tmp_path / "slow", slow[0], slow[2]).find(slow[1])
    assert recorded(tmp_path / "still", first, first, last).find(first) in (0, 1)
    assert recorded(tmp_path / "one", first).find(first) == 0


@needs_hololens
def test_hololens_frames_find_themselves_and_none_is_taken_for_its_neighbour():
    backend, frames = RecordedBackend(HOLOLENS), RgbdFolder(HOLOLENS)
    known = backend._thumbnails
    for index in range(len(frames)):
        image = frames.image(index)
        half = smooth((image.shape[1] // 2, image.shape[0] // 2), image)
        for each in (image, half):
            assert backend.find(decode_image(encode_jpeg(each, 80))) == index
        backend._thumbnails = known.copy()
        backend._thumbnails[index] = -1000.0
        with pytest.raises(BackendRefusal, match="unknown image"):
            backend.find(image)
        backend._thumbnails = known
    with client_of(backend, depth_type="FP32") as client:
        data = encode_jpeg(frames.image(20), 85)
        answer = client.infer(DepthRequest(data, frames.intrinsics, 0, "camera"))
    np.testing.assert_array_equal(answer.depth, frames.depth(20))


# The synthetic world.

SEED = 3
WIDTH, HEIGHT = 160, 120
STAMP_NS = 1_790_000_012_345_678_901  # today's epoch: nanoseconds must survive the way
INTRINSICS = IndoorWorld.default_intrinsics(WIDTH, HEIGHT)


def test_depth_is_the_world_s_own_and_another_picture_is_refused():
    world, other = (IndoorWorld(WorldSettings(seed=seed)) for seed in (SEED, SEED + 1))

    def asked(image, intrinsics=None, quality=92):
        data = encode_jpeg(image, quality)
        return client.infer(DepthRequest(data, intrinsics, STAMP_NS, "camera")).depth

    with client_of(SyntheticSettings(seed=SEED).build(), depth_type="FP32") as client:
        view = world.render(STAMP_NS, WIDTH, HEIGHT, INTRINSICS)
        np.testing.assert_allclose(asked(view.image, INTRINSICS, 80), view.depth, rtol=1e-4)
        default = world.render(STAMP_NS, WIDTH, HEIGHT)
        np.testing.assert_array_equal(asked(default.image), default.depth)
        later = world.render(STAMP_NS + 5_000_000_000, WIDTH, HEIGHT, INTRINSICS)
        for image, intrinsics, words in (
            (later.image, INTRINSICS, r"unknown image.*own stamp"),
            (other.render(STAMP_NS, WIDTH, HEIGHT).image, None, "same seed"),
            (np.zeros((1, 5000, 3), np.uint8), None, "no such view"),
        ):
            with pytest.raises(TeacherRefusedError, match=words):
                asked(image, intrinsics)
        identity = client.identity()
    assert (identity.name, identity.version, identity.metric) == ("synthetic", "seed-3", True)


# Ensembles.

REQUEST = DepthRequest(b"", None, 0, "")


def flat(depth):
    return StubBackend(np.full((48, 64), depth, np.float32))


def asked(*members):
    return EnsembleBackend(members).infer(picture(), REQUEST)


def test_the_median_is_answered_and_confidence_falls_with_the_deviation():
    np.testing.assert_allclose(asked(flat(2.0), flat(2.2), flat(9.0)).depth, 2.2)
    np.testing.assert_allclose(asked(flat(3.0), flat(3.0)).confidence, 1.0)
    answer = asked(flat(3.0 * 0.9), flat(3.0), flat(3.0 * 1.1))
    np.testing.assert_allclose(answer.confidence, np.exp(-0.2 / 3 / DISAGREEMENT), rtol=1e-5)
    small = StubBackend(np.full((24, 32), 4.0, np.float32))  # the first one's resolution counts
    assert asked(flat(2.0), small).depth.shape == (48, 64)
    assert asked(small, flat(2.0)).depth.shape == (24, 32)


def test_what_few_members_know_is_unknown_and_what_some_know_is_less_certain():
    depth = np.full((48, 64), 2.0, np.float32)
    half, none = depth.copy(), depth.copy()
    half[:, :10] = np.nan
    none[:, :5] = np.nan
    answer = asked(StubBackend(depth), StubBackend(half), StubBackend(none))
    assert np.isnan(answer.depth[:, :5]).all()
    np.testing.assert_allclose(answer.depth[:, 5:], 2.0)
    np.testing.assert_allclose(answer.confidence[:, :5], 0.0)
    np.testing.assert_allclose(answer.confidence[:, 5:10], 2 / 3, rtol=1e-5)
    np.testing.assert_allclose(answer.confidence[:, 10:], 1.0)


def test_members_must_be_metric_and_what_one_refuses_is_refused():
    with pytest.raises(BackendError, match=r"stub is not metric.*--align"):
        EnsembleBackend([flat(2.0), StubBackend(identity=RELATIVE)])
    with pytest.raises(BackendRefusal, match="never seen"):
        asked(flat(2.0), StubBackend(BackendRefusal("never seen")))
    other = StubBackend(identity=TeacherIdentity("stub", "8", metric=True))
    one, another, same = (
        EnsembleBackend([flat(1.0), member]).identity for member in (flat(2.0), other, flat(3.0))
    )
    assert (one.name, one.metric) == ("ensemble(stub+stub)", True)
    assert one.version != another.version
    assert one == same


def test_members_get_the_options_of_their_kind_and_their_own_argument():
    text = "ensemble:huggingface:a/b, onnx:c.onnx, synthetic:7,recorded:/r"
    ensemble = read_backend(text, {"dtype": "float32", "align": "room", "period_s": 9.0})
    assert ensemble.member_settings() == [
        HuggingFaceSettings(model="a/b", dtype="float32", align="room"),
        OnnxSettings(model="c.onnx", align="room"),
        SyntheticSettings(seed=7, period_s=9.0),
        RecordedSettings(frames="/r"),
    ]


def test_members_that_cannot_be_are_refused_before_any_is_loaded(tmp_path, monkeypatch):
    def loaded(settings):
        raise AssertionError("the first member was loaded")

    monkeypatch.setattr(SyntheticSettings, "build", loaded)
    for members, words in (
        ("", "at least two"),
        ("synthetic:0", "at least two"),
        ("synthetic:0,oracle:1", "'oracle'"),
        ("synthetic:0,onnx", "needs an exported network"),
        ("synthetic:0,ensemble:synthetic:0", "cannot be a member"),
        (f"synthetic:1,onnx:{tmp_path}/gone.onnx", "gone"),
        ("synthetic:1,recorded:/gone", "gone"),
        (f"synthetic:1,huggingface:{__file__}", __file__),
    ):
        with pytest.raises(TiekdError, match=words):
            EnsembleSettings(members=members).build()


@needs_onnx
def test_exported_networks_answer_together_over_the_wire(tmp_path):
    card = {"input": {"multiple_of": 16}, "output": {"meaning": "metric"}}
    files = [
        export(tmp_path / f"{name}.onnx", Brightness(1.0, slope), card, open_dimensions=(0, 2, 3))
        for name, slope in (("a", 2.0), ("b", 4.0))
    ]
    members = ",".join(f"onnx:{file}" for file in files)
    backend = EnsembleSettings(members=members).build()
    image = grey_picture()
    with client_of(backend) as client:
        answer = client.infer(DepthRequest(encode_png(image), None, 0, ""))
        assert client.identity().name == "ensemble(a+b)"
    truth = 1 + 3 * brightness_of(image)
    np.testing.assert_allclose(answer.depth, truth, rtol=1e-3)
    deviation = brightness_of(image) / truth
    np.testing.assert_allclose(answer.confidence, np.exp(-deviation / DISAGREEMENT), atol=1e-3)


def test_a_batch_has_the_same_answers_as_its_images_alone():
    member = StubBackend(lambda image, _: ramp() * (1 + image.mean() / 255))
    ensemble = EnsembleBackend([flat(2.0), member])
    images = [picture(seed) for seed in range(3)]
    answers = ensemble.infer_batch(images, [REQUEST] * 3)
    for image, answer in zip(images, answers, strict=True):
        alone = ensemble.infer(image, REQUEST)
        np.testing.assert_array_equal(answer.depth, alone.depth)
        np.testing.assert_array_equal(answer.confidence, alone.confidence)


# Refused by the image's header alone.


def beginning(width: int, height: int) -> bytes:
    return encode_png(np.zeros((height, width, 3), np.uint8))[:60]


def refused_undecoded(backend, unfit: bytes, words: str) -> None:
    with serving(backend) as url:
        status, text = refusal(url, unfit)
    assert (status, words in text) == ("FAILED_PRECONDITION", True), text


@needs_onnx
def test_images_that_do_not_suit_an_exported_network_are_refused_undecoded(tmp_path):
    def onnx(**output):
        card = {"input": {"multiple_of": 16}, "output": {"meaning": "metric", **output}}
        path = export(tmp_path / "net.onnx", Brightness(), card, open_dimensions=(0, 2, 3))
        return OnnxSettings(model=str(path), max_input_pixels=640 * 480).build()

    backend = onnx()
    for size in ((800, 480), (64, 12)):
        refused_undecoded(backend, beginning(*size), "send one of another size")
    both = EnsembleBackend([StubBackend(), backend])
    refused_undecoded(both, beginning(800, 480), "another size")
    with serving(backend) as url:
        assert refusal(url, beginning(64, 48))[0] == "INVALID_ARGUMENT"
    refused_undecoded(onnx(canonical_focal_px=100.0), beginning(64, 48), "focal length")


def test_pictures_of_another_shape_than_the_recorded_ones_are_refused_undecoded(tmp_path):
    backend = recorded(tmp_path / "room", grey_picture())
    refused_undecoded(backend, beginning(64, 64), "another aspect ratio")
    with serving(backend) as url:
        assert refusal(url, beginning(64, 48))[0] == "INVALID_ARGUMENT"
