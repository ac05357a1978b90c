"""Rates and latencies of a stream, for diagnostics."""

from __future__ import annotations

import math
import threading
from collections import deque

import numpy as np


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
    """Percentiles of the last values.

    Args:
        window: how many values at most.
        window_s: how old they may be.
    """

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
    """The share that one count grew of another's growth over the last seconds.

    Args:
        window_s: how far to look back.
    """

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
