"""onnxruntime gives what torch gives, for every kind of student and every kind of weights."""

import copy

import numpy as np
import pytest
import torch

from helpers.students import BINS, FASTEST, SIZE, small_student, with_statistics
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.base_student import load_base
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import ConfidenceScale, Student, StudentCard
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


def test_any_bins_and_the_base_give_the_same_depth_in_both_runtimes():
    torch.manual_seed(2)
    for bins in (DepthBins(2), DepthBins(257, 1e-3, 80.0), DepthBins(300, spacing="log")):
        check_agreement(with_statistics(Student.fresh(StudentCard(bins, SIZE))))
    assert check_agreement(load_base()).std() > 0.01  # an answer that says something


def test_sharp_maps_and_an_offset_of_all_logits_give_the_same_depth_in_both_runtimes():
    student = with_statistics(small_student(3))
    weight, bias = student.network.head.weight.data, student.network.head.bias.data
    weight.mul_(100)
    before, kept = check_agreement(student), bias.clone()
    for offset in (1000.0, -1000.0, 3e4):
        bias.copy_(kept + offset)
        np.testing.assert_allclose(check_agreement(student), before, atol=SAME_M)
    bias.copy_(kept)
    for _ in range(3):
        weight.mul_(10)
        check_agreement(student)


def test_a_gaussian_as_narrow_as_a_bin_keeps_its_place_and_its_width():
    bins = DepthBins()
    student = Student.fresh(StudentCard(bins, SIZE, FASTEST))
    weight, bias = student.network.head.weight.data, student.network.head.bias.data
    weight.zero_()
    for sigma_m in (0.3, 0.1, 0.04):
        for depth_m in (0.2, 2.0, 9.9):
            bias.copy_(-((bins.centres() - depth_m) ** 2) / (2 * sigma_m**2))
            depth = check_agreement(student)
            expected = student.network.output(bias.view(1, -1, 1, 1)).depth
            np.testing.assert_allclose(depth, float(expected), rtol=1e-4)


def test_the_shift_is_folded_into_the_head_only_where_exp_is_sure_to_stay_a_number():
    student = small_student(5)
    network = copy.deepcopy(student).network
    assert shift_logits(network)
    once = network.head.bias.clone()
    assert shift_logits(network)
    assert torch.equal(network.head.bias, once)
    steep = copy.deepcopy(student).network
    with torch.no_grad():
        steep.head.bias[3] = 200.0
    before = copy.deepcopy(steep.state_dict())
    assert not shift_logits(steep)
    assert all(torch.equal(before[name], weight) for name, weight in steep.state_dict().items())
    official = Student.fresh(StudentCard(BINS, SIZE, architecture="resnet18")).network
    assert not shift_logits(official)  # nothing bounds what its last ReLU gives
    largest = Student.fresh(StudentCard(DepthBins(257, 1e-3, 80.0), SIZE, FASTEST))
    with torch.no_grad():
        largest.network.head.weight.zero_()
        largest.network.head.bias.zero_()[-1] = 144.4
    assert shift_logits(copy.deepcopy(largest).network)
    assert check_agreement(largest).min() > 79


@pytest.mark.parametrize("architecture", ["mobilenetv2-fast", "efficientnet-lite0", "resnet18"])
def test_students_of_a_kind_share_a_graph_and_keep_their_own_weights(architecture):
    graphs = {}
    scale = ConfidenceScale(0.1, offset=-1.0, slope=1.5, known_novelty=1.0)
    students = [
        with_statistics(small_student(seed, architecture=architecture, confidence=scale), seed)
        for seed in range(3)
    ]
    for student in students:
        student.network.remember(torch.randn(5, 24 + 40 + 112 + 192))  # what is seen is not known
        with torch.no_grad():
            student.network.classifier.weight.mul_(100)
    runtimes = [OnnxRuntime(student, graphs=graphs) for student in students]
    assert len(graphs) == 1
    found = [runtime.predict(IMAGE) for runtime in runtimes]
    for student, mine in zip(students, found, strict=True):
        wanted = TorchRuntime(student).predict(IMAGE)
        np.testing.assert_allclose(mine.depth, wanted.depth, atol=SAME_M)
        np.testing.assert_allclose(mine.confidence, wanted.confidence, atol=1e-3)
    depths = [mine.depth for mine in found]
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_gpu_that_onnxruntime_cannot_use_is_refused_with_the_way_out():
    with pytest.raises(InvalidSettingError, match="install onnxruntime-gpu"):
        OnnxRuntime(small_student(), "cuda")


def test_a_runtime_says_what_it_runs_on_and_a_gpu_provider_that_does_not_start_is_refused(
    monkeypatch,
):
    for threads, said in ((1, "1 thread"), (2, "2 threads")):
        runtime = OnnxRuntime(small_student(), threads=threads)
        assert runtime.description == f"onnxruntime CPUExecutionProvider, {said}"
    monkeypatch.setattr(
        "tiekd_ros.student.runtimes.onnx_runtime.execution_providers",
        lambda _: ["CPUExecutionProvider"],
    )
    with pytest.raises(InvalidSettingError, match="does not start on cuda:0; install the CUDA"):
        OnnxRuntime(small_student(), "cuda:0")
