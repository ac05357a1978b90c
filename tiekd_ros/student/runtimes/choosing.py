"""Which runtime a student gets: the one that was asked for, or the faster one."""

from __future__ import annotations

import logging
import time
from statistics import median

import torch

from tiekd_ros.core.devices import AUTO, ONNXRUNTIME, RUNTIMES, TORCH, half_the_cores
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import CheckpointError, Student
from tiekd_ros.student.runtimes.base import Runtime, probe_image, same_depth
from tiekd_ros.student.runtimes.onnx_runtime import GraphCache, OnnxRuntime, execution_providers
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime

_RUNS = 9  # of each, one after the other in turns
_LONGEST_S = 2.0  # of the comparison; a slow network says enough in one run

_Kind = tuple[str, DepthBins, InputSize]
_log = logging.getLogger(__name__)


class RuntimeFactory:
    """Makes runtimes on one device.

    With `auto`, torch and onnxruntime are compared with the first student of each architecture,
    bins and input size; what was faster is taken for all that follow. Where onnxruntime is
    missing or cannot take a student, torch is taken and the reason logged.

    Args:
        device: where they run.
        kind: one of `RUNTIMES`.
        threads: of the network on a CPU; 0 = half the cores. Torch has one number of threads
            for the whole process; it is set here.

    Raises:
        InvalidSettingError: onnxruntime is asked for and is not installed, or cannot use the
            device.
    """

    def __init__(self, device: torch.device, kind: str = AUTO, threads: int = 0) -> None:
        if kind not in RUNTIMES:
            raise InvalidSettingError(f"runtime must be one of {', '.join(RUNTIMES)}, got {kind!r}")
        self.device = device
        self.kind = kind
        self.threads = threads or half_the_cores()
        torch.set_num_threads(self.threads)
        self.measured: dict[str, float] = {}
        """Milliseconds of one prediction by runtime, of the last comparison; empty: none yet."""
        self._graphs: GraphCache = {}
        self._faster: dict[_Kind, str] = {}
        self._without_onnxruntime = kind == TORCH
        if self._without_onnxruntime:
            return
        try:
            execution_providers(device)
        except InvalidSettingError as error:
            if kind == ONNXRUNTIME:
                raise
            self._without_onnxruntime = True
            _log.info("runtime auto takes torch: %s", error)

    def make(self, student: Student, like: Runtime | None = None) -> Runtime:
        """Return a student ready to run: checked, proved with a probe image and warmed.

        Args:
            student: its network is taken over; it is not fit for training afterwards.
            like: the runtime that it takes over from, if there is one.

        Raises:
            CheckpointError: it cannot be used.
        """
        card = student.card
        kind = (card.architecture, card.bins, card.input_size)
        if self.kind == ONNXRUNTIME or self._faster.get(kind) == ONNXRUNTIME:
            try:
                return self._make_onnx(student)
            except CheckpointError:
                raise
            except Exception as error:  # torch's exporter and onnxruntime have many kinds
                if self.kind == ONNXRUNTIME:
                    raise
                self._refuse_onnx(kind, error)
        elif not self._without_onnxruntime and kind not in self._faster:
            return self._compare(student, kind, like)
        return TorchRuntime(student, self.device, owned=True, like=like)

    def _make_onnx(self, student: Student) -> OnnxRuntime:
        return OnnxRuntime(student, self.device, self.threads, graphs=self._graphs, owned=True)

    def _refuse_onnx(self, kind: _Kind, reason: object) -> None:
        self._faster[kind] = TORCH
        _log.warning("runtime auto takes torch for %s: onnxruntime %s", kind[0], reason)

    def _compare(self, student: Student, kind: _Kind, like: Runtime | None) -> Runtime:
        """Run a student both ways; return the faster runtime, and take it from now on."""
        in_torch = TorchRuntime(student, self.device, like=like)
        try:
            in_onnx = self._make_onnx(student)
            self.measured = measure({TORCH: in_torch, ONNXRUNTIME: in_onnx})
        except Exception as error:  # as above; what torch runs need not wait for it
            self._refuse_onnx(kind, f"cannot run it ({type(error).__name__}: {error})")
            return in_torch
        size = student.card.input_size
        one, other = (each.predict(probe_image(size)).depth for each in (in_torch, in_onnx))
        if not same_depth(one, other):
            self._refuse_onnx(kind, "gives another depth")
            return in_torch
        self._faster[kind] = min(self.measured, key=self.measured.__getitem__)
        _log.info(
            "runtime auto takes %s for %s at %d x %d: %s",
            self._faster[kind],
            student.card.architecture,
            size.width,
            size.height,
            ", ".join(f"{name} {ms:.1f} ms" for name, ms in self.measured.items()),
        )
        return in_onnx if self._faster[kind] == ONNXRUNTIME else in_torch


def measure(runtimes: dict[str, Runtime]) -> dict[str, float]:
    """Return the median milliseconds of one prediction of each; they run in turns."""
    taken: dict[str, list[float]] = {name: [] for name in runtimes}
    started = time.perf_counter()
    for _ in range(_RUNS):
        for name, runtime in runtimes.items():
            image = probe_image(runtime.card.input_size)
            begun = time.perf_counter()
            runtime.predict(image)
            taken[name].append((time.perf_counter() - begun) * 1e3)
        if time.perf_counter() - started > _LONGEST_S:
            break
    return {name: median(each) for name, each in taken.items()}
