"""What a CUDA device computes, as far as a CPU can compute it too."""

import contextlib
import copy
from typing import ClassVar

import numpy as np
import pytest
import torch

from helpers.students import BINS, SIZE, small_student
from tiekd_ros.student.architecture import Moments
from tiekd_ros.student.base_student import load_base
from tiekd_ros.student.checkpoint import Student, StudentCard
from tiekd_ros.student.preprocessing import DevicePreprocessing
from tiekd_ros.student.runtimes import cuda_graph
from tiekd_ros.student.runtimes.base import (
    Prediction,
    StageTimes,
    answer_on_cpu,
    fuse_batch_norms,
    same_depth,
    shift_logits,
)
from tiekd_ros.student.runtimes.cuda_graph import (
    CudaPipeline,
    Sizes,
    answer_maps,
    choose_precision,
    run_network,
    use_half_precision,
)
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime

IMAGE = np.random.default_rng(0).integers(0, 256, (72, 96, 3), dtype=np.uint8)


def folded(student: Student) -> Student:
    student = copy.deepcopy(student)
    shift_logits(fuse_batch_norms(student.network.eval()))
    return student


@torch.inference_mode()
def test_half_precision_gives_the_same_depth_but_for_rounding():
    base = load_base()
    student = folded(base)
    network = use_half_precision(student.network)
    assert next(network.parameters()).dtype == torch.float16
    assert network.classifier.weight.dtype == torch.float32
    x = DevicePreprocessing((72, 96), base.card.input_size)(torch.from_numpy(IMAGE))
    maps = answer_maps(base.card, run_network(network, x), (72, 96)).numpy()
    depth, confidence, _ = TorchRuntime(base).predict(IMAGE)
    assert maps.dtype == np.float32
    assert same_depth(depth, maps[0])
    np.testing.assert_allclose(maps[1], confidence, atol=0.02)


def test_an_edge_stays_one_on_a_device_as_on_a_cpu():
    mean = torch.full((1, 1, 6, 8), 2.0)
    mean[..., 4:] = 5.0
    moments = Moments(mean, torch.full_like(mean, 0.1))
    card = StudentCard(BINS, SIZE, architecture="mobilenetv2-fast")
    maps = answer_maps(card, moments, (15, 20)).numpy()
    depth, confidence = answer_on_cpu(card, moments, (15, 20), confidence=True)
    assert set(depth.ravel()) == {2.0, 5.0}
    np.testing.assert_allclose(maps[0], depth, rtol=1e-6)
    np.testing.assert_allclose(maps[1], confidence, atol=1e-5)


def test_half_precision_twice_is_half_precision_once_and_needs_bounded_activations():
    network = folded(small_student()).network
    use_half_precision(use_half_precision(network))
    assert network.classifier.weight.dtype == torch.float32
    student = Student.fresh(StudentCard(BINS, SIZE, architecture="resnet18"))
    network = use_half_precision(folded(student).network)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


CPU = torch.device("cpu")


def test_half_precision_is_taken_only_where_it_gives_the_same_depth(caplog):
    student = folded(load_base())
    chosen = choose_precision(student.card, student.network, CPU)
    assert next(chosen.parameters()).dtype == torch.float16
    assert next(student.network.parameters()).dtype == torch.float32
    student = small_student()
    with torch.no_grad():
        next(student.network.neck.parameters()).mul_(1e6)  # more than float16 can be
    student = folded(student)
    assert choose_precision(student.card, student.network, CPU) is student.network
    assert "computes in float32: half precision would change its depth" in caplog.text


def test_float32_stays_float32_in_convolutions_and_the_process_keeps_its_setting():
    seen = []
    network = folded(small_student()).network
    network.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    before = torch.backends.cudnn.allow_tf32
    with torch.inference_mode():
        run_network(network, torch.zeros(1, 3, SIZE.height, SIZE.width))
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32 == before


class _FakeStages:
    """Stands for buffers and graphs, which need a GPU; notes what was captured."""

    captured: ClassVar[list[Sizes]] = []
    refused: ClassVar[set[Sizes]] = set()

    def __init__(self, card, network, preprocessing, sizes, stream):
        self.sizes = sizes

    def capture(self):
        self.captured.append(self.sizes)
        if self.sizes in self.refused:
            raise RuntimeError("operation not permitted when stream is capturing")

    def run(self, image, confidence):
        depth = np.ones(self.sizes.answer, np.float32)
        return Prediction(depth, depth if confidence else None, StageTimes(1.0, 1.0, 1.0))


@pytest.fixture
def stages(monkeypatch):
    monkeypatch.setattr(_FakeStages, "captured", [])
    monkeypatch.setattr(_FakeStages, "refused", set())
    monkeypatch.setattr(cuda_graph, "_Stages", _FakeStages)
    monkeypatch.setattr("torch.cuda.Stream", lambda device, priority: None)
    monkeypatch.setattr("torch.cuda.device", lambda device: contextlib.nullcontext())
    return _FakeStages


def pipeline() -> CudaPipeline:
    student = folded(small_student())
    return CudaPipeline(student.card, student.network, CPU)


def ask(made: CudaPipeline, height: int, width: int, answer: tuple[int, int] = (8, 8)) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    assert made.predict(image, answer, confidence=False).depth.shape == answer


def test_graphs_are_made_once_for_each_pair_of_sizes(stages):
    made = pipeline()
    for _ in range(2):
        ask(made, 72, 96)
        ask(made, 72, 96, (60, 80))
    for height in (300, 301):  # higher than the input and narrower: the device cannot resize them
        ask(made, height, 50)
    assert stages.captured == [
        Sizes((72, 96), (8, 8)),
        Sizes((72, 96), (60, 80)),
        Sizes((SIZE.height, SIZE.width), (8, 8)),
    ]


def test_the_graphs_that_were_not_used_for_longest_make_room(stages):
    made, successor = pipeline(), pipeline()
    for width in (100, 101, 102, 103, 100, 104):
        ask(made, 72, width)
    assert [sizes.image[1] for sizes in made.sizes] == [102, 103, 100, 104]
    ask(made, 72, 101)
    assert [sizes.image[1] for sizes in stages.captured] == [100, 101, 102, 103, 104, 101]
    successor.follow(made)  # prepares for what was used last
    assert successor.sizes == [Sizes((72, 101), (8, 8))]
    pipeline().follow(pipeline())  # which has run nothing


def test_a_refused_capture_is_logged_once_and_frames_go_on_without_graphs(stages, caplog):
    stages.refused.add(Sizes((72, 100), (8, 8)))
    made = pipeline()
    assert made.description == "CUDA graph, float16"
    for width in (100, 101, 102, 103, 104, 100):  # made anew at the end
        ask(made, 72, width)
    assert [sizes.image[1] for sizes in stages.captured] == [100, 101, 102, 103, 104]
    assert caplog.text.count("no CUDA graph for images of 100 x 72") == 1
    assert "operation not permitted" in caplog.text
    assert made.description == "no CUDA graph, float16"
