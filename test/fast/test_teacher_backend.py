"""What all backends share: batches that break, the short form, the size of an answer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from helpers.teachers import StubBackend, picture, ramp
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.settings import setting_info
from tiekd_ros.teacher.backend import BackendRefusal, label_all, takes_batches
from tiekd_ros.teacher.backends import BACKENDS, backend_options, read_backend, settings_of
from tiekd_ros.teacher.backends.network import answer_size, finished
from tiekd_ros.teacher.protocol import DepthAnswer, DepthRequest

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
    assert backend.sizes == [4]


def test_without_batches_each_image_is_labelled_by_itself():
    backend = StubBackend(lambda image, request: ramp() + request.stamp_ns)
    assert not takes_batches(backend)
    check(label_all(backend, IMAGES, REQUESTS))


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), BackendRefusal("not this")])
def test_one_bad_image_does_not_spoil_its_neighbours_labels(error):
    backend = Batching(error, bad_stamp=2)
    answers = label_all(backend, IMAGES, REQUESTS)
    check(answers, bad={2})
    assert answers[2] is error


def test_a_batch_of_the_wrong_length_is_not_believed():
    class Short(Batching):
        def infer_batch(self, images, requests):
            return super().infer_batch(images, requests)[1:]

    check(label_all(Short(), IMAGES, REQUESTS))


def test_a_single_image_is_no_batch():
    backend = Batching()
    (answer,) = label_all(backend, IMAGES[:1], REQUESTS[:1])
    assert isinstance(answer, DepthAnswer)
    assert backend.sizes == []


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


def test_what_is_said_twice_alike_or_in_parts_is_taken():
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
