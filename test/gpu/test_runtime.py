"""Students on a CUDA device: what a CPU gives, frame after frame, also while students change."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from helpers.students import frames_while_exchanged, small_student, with_statistics
from tiekd_ros.core.devices import choose_device
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.student.base_student import load_base
from tiekd_ros.student.live import LiveStudent
from tiekd_ros.student.registry import StudentRegistry
from tiekd_ros.student.runtimes.base import same_depth
from tiekd_ros.student.runtimes.choosing import RuntimeFactory
from tiekd_ros.student.runtimes.onnx_runtime import OnnxRuntime
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

RNG = np.random.default_rng(0)
SIZES = [(480, 640), (160, 224), (100, 131), (48, 64), (300, 100)]


def noise(size: tuple[int, int]) -> np.ndarray:
    return RNG.integers(0, 256, (*size, 3), dtype=np.uint8)


def check_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert same_depth(expected, found)


@pytest.fixture(scope="module")
def base():
    return load_base()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_torch_on_the_gpu_gives_the_depth_of_the_cpu(base, size):
    on_cpu, on_gpu = TorchRuntime(base), TorchRuntime(base, "cuda")
    for _ in range(3):  # each replay reads its own image
        image = noise(size)
        expected, found = on_cpu.predict(image), on_gpu.predict(image)
        check_same(found.depth, expected.depth)
        np.testing.assert_allclose(found.confidence, expected.confidence, atol=0.03)
        assert all(ms > 0 for ms in found.times)


@pytest.mark.parametrize("architecture", ["resnet18", "mobilenetv2-regression"])
def test_published_networks_stay_in_float32_and_give_the_depth_of_the_cpu(architecture):
    student = with_statistics(small_student(architecture=architecture))
    on_cpu, on_gpu = TorchRuntime(student), TorchRuntime(student, "cuda")
    assert on_gpu.description == "torch, cuda, CUDA graph, float32"
    for size in SIZES:
        image = noise(size)
        found, expected = on_gpu.predict(image), on_cpu.predict(image)
        check_same(found.depth, expected.depth)
        np.testing.assert_allclose(found.confidence, expected.confidence, atol=0.01)


def test_without_graphs_the_depth_is_the_same_and_later_work_keeps_its_stream(base, monkeypatch):
    def refuse(graph):
        end(graph)
        raise RuntimeError("operation failed due to a previous error during capture")

    end, current = torch.cuda.CUDAGraph.capture_end, torch.cuda.current_stream()
    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_end", refuse)
    on_gpu, image = TorchRuntime(base, "cuda"), noise((480, 640))
    assert on_gpu.description == "torch, cuda, no CUDA graph, float16"
    for _ in range(2):
        check_same(on_gpu.predict(image).depth, TorchRuntime(base).predict(image).depth)
    assert torch.cuda.current_stream() == current


def test_threads_may_capture_at_once(base):
    def load(number):
        runtime = TorchRuntime(base, "cuda")
        for width in range(4):
            runtime.predict(noise((64 + number, 96 + width)))
        return runtime.description

    with ThreadPoolExecutor(4) as pool:
        descriptions = list(pool.map(load, range(4), timeout=60))
    assert descriptions == ["torch, cuda, CUDA graph, float16"] * 4


def test_sizes_may_change_from_frame_to_frame(base):
    on_cpu, on_gpu = TorchRuntime(base), TorchRuntime(base, "cuda")
    for size in (*SIZES, *SIZES):
        image = noise(size)
        for asked in (None, (60, 80)):
            found = on_gpu.predict(image, asked, confidence=False)
            assert found.confidence is None
            check_same(found.depth, on_cpu.predict(image, asked).depth)


def test_answers_are_the_callers_and_a_successor_is_ready_for_the_same_images(base):
    on_gpu = TorchRuntime(base, "cuda")
    first = on_gpu.predict(noise((480, 640)))
    kept = first.depth.copy()
    on_gpu.predict(noise((480, 640)))
    np.testing.assert_array_equal(first.depth, kept)
    after = TorchRuntime(base, "cuda", like=on_gpu)
    assert after._pipeline.sizes[-1] == on_gpu._pipeline.sizes[-1]


def test_no_frame_fails_while_students_are_exchanged(tmp_path):
    registry = StudentRegistry(tmp_path / "students")
    for seed in range(3):
        registry.add(small_student(seed))
    registry.promote("000001")
    live = LiveStudent(registry, RuntimeFactory(torch.device("cuda"), "torch"))
    live.load_pointer()
    frames_while_exchanged(live, noise((480, 640)), 10)
    live.close()
    assert live.state.error == ""


def test_onnxruntime_on_the_gpu_gives_the_depth_of_the_cpu(base):
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA provider")
    on_gpu, image = OnnxRuntime(base, "cuda"), noise((480, 640))
    assert on_gpu.description == "onnxruntime CUDAExecutionProvider"
    check_same(on_gpu.predict(image).depth, TorchRuntime(base).predict(image).depth)


def test_a_gpu_beyond_the_last_is_refused():
    count = torch.cuda.device_count()
    assert choose_device(f"cuda:{count - 1}").index == count - 1
    with pytest.raises(InvalidSettingError, match=f"torch sees {count} GPUs"):
        choose_device(f"cuda:{count}")
