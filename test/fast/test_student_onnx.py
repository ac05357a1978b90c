"""onnxruntime gives what torch gives, for every kind of student and every kind of weights."""

import copy

import numpy as np
import pytest
import torch

from helpers.students import BINS, SIZE, overflowing_student, small_student, with_statistics
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.base_student import load_base
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import CheckpointError, Student, StudentCard
from tiekd_ros.student.networks import ARCHITECTURES
from tiekd_ros.student.runtimes.base import fuse_batch_norms, shift_logits
from tiekd_ros.student.runtimes.onnx_runtime import OnnxRuntime, export_graph
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime

pytest.importorskip("onnxruntime")

IMAGE = np.random.default_rng(0).integers(0, 256, (72, 100, 3), dtype=np.uint8)
SAME_M, SAME_SHARE = 0.01, 0.005  # what the two may differ by


def check_agreement(student: Student, image: np.ndarray = IMAGE) -> np.ndarray:
    """Compare the runtimes; return onnxruntime's depth."""
    one, other = TorchRuntime(student).predict(image), OnnxRuntime(student).predict(image)
    assert other.depth.shape == image.shape[:2]
    assert other.depth.dtype == np.float32
    assert (np.abs(one.depth - other.depth) <= np.maximum(SAME_M, SAME_SHARE * one.depth)).all()
    assert one.confidence is not None
    assert other.confidence is not None
    np.testing.assert_array_equal(np.isnan(one.confidence), np.isnan(other.confidence))
    np.testing.assert_allclose(one.confidence, other.confidence, atol=0.01)
    return other.depth


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_gives_the_same_depth_in_both_runtimes(architecture):
    torch.manual_seed(1)
    student = Student.fresh(StudentCard(BINS, SIZE, architecture=architecture))
    check_agreement(with_statistics(student))


def test_the_base_student_gives_the_same_depth_in_both_runtimes():
    assert check_agreement(load_base()).std() > 0.01  # an answer that says something


@pytest.mark.parametrize(
    "bins", [DepthBins(2), DepthBins(257, 1e-3, 80.0), DepthBins(300, spacing="log")]
)
def test_any_bins_give_the_same_depth_in_both_runtimes(bins):
    torch.manual_seed(2)
    check_agreement(with_statistics(Student.fresh(StudentCard(bins, SIZE))))


@pytest.mark.parametrize("gain", [1.0, 10.0, 100.0, 1000.0])
def test_sharp_maps_give_the_same_depth_in_both_runtimes(gain):
    student = with_statistics(small_student(3))
    with torch.no_grad():
        student.network.head.weight.mul_(100 * gain)
    check_agreement(student)


@pytest.mark.parametrize("offset", [1000.0, -1000.0, 3e4])
def test_an_offset_of_all_logits_changes_no_depth(offset):
    student = with_statistics(small_student(4))
    with torch.no_grad():
        student.network.head.weight.mul_(100)
    before = check_agreement(student)
    with torch.no_grad():
        student.network.head.bias.add_(offset)
    np.testing.assert_allclose(check_agreement(student), before, atol=SAME_M)


@pytest.mark.parametrize("sigma_m", [0.3, 0.1, 0.04])
@pytest.mark.parametrize("depth_m", [0.2, 2.0, 9.9])
def test_a_gaussian_as_narrow_as_a_bin_keeps_its_place_and_its_width(sigma_m, depth_m):
    bins = DepthBins()
    student = Student.fresh(StudentCard(bins, SIZE))
    with torch.no_grad():
        student.network.head.weight.zero_()
        student.network.head.bias.copy_(-((bins.centres() - depth_m) ** 2) / (2 * sigma_m**2))
    depth = check_agreement(student)
    expected = student.network.output(student.network.head.bias.view(1, -1, 1, 1)).depth
    np.testing.assert_allclose(depth, float(expected.detach()), rtol=1e-4)


def test_the_shift_is_folded_into_the_head_only_where_exp_is_sure_to_stay_a_number():
    student = small_student(5)
    assert shift_logits(copy.deepcopy(student).network)
    steep = copy.deepcopy(student).network
    with torch.no_grad():
        steep.head.bias[3] = 200.0
    before = copy.deepcopy(steep.state_dict())
    assert not shift_logits(steep)
    assert all(torch.equal(before[name], weight) for name, weight in steep.state_dict().items())
    official = Student.fresh(StudentCard(BINS, SIZE, architecture="resnet18")).network
    assert not shift_logits(official)  # nothing bounds what its last ReLU gives


