"""What a CUDA device computes, as far as a CPU can compute it too."""

import copy

import numpy as np
import torch

from helpers.students import BINS, SIZE, small_student
from tiekd_ros.student import Student, StudentCard, TorchRuntime
from tiekd_ros.student.cuda_graph import answer_maps, run_network, use_half_precision
from tiekd_ros.student.folding import fuse_batch_norms, shift_logits
from tiekd_ros.student.preprocessing import DevicePreprocessing
from tiekd_ros.student.transfer import load_base

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
    assert (np.abs(maps[0] - depth) <= np.maximum(0.01, 0.005 * depth)).all()
    np.testing.assert_allclose(maps[1], confidence, atol=0.02)


def test_half_precision_twice_is_half_precision_once():
    network = folded(small_student()).network
    use_half_precision(use_half_precision(network))
    assert network.classifier.weight.dtype == torch.float32


def test_networks_whose_activations_have_no_bound_keep_their_precision():
    student = Student.fresh(StudentCard(BINS, SIZE, architecture="resnet18"))
    network = use_half_precision(folded(student).network)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
