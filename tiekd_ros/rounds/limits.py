"""Resource limits of training: its priority, threads, GPU memory, and pauses for the depth node.

Does not import torch by itself: a process has to give way before it spends seconds on imports.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tiekd_ros.core.devices import cores, half_the_cores
from tiekd_ros.core.settings import Settings, TextEnum, setting

NICENESS = {"idle": 19, "batch": 10}
"""By scheduling class. At 10, a busy process of normal niceness gets about nine times as much."""

_AUTOGROUP = Path("/proc/self/autogroup")


@dataclass(frozen=True)
class ResourceSettings(Settings):
    """How training gives way to the depth node on the same machine."""

    scheduling: str = setting(
        "batch",
        "which part of busy cores training gets: a small share in any case (batch), or only what "
        "no other process wants (idle)",
        choices=("batch", "idle"),
    )
    gpu_memory_share: float = setting(
        0.5, "part of a GPU's memory that training may take", minimum=0.05, maximum=1.0
    )
    guard: bool = setting(
        True, "training is paused while the depth node's p95 latency is over its budget"
    )
    latency_budget_ms: float = setting(
        0.0,
        "budget of the depth node's p95 latency; 0 = latency_factor times what it was while no "
        "round was running: a round that begins right after a restart is not paused, since "
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
    longest_pause_s: float = setting(
        10.0,
        "where the latency stays over its budget although training is paused this long, training "
        "is not the cause, and is resumed",
        unit="s",
        minimum=0.0,
        maximum=3600.0,
    )


def lower_priority(scheduling: str) -> None:
    """Give way to others on the cores, the disk, and a GPU that MPS shares out.

    What a kernel or a container refuses stays as it is. With `idle` the disk serves everyone
    else first: a process's I/O class follows SCHED_IDLE.

    Args:
        scheduling: as in `ResourceSettings`.
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


def limit_resources(settings: ResourceSettings, threads: int, device: str) -> None:
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

    from tiekd_ros.core.devices import choose_device

    torch.set_num_threads(threads)
    chosen = choose_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(settings.gpu_memory_share, chosen.index or 0)


def default_threads(*, inference: bool) -> int:
    """Return how many CPU threads training takes where no setting says.

    Half the cores beside inference, which takes the other half: more threads would wait for the
    one whose core inference took. All of them otherwise.
    """
    return half_the_cores() if inference else cores()


class GuardState(TextEnum):
    """What the latency guard knows and has done."""

    MONITORING = "monitoring"
    PAUSED = "paused"
    NOT_THE_CAUSE = "not the cause"
    UNKNOWN = "no latency known"
    OFF = "off"


_SILENCE_S = 5.0
"""A node that said nothing for this long is gone, or has nothing to measure."""
_AFTERWARDS_S = 8.0
"""The node's p95 is over seconds: for so long after a round it still knows the training."""
_KEPT = 30
_LEAST = 3
_APART_S = 0.8
"""The node reports each second, and once more after a swap: sooner, it says the same again."""
_OVER_IN_A_ROW = 2
"""A single report, such as the one right after a swap, is no reason to pause.

It does not take two slow moments: the node's p95 looks back over seconds, so that readings
overlap, and one burst of slow images that is long enough for a p95 is in several of them.
"""
_BACK_SHARE = 0.92
"""Training is resumed below this share of the budget, so that noise does not decide."""
_LEAST_SLACK_MS = 1.0
"""Less does not matter; a fast node's p95 varies by more than a quarter."""


class LatencyGuard:
    """Decides when training is paused, from the depth node's p95 latency.

    It is paused after two readings in a row over the budget, and resumed after one clearly below
    it, or when the node falls silent. Where a pause does not help, training is not the cause: it
    is resumed, and not paused again before the latency was below the budget once.

    Args:
        settings: returns the budget, and how long to believe in it; may change at any time.
    """

    def __init__(self, settings: Callable[[], ResourceSettings]) -> None:
        self._settings = settings
        self.state = GuardState.UNKNOWN
        self.p95_ms: float | None = None
        self._read_s = -math.inf
        self._calm: deque[float] = deque(maxlen=_KEPT)  # p95 while nothing was trained
        self._busy_until_s = -math.inf
        self._over = 0
        self._since_s = -math.inf

    @property
    def budget_ms(self) -> float | None:
        """The budget; None where it is automatic and no latency is known from before."""
        settings = self._settings()
        if settings.latency_budget_ms > 0:
            return settings.latency_budget_ms
        if len(self._calm) < _LEAST:
            return None
        calm = median(self._calm)
        return max(calm * settings.latency_factor, calm + _LEAST_SLACK_MS)

    def add_reading(self, p95_ms: float, now_s: float, *, training: bool) -> None:
        """Add a reading of the depth node's p95; one that repeats the last is ignored.

        Args:
            p95_ms: the reading; not finite = the node has nothing to measure, no reading.
            now_s: monotonic time.
            training: whether a round runs on this machine.
        """
        is_new = math.isfinite(p95_ms) and now_s - self._read_s >= _APART_S
        if is_new:
            self.p95_ms, self._read_s = p95_ms, now_s
            if not training and now_s - self._busy_until_s > _AFTERWARDS_S:
                self._calm.append(p95_ms)
        self._note(now_s, training)
        budget = self.budget_ms
        if is_new and training and budget is not None:
            self._judge(p95_ms, budget, now_s)

    def should_pause(self, now_s: float, *, training: bool) -> bool:
        """Return whether a running round has to be paused now; ask at least once a second."""
        self._note(now_s, training)
        return self.state == GuardState.PAUSED

    def describe(self) -> str:
        """Return state and numbers, for people."""
        budget, p95 = self.budget_ms, self.p95_ms
        if budget is None or p95 is None or self.state in (GuardState.OFF, GuardState.UNKNOWN):
            return str(self.state)
        return f"{self.state}: p95 {p95:.1f} ms, budget {budget:.1f} ms"

    def _note(self, now_s: float, training: bool) -> None:
        """Follow what changes without a reading: rounds, settings, the node's silence."""
        if training:
            self._busy_until_s = now_s
        if not self._settings().guard:
            self._become(GuardState.OFF, now_s)
        elif now_s - self._read_s > _SILENCE_S or self.budget_ms is None:
            self._become(GuardState.UNKNOWN, now_s)
        elif not training or self.state in (GuardState.OFF, GuardState.UNKNOWN):
            self._become(GuardState.MONITORING, now_s)

    def _judge(self, p95_ms: float, budget: float, now_s: float) -> None:
        over = p95_ms > budget
        self._over = self._over + 1 if over else 0
        paused_s = now_s - self._since_s
        if self.state == GuardState.MONITORING and self._over >= _OVER_IN_A_ROW:
            self._become(GuardState.PAUSED, now_s)
        elif (
            self.state in (GuardState.PAUSED, GuardState.NOT_THE_CAUSE)
            and p95_ms <= budget * _BACK_SHARE
        ):
            self._become(GuardState.MONITORING, now_s)
        elif self.state == GuardState.PAUSED and paused_s >= self._settings().longest_pause_s:
            self._become(GuardState.NOT_THE_CAUSE if over else GuardState.MONITORING, now_s)

    def _become(self, state: GuardState, now_s: float) -> None:
        self.state, self._since_s, self._over = state, now_s, 0
