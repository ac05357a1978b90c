"""The memory of a node's process, on the host and on its GPUs."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from types import ModuleType

_MB = 1e6


def process_memory_mb() -> float:
    """Return the resident memory of this process; NaN where /proc does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    found = next((line for line in lines if line.startswith("VmRSS:")), "VmRSS: nan kB")
    return float(found.split()[1]) * 1024 / _MB


def gpu_memory_mb() -> tuple[float, float] | None:
    """Return what this process's torch holds on its GPUs, and what is free on these.

    None where it uses none.

    Raises:
        RuntimeError: CUDA is broken.
    """
    torch = _torch_on_cuda()
    if torch is None:
        return None
    held = {each: torch.cuda.memory_reserved(each) for each in range(torch.cuda.device_count())}
    # To ask a GPU that is not in use what it has free would take some hundred MB of it.
    free = [torch.cuda.mem_get_info(each)[0] for each, reserved in held.items() if reserved]
    return sum(held.values()) / _MB, sum(free) / _MB if free else float("nan")


def settle() -> None:
    """Leave what is loaded by now out of garbage collection.

    Looking through torch's and ROS's objects takes 55 to 170 ms, and the whole process stands
    still meanwhile: a stutter in the stream whenever a student is loaded.
    """
    gc.collect()
    gc.freeze()


def give_back() -> None:
    """Free what nobody refers to any more, and give the system and other programs their GPU."""
    settled = gc.get_freeze_count() > 0
    gc.unfreeze()
    gc.collect()
    if settled:
        gc.freeze()
    torch = _torch_on_cuda()
    if torch is not None:
        torch.cuda.empty_cache()


def _torch_on_cuda() -> ModuleType | None:
    torch = sys.modules.get("torch")  # a node without it uses no GPU by it
    return torch if torch is not None and torch.cuda.is_initialized() else None
