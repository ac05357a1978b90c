"""What all backends share: batches that break, the short form, the size of an answer."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.teachers import StubBackend, picture, ramp
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.teacher.backend import BackendRefusal, label_all, takes_batches
from tiekd_ros.teacher.backends import BACKENDS, create_backend, parse_backend
from tiekd_ros.teacher.backends.base import answer_size, finished
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


@pytest.mark.parametrize(
    ("text", "name", "option", "value"),
    [
        ("huggingface:org/model@v1", "huggingface", "model", "org/model@v1"),
        ("onnx:/models/a.onnx", "onnx", "model", "/models/a.onnx"),
        ("recorded:room", "recorded", "frames", "room"),
        ("synthetic:7", "synthetic", "seed", 7),
        ("synthetic", "synthetic", "seed", 0),
        ("ensemble:onnx:a,onnx:b", "ensemble", "members", "onnx:a,onnx:b"),
    ],
)
def test_the_short_form_names_a_backend_and_its_argument(text, name, option, value):
    found, options = parse_backend(text)
    assert found == name
    assert getattr(options, option) == value
    assert found in BACKENDS


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("oracle:x", "'oracle'.*huggingface:MODEL"),
        ("", "unknown teacher backend ''"),
        ("huggingface:", "huggingface:MODEL"),
        ("recorded", "lacks its argument"),
        ("synthetic:x", "whole number"),
        ("synthetic:-1", "not negative"),
    ],
)
def test_a_short_form_that_says_nothing_known_is_refused(text, words):
    with pytest.raises(InvalidSettingError, match=words):
        parse_backend(text)


def test_networks_need_a_model():
    for name in ("huggingface", "onnx"):
        with pytest.raises(InvalidSettingError, match="--model"):
            create_backend(name)


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
