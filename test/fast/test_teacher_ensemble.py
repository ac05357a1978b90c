"""Several teachers answer as one: the median, and their agreement as confidence."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.teachers import (
    RELATIVE,
    StubBackend,
    picture,
    ramp,
    serving,
)
from tiekd_ros.core.errors import InvalidSettingError, TiekdError
from tiekd_ros.core.images import encode_png
from tiekd_ros.teacher.backend import BackendRefusal
from tiekd_ros.teacher.backends import read_backend
from tiekd_ros.teacher.backends.ensemble import DISAGREEMENT, EnsembleBackend, EnsembleSettings
from tiekd_ros.teacher.backends.huggingface import HuggingFaceSettings
from tiekd_ros.teacher.backends.onnx import OnnxSettings
from tiekd_ros.teacher.backends.recorded import RecordedSettings
from tiekd_ros.teacher.backends.synthetic import SyntheticSettings
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.errors import BackendError
from tiekd_ros.teacher.protocol import DepthRequest, TeacherIdentity

REQUEST = DepthRequest(b"", None, 0, "")


def flat(depth):
    return StubBackend(np.full((48, 64), depth, np.float32))


def asked(*members):
    return EnsembleBackend(members).infer(picture(), REQUEST)


def test_the_median_is_answered_and_one_that_is_far_off_does_not_count():
    answer = asked(flat(2.0), flat(2.2), flat(9.0))
    np.testing.assert_allclose(answer.depth, 2.2)


def test_confidence_is_one_where_all_agree_and_falls_with_the_deviation():
    np.testing.assert_allclose(asked(flat(3.0), flat(3.0)).confidence, 1.0)
    answer = asked(flat(3.0 * 0.9), flat(3.0), flat(3.0 * 1.1))
    np.testing.assert_allclose(answer.confidence, np.exp(-0.2 / 3 / DISAGREEMENT), rtol=1e-5)


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


def test_members_of_other_resolutions_are_brought_to_the_first_one_s():
    small = StubBackend(np.full((24, 32), 4.0, np.float32))
    assert asked(flat(2.0), small).depth.shape == (48, 64)
    assert asked(small, flat(2.0)).depth.shape == (24, 32)


def test_an_image_that_one_refuses_is_refused():
    with pytest.raises(BackendRefusal, match="never seen"):
        asked(flat(2.0), StubBackend(BackendRefusal("never seen")))


def test_members_must_be_metric():
    with pytest.raises(BackendError, match=r"stub is not metric.*--align"):
        EnsembleBackend([flat(2.0), StubBackend(identity=RELATIVE)])


def test_another_member_is_another_version():
    other = StubBackend(identity=TeacherIdentity("stub", "8", metric=True))
    ensembles = [EnsembleBackend([flat(1.0), member]) for member in (flat(2.0), other)]
    assert ensembles[0].identity.name == "ensemble(stub+stub)"
    assert ensembles[0].identity.metric
    assert ensembles[0].identity.version != ensembles[1].identity.version
    assert ensembles[0].identity == EnsembleBackend([flat(1.0), flat(2.0)]).identity


def test_members_get_the_options_of_their_kind_and_their_own_argument():
    text = "ensemble:huggingface:a/b, onnx:c.onnx, synthetic:7,recorded:/r"
    ensemble = read_backend(text, {"dtype": "float32", "align": "room", "period_s": 9.0})
    assert ensemble.member_settings() == [
        HuggingFaceSettings(model="a/b", dtype="float32", align="room"),
        OnnxSettings(model="c.onnx", align="room"),
        SyntheticSettings(seed=7, period_s=9.0),
        RecordedSettings(frames="/r"),
    ]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ("", "at least two"),
        ("synthetic:0", "at least two"),
        ("synthetic:0,oracle:1", "'oracle'"),
        ("synthetic:0,onnx", "needs an exported network"),
        ("synthetic:0,ensemble:synthetic:0", "cannot be a member"),
    ],
)
def test_members_that_cannot_be_are_refused(members, words):
    with pytest.raises(InvalidSettingError, match=words):
        EnsembleSettings(members=members).build()


def test_exported_networks_answer_together_over_the_wire(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from helpers.onnx_teachers import Brightness, brightness_of, export, grey_picture

    card = {"input": {"multiple_of": 16}, "output": {"meaning": "metric"}}
    files = [
        export(tmp_path / f"{name}.onnx", Brightness(1.0, slope), card, open_dimensions=(0, 2, 3))
        for name, slope in (("a", 2.0), ("b", 4.0))
    ]
    members = ",".join(f"onnx:{file}" for file in files)
    backend = EnsembleSettings(members=members).build()
    image = grey_picture()
    with serving(backend) as url, TeacherClient(ClientSettings(url=url)) as client:
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


def test_a_mistake_in_the_last_member_does_not_wait_for_the_first_to_load(tmp_path, monkeypatch):
    def loaded(settings):
        raise AssertionError("the first member was loaded")

    monkeypatch.setattr(SyntheticSettings, "build", loaded)
    for wrong in (f"onnx:{tmp_path}/gone.onnx", "recorded:/gone", f"huggingface:{__file__}"):
        with pytest.raises(TiekdError, match=f"gone|{__file__}"):
            EnsembleSettings(members=f"synthetic:1,{wrong}").build()