def test_the_largest_logits_that_are_shifted_still_give_a_number():
    bins = DepthBins(257, 1e-3, 80.0)
    student = Student.fresh(StudentCard(bins, SIZE))
    with torch.no_grad():
        student.network.head.weight.zero_()
        student.network.head.bias.zero_()[-1] = 144.4
    assert shift_logits(copy.deepcopy(student).network)
    assert check_agreement(student).min() > 79


def test_shifting_twice_is_shifting_once():
    network = small_student(6).network
    assert shift_logits(network)
    once = network.head.bias.clone()
    assert shift_logits(network)
    assert torch.equal(network.head.bias, once)


@pytest.mark.parametrize("architecture", ["mobilenetv2-fast", "resnet18"])
def test_students_of_a_kind_share_a_graph_and_keep_their_own_weights(architecture):
    graphs = {}
    students = [
        with_statistics(small_student(seed, architecture=architecture), seed) for seed in range(3)
    ]
    for student in students:
        with torch.no_grad():
            student.network.classifier.weight.mul_(100)
    runtimes = [OnnxRuntime(student, graphs=graphs) for student in students]
    assert len(graphs) == 1
    depths = [runtime.predict(IMAGE).depth for runtime in runtimes]
    for student, depth in zip(students, depths, strict=True):
        np.testing.assert_allclose(depth, TorchRuntime(student).predict(IMAGE).depth, atol=SAME_M)
    assert np.abs(depths[0] - depths[1]).max() > SAME_M
    other = Student.fresh(StudentCard(BINS, InputSize(96, 64), architecture=architecture))
    OnnxRuntime(other, graphs=graphs)
    assert len(graphs) == 2


def test_a_graph_does_not_depend_on_the_weights_it_was_exported_with():
    network = fuse_batch_norms(small_student(7).network.eval())
    other = copy.deepcopy(network)
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()  # all alike: the exporter would make one of them
    shift_logits(network)
    shift_logits(other)
    graph = export_graph(network, SIZE)
    assert graph == export_graph(other, SIZE)
    assert set(graph.names) == {f"network.{name}" for name, _ in network.named_parameters()}


class _Doubling(torch.nn.Conv2d):
    """A layer whose weights the exporter computes, and so keeps."""

    def forward(self, x):
        return torch.nn.functional.conv2d(x, self.weight.detach().clone() * 2.0, self.bias)


def test_a_graph_that_would_keep_weights_or_statistics_is_refused():
    network = small_student(7).network.eval()
    with pytest.raises(InvalidSettingError, match="a batch norm is left"):
        export_graph(network, SIZE)
    network = fuse_batch_norms(network)
    network.head.__class__ = _Doubling
    with pytest.raises(InvalidSettingError, match=r"keeps weights of shape \(33, 64, 1, 1\)"):
        export_graph(network, SIZE)


def test_making_a_runtime_leaves_the_student_as_it_was():
    student = small_student(8)
    before = copy.deepcopy(student.network.state_dict())
    OnnxRuntime(student)
    after = student.network.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_student_whose_finite_weights_give_no_number_is_refused():
    with pytest.raises(CheckpointError, match="answers a probe image"):
        OnnxRuntime(overflowing_student())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_gpu_that_onnxruntime_cannot_use_is_refused_with_the_way_out():
    with pytest.raises(InvalidSettingError, match="install onnxruntime-gpu"):
        OnnxRuntime(small_student(), "cuda")


def test_a_gpu_provider_that_does_not_start_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.setattr(
        "tiekd_ros.student.runtimes.onnx_runtime.execution_providers",
        lambda _: ["CPUExecutionProvider"],
    )
    with pytest.raises(InvalidSettingError, match="does not start on cuda:0; install the CUDA"):
        OnnxRuntime(small_student(), "cuda:0")


def test_a_runtime_says_what_it_runs_on():
    assert OnnxRuntime(small_student()).description == "onnxruntime CPUExecutionProvider, 1 thread"
    threads = OnnxRuntime(small_student(), threads=2).description
    assert threads == "onnxruntime CPUExecutionProvider, 2 threads"
