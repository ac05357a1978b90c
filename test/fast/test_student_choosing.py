"""Which runtime a student gets: what was asked for, else what was measured to be faster."""

import logging
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.students import SIZE, overflowing_student, small_student
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.checkpoint import CheckpointError, Student
from tiekd_ros.student.runtimes import choosing
from tiekd_ros.student.runtimes.choosing import RuntimeFactory
from tiekd_ros.student.runtimes.onnx_runtime import OnnxRuntime
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime

CPU = torch.device("cpu")
IMAGE = np.random.default_rng(0).integers(0, 256, (72, 96, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def threads():
    """Give torch its threads back: a factory sets them for the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def without_onnxruntime(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)


def resized(student: Student, size: InputSize) -> Student:
    return replace(student, card=replace(student.card, input_size=size))


def test_torch_is_taken_where_it_is_asked_for():
    factory = RuntimeFactory(CPU, "torch")
    assert isinstance(factory.make(small_student()), TorchRuntime)
    assert factory.measured == {}


def test_onnxruntime_is_taken_where_it_is_asked_for():
    pytest.importorskip("onnxruntime")
    factory = RuntimeFactory(CPU, "onnxruntime")
    assert isinstance(factory.make(small_student()), OnnxRuntime)
    assert factory.measured == {}


def test_an_unknown_runtime_is_refused_with_those_that_would_do():
    with pytest.raises(InvalidSettingError, match="auto, torch, onnxruntime, got 'tensorflow'"):
        RuntimeFactory(CPU, "tensorflow")


def test_auto_measures_both_says_so_and_takes_the_faster(caplog):
    pytest.importorskip("onnxruntime")
    caplog.set_level(logging.INFO, "tiekd_ros")
    factory = RuntimeFactory(CPU)
    runtime = factory.make(small_student())
    assert set(factory.measured) == {"torch", "onnxruntime"}
    faster = min(factory.measured, key=factory.measured.get)
    assert runtime.description.startswith(faster)
    assert f"runtime auto takes {faster} for mobilenetv2-fast at 96 x 64" in caplog.text
    assert f"{factory.measured['torch']:.1f} ms" in caplog.text


def test_auto_measures_once_for_students_of_a_kind_and_again_for_another_size(monkeypatch):
    pytest.importorskip("onnxruntime")
    measured = []
    measure = choosing.measure

    def note(runtimes):
        measured.append([runtime.card.input_size for runtime in runtimes.values()])
        return measure(runtimes)

    monkeypatch.setattr(choosing, "measure", note)
    factory, wide = RuntimeFactory(CPU), InputSize(64, 128)
    kinds = [type(factory.make(small_student(seed))) for seed in range(3)]
    assert kinds[0] is kinds[1] is kinds[2]
    factory.make(resized(small_student(), wide))
    assert measured == [[SIZE, SIZE], [wide, wide]]


@pytest.mark.parametrize("faster", ["torch", "onnxruntime"])
def test_what_was_faster_is_taken_for_those_that_follow(monkeypatch, faster):
    pytest.importorskip("onnxruntime")
    times = {"torch": 2.0, "onnxruntime": 2.0, faster: 1.0}
    monkeypatch.setattr(choosing, "measure", lambda runtimes: times)
    factory = RuntimeFactory(CPU)
    for seed in range(2):
        runtime = factory.make(small_student(seed))
        assert runtime.description.startswith(faster)
        expected = TorchRuntime(small_student(seed)).predict(IMAGE).depth
        np.testing.assert_allclose(runtime.predict(IMAGE).depth, expected, atol=1e-4)


def test_without_onnxruntime_auto_is_torch_and_says_why(without_onnxruntime, caplog):
    caplog.set_level(logging.INFO, "tiekd_ros")
    factory = RuntimeFactory(CPU)
    assert isinstance(factory.make(small_student()), TorchRuntime)
    assert factory.measured == {}
    assert "runtime auto takes torch" in caplog.text
    assert "install tiekd_ros[onnx]" in caplog.text


def test_without_onnxruntime_asking_for_it_is_refused_with_the_way_out(without_onnxruntime):
    with pytest.raises(InvalidSettingError, match=r"install tiekd_ros\[onnx\], or set runtime to"):
        RuntimeFactory(CPU, "onnxruntime")


@pytest.fixture(params=["onnx", "onnxruntime"])
def broken_package(request, monkeypatch, tmp_path):
    """Put a package first on the path whose import fails as a wrong build's does."""
    pytest.importorskip("onnxruntime")
    package = tmp_path / request.param
    package.mkdir()
    (package / "__init__.py").write_text("raise TypeError('descriptors cannot be created')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, request.param, raising=False)


def test_a_broken_onnxruntime_leaves_auto_with_torch_and_the_reason(broken_package, caplog):
    caplog.set_level(logging.INFO, "tiekd_ros")
    assert isinstance(RuntimeFactory(CPU).make(small_student()), TorchRuntime)
    assert "TypeError: descriptors cannot be created" in caplog.text


def test_a_broken_onnxruntime_is_refused_where_it_is_asked_for(broken_package):
    with pytest.raises(InvalidSettingError, match="TypeError: descriptors cannot be created"):
        RuntimeFactory(CPU, "onnxruntime")


def test_auto_hands_the_former_runtime_to_torch_and_torch_stays_where_the_gpu_does_not_start(
    monkeypatch, caplog
):
    pytest.importorskip("onnxruntime")
    formers = []

    def on_the_cpu(student, device, *, owned=False, like=None):
        formers.append(like)
        return TorchRuntime(student, owned=owned)

    for module in ("choosing", "onnx_runtime"):  # as an onnxruntime-gpu without cuDNN has it
        monkeypatch.setattr(
            f"tiekd_ros.student.runtimes.{module}.execution_providers",
            lambda _: ["CPUExecutionProvider"],
        )
    monkeypatch.setattr(choosing, "TorchRuntime", on_the_cpu)
    factory, former = RuntimeFactory(torch.device("cuda")), TorchRuntime(small_student())
    assert isinstance(factory.make(small_student(1), former), TorchRuntime)
    assert formers == [former]
    assert "CUDAExecutionProvider does not start on cuda" in caplog.text


def test_a_failing_export_leaves_auto_with_torch_and_the_reason(monkeypatch, caplog):
    pytest.importorskip("onnxruntime")

    def fail(network, size):
        raise TypeError("no such operator")

    monkeypatch.setattr("tiekd_ros.student.runtimes.onnx_runtime.export_graph", fail)
    factory = RuntimeFactory(CPU)
    for seed in range(2):
        assert isinstance(factory.make(small_student(seed)), TorchRuntime)
    assert caplog.text.count("TypeError: no such operator") == 1  # it is not tried again


def test_another_depth_leaves_auto_with_torch(monkeypatch, caplog):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(choosing, "agree", lambda first, second, size: False)
    factory = RuntimeFactory(CPU)
    assert isinstance(factory.make(small_student()), TorchRuntime)
    assert "gives another depth" in caplog.text


@pytest.mark.parametrize("kind", ["auto", "torch", "onnxruntime"])
def test_a_student_that_gives_no_number_is_refused_whatever_the_runtime(kind):
    if kind != "torch":
        pytest.importorskip("onnxruntime")
    factory = RuntimeFactory(CPU, kind)
    factory.make(small_student())
    with pytest.raises(CheckpointError, match="answers a probe image"):
        factory.make(overflowing_student())
    factory.make(small_student())


def test_the_number_of_threads_is_kept_and_none_means_half_the_cores(monkeypatch):
    monkeypatch.setattr(choosing, "half_the_cores", lambda: 3)
    assert RuntimeFactory(CPU, "torch").threads == 3
    factory = RuntimeFactory(CPU, "torch", 2)
    assert factory.make(small_student()).description == "torch, cpu, 2 threads"
