"""The CPU cores of this process, torch's device, and the names of the runtimes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tiekd_ros.core.errors import InvalidSettingError

if TYPE_CHECKING:
    import torch

_CPUS = Path("/sys/devices/system/cpu")


def cores() -> int:
    """Return the number of physical cores among the CPUs that this process may run on.

    Hardware threads of one core count as one: they share what computes. Where the kernel does
    not say which belong together, each counts.
    """
    try:
        cpus = os.sched_getaffinity(0)  # taskset, cpusets and containers leave fewer than all
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1
    return len({_core_of(cpu) for cpu in cpus})


def half_the_cores() -> int:
    """Return half of `cores`, at least 1: what inference and training beside it take each."""
    return max(1, cores() // 2)


def _core_of(cpu: int) -> str:
    """Return the list of all hardware threads of a CPU's core."""
    try:
        return (_CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def choose_device(name: str) -> torch.device:
    """Return the torch device for `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        InvalidSettingError: there is no such device on this machine.
    """
    import torch  # gigabytes and a second, which only those who compute pay

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = None
    with contextlib.suppress(RuntimeError):
        device = torch.device(name)
    if device is None or device.type not in ("cpu", "cuda"):
        raise InvalidSettingError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidSettingError(
            f"device {name!r} was asked for, but torch {torch.__version__} sees no CUDA device; "
            "set device to auto or cpu, or install a torch with CUDA and a driver that fits it"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InvalidSettingError(
            f"device {name!r} was asked for, but torch sees {torch.cuda.device_count()} GPUs, "
            "which are counted from 0"
        )
    return device


AUTO, TORCH, ONNXRUNTIME = "auto", "torch", "onnxruntime"
RUNTIMES = (AUTO, TORCH, ONNXRUNTIME)
