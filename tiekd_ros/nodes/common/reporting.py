"""Diagnostics: the report of a node, and the rates, percentiles and memory in it."""

from __future__ import annotations

import math
import socket
import sys
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from tiekd_ros.diagnosis import facts, keys
from tiekd_ros.diagnosis.thresholds import DiagnosticSettings, Limit

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR

Finding = tuple[bytes, str]
"""A level (OK, WARN, ERROR) and a text with what to do."""

_LEVELS = {facts.OK: OK, facts.WARN: WARN, facts.ERROR: ERROR}


def as_reported(findings: Iterable[facts.Finding]) -> list[Finding]:
    """Return findings as (level of DiagnosticStatus, text with its remedy)."""
    return [(_LEVELS[each.level], each.text) for each in findings]


class Report:
    """Collects what is known into one DiagnosticStatus; the worst finding gives the level.

    An empty `hardware_id` stands for the host's name.
    """

    def __init__(self, name: str, hardware_id: str = "") -> None:
        hardware_id = hardware_id or socket.gethostname()
        self._status = DiagnosticStatus(level=OK, name=name, hardware_id=hardware_id)
        self._messages: list[tuple[bytes, str]] = []

    def add(self, values: Mapping[str, Any]) -> None:
        """Add values to show; floats with three decimals."""
        for key, value in values.items():
            text = f"{value:.3f}" if isinstance(value, float) else str(value)
            self._status.values.append(KeyValue(key=key, value=text))

    def find(self, level: bytes, message: str) -> None:
        """Add a finding."""
        self._status.level = max(self._status.level, level)
        self._messages.append((level, message))

    def find_all(self, findings: Iterable[Finding]) -> None:
        """Add several findings."""
        for level, message in findings:
            self.find(level, message)

    def hold(self, limit: Limit, value: float, what: str, remedy: str) -> None:
        """Add a finding where a value has reached a limit.

        Args:
            limit: the two levels.
            value: what is measured; NaN where it is unknown.
            what: the value in words, such as `drops 31 % of the images`.
            remedy: what would do.
        """
        level = limit.level(value)
        if level:
            reached = limit.error if level == "error" else limit.warn
            text = f"{what}, limit {reached:g}; {remedy}"
            self.find(ERROR if level == "error" else WARN, text)

    def check_memory(self, settings: DiagnosticSettings) -> None:
        """Add the memory of this process, and what is found of it."""
        memory = process_memory_mb()
        self.add({keys.MEMORY: memory})
        remedy = "see what grows, or raise diagnostics.memory_mb_*"
        self.hold(settings.limit("memory_mb"), memory, f"takes {memory:.0f} MB", remedy)
        try:
            gpu = gpu_memory_mb()
        except RuntimeError as error:  # a GPU that is broken must not silence the rest
            reason = (str(error).splitlines() or [""])[0]
            self.find(ERROR, f"the GPU does not answer ({reason}); start the node anew")
            return
        if gpu is not None:
            held, free = gpu
            self.add({keys.GPU_MEMORY: held, keys.GPU_MEMORY_FREE: free})
            limit = settings.limit("gpu_memory_mb")
            remedy = "see what else uses the GPU, or raise diagnostics.gpu_memory_mb_*"
            self.hold(limit, held, f"takes {held:.0f} MB of the GPU", remedy)

    def status(self, fine: str = "") -> DiagnosticStatus:
        """Return the message, the worst first; `fine` is its text where nothing was found."""
        worst_first = sorted(self._messages, key=lambda each: each[0], reverse=True)
        self._status.message = "; ".join(text for _, text in worst_first) or fine or "ok"
        return self._status


class Rate:
    """Events a second over the last few seconds."""

    def __init__(self, window_s: float = 5.0) -> None:
        self._window_s = window_s
        self._times: deque[float] = deque()
        self._lock = threading.Lock()
        self.total = 0

    def tick(self, now_s: float) -> None:
        """Count one event at a monotonic time."""
        with self._lock:
            self.total += 1
            self._times.append(now_s)
            while self._times and now_s - self._times[0] > self._window_s:
                self._times.popleft()

    def value(self, now_s: float) -> float:
        """Return events a second; 0 where there was none in the window."""
        with self._lock:
            recent = [t for t in self._times if now_s - t <= self._window_s]
        if len(recent) < 2:
            return len(recent) / self._window_s
        return (len(recent) - 1) / max(recent[-1] - recent[0], 1e-9)


class Percentiles:
    """Percentiles of the last values: `window` at most, none older than `window_s`."""

    def __init__(self, window: int = 300, window_s: float = math.inf) -> None:
        self._window_s = window_s
        self._values: deque[tuple[float, float]] = deque(maxlen=window)

    def add(self, value: float, now_s: float) -> None:
        """Remember a value that came at a monotonic time."""
        self._values.append((now_s, value))

    def at(self, percent: float, now_s: float) -> float:
        """Return a percentile; NaN where there is no value."""
        values = [value for when, value in tuple(self._values) if now_s - when <= self._window_s]
        return float(np.percentile(values, percent)) if values else math.nan


class Share:
    """The share that one count grew of another's growth over the last seconds."""

    def __init__(self, window_s: float = 10.0) -> None:
        self._window_s = window_s
        self._counts: deque[tuple[float, int, int]] = deque()
        self._lock = threading.Lock()

    def add(self, now_s: float, part: int, whole: int) -> None:
        """Remember both counts' values at a monotonic time."""
        with self._lock:
            self._counts.append((now_s, part, whole))
            while now_s - self._counts[0][0] > self._window_s:
                self._counts.popleft()

    def value(self) -> float:
        """Return part / whole, 0..1; NaN where the whole did not grow.

        A part that went back, since it is counted anew, counts as none.
        """
        with self._lock:
            (_, part0, whole0), (_, part1, whole1) = self._counts[0], self._counts[-1]
        grown = max(part1 - part0, 0)
        return grown / (whole1 - whole0) if whole1 > whole0 else math.nan


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
    torch = torch_on_cuda()
    if torch is None:
        return None
    held = {each: torch.cuda.memory_reserved(each) for each in range(torch.cuda.device_count())}
    # To ask a GPU that is not in use what it has free would take some hundred MB of it.
    free = [torch.cuda.mem_get_info(each)[0] for each, reserved in held.items() if reserved]
    return sum(held.values()) / _MB, sum(free) / _MB if free else float("nan")


def torch_on_cuda() -> ModuleType | None:
    """Return torch where this process uses a GPU by it."""
    torch = sys.modules.get("torch")  # a node without it uses no GPU by it
    return torch if torch is not None and torch.cuda.is_initialized() else None
