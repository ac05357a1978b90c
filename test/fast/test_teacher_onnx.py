"""An exported network answers what its card says its numbers mean."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from helpers.onnx_teachers import (
    Brightness,
    FocalBrightness,
    Weighted,
    brightness_of,
    export,
    grey_picture,
    write_card,
)
from helpers.teachers import INTRINSICS, client_of, picture
from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.images import encode_png
from tiekd_ros.teacher.backends.onnx import OnnxSettings
from tiekd_ros.teacher.errors import BackendError, BackendRefusal
from tiekd_ros.teacher.protocol import DepthRequest

OWN_SIZE = {"shape": (1, 3, 32, 64), "open_dimensions": (0, 2, 3)}
METRIC = {"output": {"meaning": "metric"}}
MULTIPLE = 16


def onnx(path, **options):
    return OnnxSettings(model=str(path), **options).build()


def request(intrinsics=INTRINSICS):
    return DepthRequest(b"", intrinsics, 0, "camera")


def card(output=(), **given):
    return {
        "input": {"multiple_of": MULTIPLE, **given},
        "output": {"meaning": "metric", **dict(output)},
    }


def net(tmp_path, network=None, given=None, **export_options):
    """Export a network and load it; it answers 1 + 9 brightness where none is given."""
    own = {**OWN_SIZE, **export_options}
    return onnx(export(tmp_path / "net.onnx", network or Brightness(), given or card(), **own))


def assert_bright(depth, image, offset=1, slope=9, rtol=1e-5):
    np.testing.assert_allclose(depth, offset + slope * brightness_of(image), rtol=rtol)


def test_depth_comes_over_the_wire_in_metres(tmp_path):
    backend = net(tmp_path)
    image = grey_picture()
    with client_of(backend) as client:
        answer = client.infer(DepthRequest(encode_png(image), INTRINSICS, 0, "camera"))
        assert client.identity() == backend.identity
    assert (backend.identity.name, backend.identity.metric) == ("net", True)
    assert_bright(answer.depth, image, rtol=1e-3)
    images = [grey_picture(seed) for seed in range(3)]
    single = net(tmp_path, open_dimensions=(2, 3))  # a graph for one image at a time
    for each in (backend, single):
        answers = each.infer_batch(images, [request()] * 3)
        for image, answer in zip(images, answers, strict=True):
            assert_bright(answer.depth, image)


def test_mean_std_scale_unit_and_the_order_of_dimensions_and_colours_count(tmp_path):
    given = card({"unit_m": 0.001}, mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25], divide_by=255.0)
    image = grey_picture()
    depth = net(tmp_path, Brightness(5000.0, 1000.0), given).infer(image, request()).depth
    assert_bright(depth, image, 3, 4, rtol=1e-4)  # 5 + (brightness - 0.5) / 0.25
    image = picture()
    for order, weights in (("rgb", (1, 2, 4)), ("bgr", (4, 2, 1))):
        backend = net(
            tmp_path, Weighted(), card(layout="nhwc", channels=order),
            shape=(1, 32, 64, 3), open_dimensions=(0, 1, 2),
        )  # fmt: skip
        depth = backend.infer(image, request()).depth
        np.testing.assert_allclose(depth, 1 + (image / 255) @ np.array(weights), rtol=1e-5)


def test_a_fixed_input_is_filled_and_the_answer_has_the_image_s_aspect(tmp_path):
    path = export(tmp_path / "fixed.onnx", Brightness(), METRIC)  # 64x32
    image = grey_picture(width=96, height=96)
    depth = onnx(path).infer(image, request()).depth
    height, width = depth.shape
    assert height == width
    expected = 1 + 9 * brightness_of(image)
    coarse = expected.reshape(8, 12, 8, 12).mean(axis=(1, 3))
    rows = np.linspace(0, height, 9).astype(int)
    means = np.add.reduceat(np.add.reduceat(depth, rows[:-1], 0), rows[:-1], 1)
    means /= np.outer(np.diff(rows), np.diff(rows))
    np.testing.assert_allclose(means, coarse, rtol=0.15)


def test_padding_keeps_the_aspect_and_is_cut_off_again(tmp_path):
    given = {"input": {"fit": "pad"}, "output": {"meaning": "metric"}}
    path = export(tmp_path / "pad.onnx", Brightness(1.0, 9.0), given)  # 64x32
    image = np.full((48, 48, 3), 255, np.uint8)  # black, at 1 m, would be the padding
    depth = onnx(path).infer(image, request()).depth
    assert depth.shape == (32, 32)
    np.testing.assert_allclose(depth, 10.0, rtol=1e-5)


def test_what_lies_outside_the_range_or_has_no_meaning_is_unknown(tmp_path):
    image = grey_picture()
    depth = net(tmp_path, given=card({"min_depth_m": 3.0, "max_depth_m": 7.0})).infer(
        image, request()
    )
    truth = 1 + 9 * brightness_of(image)
    inside = (truth > 3.01) & (truth < 6.99)
    np.testing.assert_allclose(depth.depth[inside], truth[inside], rtol=1e-5)
    assert np.isnan(depth.depth[(truth < 2.99) | (truth > 7.01)]).all()

    backend = net(tmp_path, Brightness(-1.0, 9.0), card({"meaning": "inverse_depth"}))
    assert backend.identity.name == "net (inverse_depth)"
    assert not backend.identity.metric
    depth = backend.infer(image, request()).depth
    truth = -1 + 9 * brightness_of(image)
    np.testing.assert_allclose(depth[truth > 0.01], truth[truth > 0.01], rtol=1e-4)
    assert np.isnan(depth[truth < -0.01]).all()


def test_depth_of_a_canonical_camera_is_scaled_by_the_focal_length(tmp_path):
    backend = net(tmp_path, given=card({"canonical_focal_px": 120.0}))
    image = grey_picture()
    depth = backend.infer(image, request(Intrinsics(60.0, 60.0, 31.5, 23.5))).depth
    assert_bright(depth, image, 0.5, 4.5)
    with pytest.raises(BackendRefusal, match="focal length"):
        backend.infer(image, request(None))
    given = {"output": {"meaning": "metric", "canonical_focal_px": 60.0}}
    half = onnx(export(tmp_path / "half.onnx", Brightness(3.0, 0.0), given))  # 64x32
    image = grey_picture(width=128, height=64)  # twice that: its focal length halves
    depth = half.infer(image, request(Intrinsics(60.0, 60.0, 63.5, 31.5))).depth
    np.testing.assert_allclose(depth, 1.5, rtol=1e-5)


def test_a_network_that_takes_the_focal_length_gets_each_image_s_own(tmp_path):
    image, focals = grey_picture(), (50.0, 200.0)
    requests = [request(Intrinsics(f, f, 31.5, 23.5)) for f in focals]
    takes_it = {"inputs": ("image", "focal")}
    backend = net(tmp_path, FocalBrightness(), card(focal="focal"), **takes_it)
    answers = backend.infer_batch([image, image], requests)
    for focal, answer in zip(focals, answers, strict=True):
        assert_bright(answer.depth, image, focal / 100, 9 * focal / 100)
    with pytest.raises(BackendError, match="'focal', which cannot be filled"):
        net(tmp_path, FocalBrightness(), **takes_it)


def test_another_network_or_card_is_another_version(tmp_path):
    def version():
        return onnx(path).identity.version

    path = export(tmp_path / "net.onnx", Brightness(), card(), **OWN_SIZE)
    first = version()
    assert version() == first
    write_card(path, card({"max_depth_m": 9.0}))
    assert version() != first
    write_card(path, card())
    assert version() == first
    export(path, Brightness(1.0, 8.0), card(), **OWN_SIZE)
    assert version() != first


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "meaning must be said"),
        ({"output": {"meaning": "metres"}}, "'relative_depth', 'inverse_depth', got 'metres'"),
        ({"colour": 1, **METRIC}, "unknown key 'colour': known are name, input, output"),
        ({"input": {"depth": 1}, **METRIC}, "unknown setting 'depth'"),
        ({"input": [1], **METRIC}, "input must hold `key: value` lines"),
        ({"input": {"mean": [0.5]}, **METRIC}, "mean must be 3 numbers"),
        ({"input": {"std": [1, 0, 1]}, **METRIC}, "std must be positive"),
        ({"input": {"width": 65}, **METRIC}, "takes images of width 64, its card says 65"),
        ({"input": {"name": "picture"}, **METRIC}, "input.name is 'picture'.*'image'"),
        ({"output": {"meaning": "metric", "name": "d"}}, "output.name is 'd'.*'depth'"),
        ({"output": {"meaning": "metric", "min_depth_m": 5.0, "max_depth_m": 4.0}}, "above"),
    ],
)
def test_a_card_that_cannot_be_is_refused_with_its_file_and_the_reason(tmp_path, given, words):
    path = export(tmp_path / "net.onnx", Brightness(), given)
    with pytest.raises(BackendError, match=words) as caught:
        onnx(path)
    assert "net." in str(caught.value)


def test_what_is_not_there_or_no_network_is_refused(tmp_path):
    with pytest.raises(InvalidSettingError, match="--model"):
        OnnxSettings().build()
    with pytest.raises(InvalidSettingError, match="there is no file"):
        onnx(tmp_path / "nowhere.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    with pytest.raises(BackendError, match=r"broken\.yaml is missing.*meaning: metric"):
        onnx(broken)
    write_card(broken, METRIC)
    with pytest.raises(BackendError, match="cannot be loaded"):
        onnx(broken)
    with pytest.raises(InvalidSettingError, match="got 'tpu'"):
        onnx(broken, device="tpu")


def test_an_output_that_is_no_depth_map_or_not_finite_stops_the_start(tmp_path):
    class Colours(Brightness):
        def forward(self, image):
            return image * self.numbers[0]

    for network, words in (
        (Colours(), r"shape \(1, 3, 32, 64\)"),
        (Brightness(float("nan")), r"no finite number.*dtype=float32"),
    ):
        path = export(tmp_path / "net.onnx", network, METRIC)
        with pytest.raises(BackendError, match=words):
            onnx(path)
