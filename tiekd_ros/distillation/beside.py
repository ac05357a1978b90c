"""Training beside inference on one machine: how the training process gives way.

Does not import torch by itself: a process has to give way before it spends seconds on imports.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from tiekd_ros.cores import cores, half_the_cores
from tiekd_ros.settings import Settings, setting

NICENESS = {"idle": 19, "batch": 10}
"""By scheduling class. At 10, a busy process of normal niceness gets about nine times as much."""

_AUTOGROUP = Path("/proc/self/autogroup")


@dataclass(frozen=True)
class BesideSettings(Settings):
    """How training gives way to the depth node on the same machine."""

    scheduling: str = setting(
        "batch",
        "which part of busy cores training gets: a small share in any case (batch), or only what "
        "nobody else wants (idle)",
        choices=("batch", "idle"),
    )
    gpu_memory_share: float = setting(
        0.5, "part of a GPU's memory that training may take", minimum=0.05, maximum=1.0
    )
    guard: bool = setting(
        True, "training rests while the depth node's p95 latency is over its budget"
    )
    latency_budget_ms: float = setting(
        0.0,
        "budget of the depth node's p95 latency; 0 = latency_factor times what it was while no "
        "round was running: a round that begins right after a restart does not rest, since "
        "nothing was measured yet; give a number where that matters",
        unit="ms",
        minimum=0.0,
        maximum=60_000.0,
    )
    latency_factor: float = setting(
        1.25,
        "budget where latency_budget_ms is 0, in multiples of the p95 latency while no round was "
        "running",
        minimum=1.0,
        maximum=100.0,
    )
    longest_rest_s: float = setting(
        10.0,
        "where the latency stays over its budget although training rests this long, training is "
        "not the cause, and goes on",
        unit="s",
        minimum=0.0,
        maximum=3600.0,
    )


def lower_priority(scheduling: str) -> None:
    """Give way to others on the cores, the disk, and a GPU that MPS shares out.

    What a kernel or a container refuses stays as it is. With `idle` the disk serves everyone
    else first: a process's I/O class follows SCHED_IDLE.

    Args:
        scheduling: as in `BesideSettings`.
    """
    with contextlib.suppress(OSError):
        os.nice(max(0, NICENESS[scheduling] - os.nice(0)))
    policy = "SCHED_IDLE" if scheduling == "idle" else "SCHED_BATCH"
    with contextlib.suppress(OSError, AttributeError):  # Linux has them
        os.sched_setscheduler(0, getattr(os, policy), os.sched_param(0))
    if os.getsid(0) == os.getpid():
        # Kernels with autogroups (a desktop's) share the cores out equally among sessions first;
        # niceness counts within one. So the session is niced too, where it is this process's own.
        with contextlib.suppress(OSError):
            _AUTOGROUP.write_text(str(NICENESS[scheduling]))
    os.environ.setdefault("CUDA_MPS_CLIENT_PRIORITY", "1")  # below normal


def limit_resources(settings: BesideSettings, threads: int, device: str) -> None:
    """Limit the CPU threads of torch, and its share of the GPU's memory.

    Training runs on the default stream, whose priority is the lowest that CUDA has.

    Args:
        settings: the limits.
        threads: CPU threads.
        device: where training runs, as for `choose_device`.

    Raises:
        InvalidSettingError: there is no such device.
    """
    import torch

    from tiekd_ros.devices import choose_device

    torch.set_num_threads(threads)
    chosen = choose_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(settings.gpu_memory_share, chosen.index or 0)


def default_threads(*, inference: bool) -> int:
    """Return how many CPU threads training takes where nobody says.

    Half the cores beside inference, which takes the other half: more threads would wait for the
    one whose core inference took. All of them otherwise.
    """
    return half_the_cores() if inference else cores()
