"""The runtime: any image in, depth inside the bins out, and no student that cannot do that."""

import copy
import math

import numpy as np
import pytest
import torch

from helpers.students import BINS, SIZE, overflowing_student, small_student, with_statistics
from tiekd_ros.core.errors import BadImageError
from tiekd_ros.student.bins import DepthBins, mark_out_of_range
from tiekd_ros.student.checkpoint import CheckpointError, Student, StudentCard, TargetWidth
from tiekd_ros.student.networks import DEFAULT_ARCHITECTURE
from tiekd_ros.student.preprocessing import normalise
from tiekd_ros.student.runtimes.base import Runtime, fuse_batch_norms, same_depth
from tiekd_ros.student.runtimes.onnx_runtime import OnnxRuntime
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (72, 96, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def student() -> Student:
    """A student whose batch norms have statistics of their own, as a trained one's have."""
    student = with_statistics(small_student(architecture=DEFAULT_ARCHITECTURE))
    with torch.no_grad():
        student.network.head.weight.mul_(100)  # an answer that depends on the image
    return student


@pytest.fixture(scope="module", params=[TorchRuntime, OnnxRuntime])
def runtime(request, student) -> Runtime:
    if request.param is OnnxRuntime:
        pytest.importorskip("onnxruntime")
    return request.param(student)


def test_the_same_image_gives_the_same_depth_and_the_student_stays_as_it_was(student, runtime):
    before = copy.deepcopy(student.network.state_dict())
    once, again = runtime.predict(IMAGE), type(runtime)(student).predict(IMAGE)
    np.testing.assert_array_equal(once.depth, again.depth)
    np.testing.assert_array_equal(once.confidence, again.confidence)
    after = student.network.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(ms > 0 for ms in once.times)
    assert once.times._fields == ("preprocess", "network", "postprocess")


def test_fused_batch_norms_change_nothing_but_rounding(student):
    images = normalise(torch.from_numpy(RNG.integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)))
    plain = student.network.eval()
    fused = fuse_batch_norms(copy.deepcopy(plain))
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())
    with torch.inference_mode():
        before = plain.moments(plain(images)).mean
        after = fused.moments(fused(images)).mean
    assert before.std() > 1e-3  # an answer that says something
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)


def test_any_image_gives_depth_of_its_size_inside_the_bins(runtime):
    for image in (
        IMAGE,
        np.full((48, 64, 3), 128, np.uint8),
        np.zeros((480, 640, 3), np.uint8),
        np.full((10, 2000, 3), 255, np.uint8),
        RNG.integers(0, 256, (1, 1, 3), dtype=np.uint8),
        RNG.integers(0, 256, (1500, 2000, 3), dtype=np.uint8),
        np.asfortranarray(IMAGE)[::-1, ::-1],
    ):
        depth, confidence, _ = runtime.predict(image)
        assert depth.shape == confidence.shape == image.shape[:2]
        assert depth.dtype == confidence.dtype == np.float32
        assert BINS.min_depth_m <= depth.min() <= depth.max() <= BINS.max_depth_m
        assert 0 <= confidence.min() <= confidence.max() <= 1


def test_confidence_and_size_are_those_that_were_asked_for(runtime):
    both, alone = runtime.predict(IMAGE), runtime.predict(IMAGE, confidence=False)
    assert alone.confidence is None
    np.testing.assert_array_equal(alone.depth, both.depth)
    for size in ((16, 24), (100, 50)):
        assert runtime.predict(IMAGE, size).depth.shape == size
    for image in (
        IMAGE.astype(np.float32), IMAGE[..., 0], IMAGE[:0], np.zeros((4, 4, 4), np.uint8)
    ):  # fmt: skip
        with pytest.raises(BadImageError, match="RGB"):
            runtime.predict(image)


def test_what_a_prediction_returns_is_the_callers(runtime):
    size = (SIZE.height, SIZE.width)  # nothing is resized
    for asked in (None, size):
        first = runtime.predict(IMAGE, asked)
        kept = first.depth.copy()
        first.depth[...] = np.nan
        first.confidence[...] = np.nan
        np.testing.assert_array_equal(runtime.predict(IMAGE, asked).depth, kept)


def test_a_student_whose_finite_weights_give_no_number_is_refused(runtime):
    with pytest.raises(CheckpointError, match="answers a probe image"):
        type(runtime)(overflowing_student())


def answering(bins: DepthBins, depth_m: float, sigma_m: float) -> Student:
    """Return a student that answers with the same Gaussian in every pixel."""
    student = Student.fresh(StudentCard(bins, SIZE))
    with torch.no_grad():
        student.network.head.weight.zero_()
        student.network.head.bias.copy_(-((bins.centres() - depth_m) ** 2) / (2 * sigma_m**2))
    return student


def test_confidence_is_one_where_the_map_is_as_sharp_as_it_was_taught():
    target, depth_m = TargetWidth(), 2.0
    sigma_m = max(target.floor_m, target.relative * depth_m)
    for factor in (1.0, 4.0):
        student = answering(DepthBins(), depth_m, factor * sigma_m)
        depth, confidence, _ = TorchRuntime(student).predict(IMAGE)
        assert depth.mean() == pytest.approx(depth_m, abs=5e-3)  # without the Gaussian's tails
        assert confidence.mean() == pytest.approx(1 / factor, rel=0.02)
    # Coarse bins do not count against it: half of one, 0.16 m, is more than the target's floor.
    coarse = answering(DepthBins(max_depth_m=80.0), 1.0, 0.5 * 79.9 / 257)
    assert TorchRuntime(coarse).predict(IMAGE).confidence.mean() > 0.9


def test_depth_at_the_ends_of_the_range_becomes_infinite():
    width = (BINS.max_depth_m - BINS.min_depth_m) / BINS.count
    inside = [BINS.min_depth_m + 1.1 * width, 5.0, BINS.max_depth_m - 1.1 * width]
    near, far = BINS.min_depth_m + 0.9 * width, BINS.max_depth_m - 0.9 * width
    depth = np.array([[near, *inside, far, math.nan]], np.float32)
    expected = np.array([[-math.inf, *inside, math.inf, math.nan]], np.float32)
    np.testing.assert_array_equal(mark_out_of_range(depth, BINS), expected)
    assert np.isfinite(depth[0, 0])  # the argument stays as it was
    assert mark_out_of_range(depth, BINS, in_place=True) is depth
    np.testing.assert_array_equal(depth, expected)


def test_a_range_can_be_made_narrower_but_not_wider():
    depth = np.array([[0.2, 0.9, 1.1, 4.9, 5.1, 9.95]], np.float32)
    narrow = mark_out_of_range(depth, BINS, 1.0, 5.0)
    np.testing.assert_array_equal(np.isneginf(narrow), [[1, 1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(np.isposinf(narrow), [[0, 0, 0, 0, 1, 1]])
    wide = mark_out_of_range(depth, BINS, 0.01, 100.0)
    np.testing.assert_array_equal(wide, mark_out_of_range(depth, BINS))


def test_two_maps_are_the_same_but_for_few_pixels_and_never_where_one_is_no_number():
    one = np.full((10, 100), 4.0, np.float32)
    few, many, unknown = one + 0.015, one + 0.015, one.copy()
    few[0, :10], many[0, :11], unknown[0, 0] = 9.0, 9.0, math.nan
    assert same_depth(one, few)
    assert not same_depth(one, many)
    assert not same_depth(one, one * 1.01)
    assert not same_depth(one, unknown)
    assert not same_depth(unknown, one)
