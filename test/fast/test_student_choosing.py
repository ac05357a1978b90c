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
from tiekd_ros.student.checkpoint import CheckpointError
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


def test_the_runtime_and_the_threads_that_were_asked_for_are_taken(monkeypatch):
    pytest.importorskip("onnxruntime")
    for kind, made in (("torch", TorchRuntime), ("onnxruntime", OnnxRuntime)):
        factory = RuntimeFactory(CPU, kind, 2)
        runtime = factory.make(small_student())
        assert isinstance(runtime, made)
        assert runtime.description.endswith(", 2 threads")
        assert factory.measured == {}
    with pytest.raises(InvalidSettingError, match="auto, torch, onnxruntime, got 'tensorflow'"):
        RuntimeFactory(CPU, "tensorflow")
    monkeypatch.setattr(choosing, "half_the_cores", lambda: 3)
    assert RuntimeFactory(CPU, "torch").threads == 3


def test_auto_measures_both_once_a_kind_says_so_and_takes_the_faster(monkeypatch, caplog):
    pytest.importorskip("onnxruntime")
    caplog.set_level(logging.INFO, "tiekd_ros")
    measured = []
    measure = choosing.measure

    def note(runtimes):
        measured.append([runtime.card.input_size for runtime in runtimes.values()])
        return measure(runtimes)

    monkeypatch.setattr(choosing, "measure", note)
    factory, wide = RuntimeFactory(CPU), InputSize(64, 128)
    kinds = [type(factory.make(small_student(seed))) for seed in range(3)]
    assert kinds[0] is kinds[1] is kinds[2]
    assert set(factory.measured) == {"torch", "onnxruntime"}
    faster = min(factory.measured, key=factory.measured.get)
    assert f"runtime auto takes {faster} for mobilenetv2-fast at 96 x 64" in caplog.text
    assert f"{factory.measured['torch']:.1f} ms" in caplog.text
    student = small_student()
    factory.make(replace(student, card=replace(student.card, input_size=wide)))
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


def test_without_onnxruntime_auto_is_torch_and_says_why(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    caplog.set_level(logging.INFO, "tiekd_ros")
    factory = RuntimeFactory(CPU)
    assert isinstance(factory.make(small_student()), TorchRuntime)
    assert factory.measured == {}
    assert "runtime auto takes torch" in caplog.text
    assert "install tiekd_ros[onnx]" in caplog.text
    with pytest.raises(InvalidSettingError, match=r"install tiekd_ros\[onnx\], or set runtime to"):
        RuntimeFactory(CPU, "onnxruntime")


@pytest.mark.parametrize("name", ["onnx", "onnxruntime"])
def test_a_broken_onnxruntime_leaves_auto_with_torch_and_the_reason(
    monkeypatch, tmp_path, caplog, name
):
    pytest.importorskip("onnxruntime")
    package = tmp_path / name  # first on the path; its import fails as a wrong build's does
    package.mkdir()
    (package / "__init__.py").write_text("raise TypeError('descriptors cannot be created')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    caplog.set_level(logging.INFO, "tiekd_ros")
    assert isinstance(RuntimeFactory(CPU).make(small_student()), TorchRuntime)
    assert "TypeError: descriptors cannot be created" in caplog.text
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


def test_a_failing_export_or_another_depth_leaves_auto_with_torch_and_the_reason(
    monkeypatch, caplog
):
    pytest.importorskip("onnxruntime")

    def fail(network, size):
        raise TypeError("no such operator")

    with monkeypatch.context() as broken:
        broken.setattr("tiekd_ros.student.runtimes.onnx_runtime.export_graph", fail)
        factory = RuntimeFactory(CPU)
        for seed in range(2):
            assert isinstance(factory.make(small_student(seed)), TorchRuntime)
    assert caplog.text.count("TypeError: no such operator") == 1  # it is not tried again
    monkeypatch.setattr(choosing, "same_depth", lambda one, other: False)
    assert isinstance(RuntimeFactory(CPU).make(small_student()), TorchRuntime)
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
