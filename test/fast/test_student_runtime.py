"""The runtime: any image in, depth inside the bins out, and no student that cannot do that."""

import copy
import math

import numpy as np
import pytest
import torch

from helpers.students import BINS, SIZE, small_student
from tiekd_ros.core.errors import BadImageError
from tiekd_ros.student.bins import DepthBins, mark_out_of_range
from tiekd_ros.student.checkpoint import CheckpointError, Student, StudentCard
from tiekd_ros.student.preprocessing import normalise
from tiekd_ros.student.runtimes.base import Runtime, fuse_batch_norms
from tiekd_ros.student.runtimes.onnx_runtime import OnnxRuntime
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (72, 96, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def student() -> Student:
    """A student whose batch norms have statistics of their own, as a trained one's have."""
    student = small_student()
    student.network.train()
    with torch.no_grad():
        for seed in range(3):
            torch.manual_seed(seed)
            student.network(torch.randn(2, 3, SIZE.height, SIZE.width))
        student.network.head.weight.mul_(100)  # an answer that depends on the image
    student.network.eval()
    return student


@pytest.fixture(scope="module", params=[TorchRuntime, OnnxRuntime])
def runtime(request, student) -> Runtime:
    if request.param is OnnxRuntime:
        pytest.importorskip("onnxruntime")
    return request.param(student)


def test_the_same_image_gives_the_same_depth(student, runtime):
    once, again = runtime.predict(IMAGE), type(runtime)(student).predict(IMAGE)
    np.testing.assert_array_equal(once.depth, again.depth)
    np.testing.assert_array_equal(once.confidence, again.confidence)


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


def test_making_a_runtime_leaves_the_student_as_it_was(student):
    before = copy.deepcopy(student.network.state_dict())
    TorchRuntime(student)
    after = student.network.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "image",
    [
        IMAGE,
        np.full((48, 64, 3), 128, np.uint8),
        np.zeros((480, 640, 3), np.uint8),
        np.full((10, 2000, 3), 255, np.uint8),
        RNG.integers(0, 256, (1, 1, 3), dtype=np.uint8),
        RNG.integers(0, 256, (1500, 2000, 3), dtype=np.uint8),
        np.asfortranarray(IMAGE)[::-1, ::-1],
    ],
    ids=["noise", "grey", "black", "flat", "pixel", "large", "strided"],
)
def test_any_image_gives_depth_of_its_size_inside_the_bins(runtime, image):
    depth, confidence, _ = runtime.predict(image)
    assert depth.shape == confidence.shape == image.shape[:2]
    assert depth.dtype == confidence.dtype == np.float32
    assert depth.min() >= BINS.min_depth_m
    assert depth.max() <= BINS.max_depth_m
    assert confidence.min() >= 0
    assert confidence.max() <= 1


def test_confidence_is_made_only_where_it_is_asked_for(runtime):
    both, alone = runtime.predict(IMAGE), runtime.predict(IMAGE, confidence=False)
    assert alone.confidence is None
    np.testing.assert_array_equal(alone.depth, both.depth)


def test_what_a_prediction_returns_is_the_callers(runtime):
    size = (SIZE.height // 4, SIZE.width // 4)  # nothing is resized
    for asked in (None, size):
        first = runtime.predict(IMAGE, asked)
        kept = first.depth.copy()
        first.depth[...] = np.nan
        first.confidence[...] = np.nan
        np.testing.assert_array_equal(runtime.predict(IMAGE, asked).depth, kept)


def test_a_prediction_says_where_its_time_went(runtime):
    times = runtime.predict(IMAGE).times
    assert all(ms > 0 for ms in times)
    assert times._fields == ("preprocess", "network", "postprocess")


def test_depth_comes_in_the_size_that_was_asked_for(runtime):
    assert runtime.predict(IMAGE, (16, 24)).depth.shape == (16, 24)
    assert runtime.predict(IMAGE, (100, 50)).depth.shape == (100, 50)


@pytest.mark.parametrize(
    "image", [IMAGE.astype(np.float32), IMAGE[..., 0], IMAGE[:0], np.zeros((4, 4, 4), np.uint8)]
)
def test_what_is_no_rgb_image_is_refused(runtime, image):
    with pytest.raises(BadImageError, match="RGB"):
        runtime.predict(image)


def test_a_student_whose_finite_weights_give_no_number_is_refused(student):
    bad = copy.deepcopy(student)
    with torch.no_grad():
        bad.network.head.weight.fill_(3e38)  # logits overflow; inf - inf is no number
    with pytest.raises(CheckpointError, match="answers a probe image"):
        TorchRuntime(bad)


def test_confidence_is_one_where_the_map_is_as_sharp_as_it_was_taught():
    bins = DepthBins()
    student = Student.fresh(StudentCard(bins, SIZE))
    target = student.card.target
    depth_m = 2.0
    sigma = max(target.floor_m, target.relative * depth_m)
    for factor in (1.0, 4.0):
        with torch.no_grad():
            student.network.head.weight.zero_()
            spread = factor * sigma
            student.network.head.bias.copy_(-((bins.centres() - depth_m) ** 2) / (2 * spread**2))
        depth, confidence, _ = TorchRuntime(student).predict(IMAGE)
        assert depth.mean() == pytest.approx(depth_m, abs=1e-3)
        assert confidence.mean() == pytest.approx(1 / factor, rel=0.02)


def test_coarse_bins_do_not_count_against_confidence():
    bins = DepthBins(max_depth_m=80.0)  # half a bin, 0.16 m, is more than the target's floor
    student = Student.fresh(StudentCard(bins, SIZE))
    with torch.no_grad():
        student.network.head.weight.zero_()
        student.network.head.bias.copy_(
            -((bins.centres() - 1.0) ** 2) / (2 * (0.5 * 79.9 / 257) ** 2)
        )
    assert TorchRuntime(student).predict(IMAGE).confidence.mean() > 0.9


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
