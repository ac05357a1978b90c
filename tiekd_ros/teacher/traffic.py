"""What the teacher's answers cost: time and bytes, over the last of them."""

from __future__ import annotations

import math
import threading
from collections import deque
from dataclasses import dataclass

import numpy as np

_WINDOW = 300  # answers


@dataclass(frozen=True)
class TrafficSnapshot:
    """Answers so far, and what the last 300 of them took; NaN where there is none yet."""

    answers: int
    round_trip_p50_s: float
    """From sending an image to having its answer, by a monotonic clock; retries not counted."""
    round_trip_p95_s: float
    bytes_up: float
    """Mean size of an encoded image as it was sent."""
    bytes_down: float
    """Mean size of an answer's message."""


class Traffic:
    """Counts answers; safe to use from several threads."""

    def __init__(self) -> None:
        """Start at zero."""
        self._lock = threading.Lock()
        self._answers = 0
        self._last: deque[tuple[float, int, int]] = deque(maxlen=_WINDOW)

    def add(self, round_trip_s: float, bytes_up: int, bytes_down: int) -> None:
        """Count one answer."""
        with self._lock:
            self._answers += 1
            self._last.append((round_trip_s, bytes_up, bytes_down))

    def snapshot(self) -> TrafficSnapshot:
        """Return the present state."""
        with self._lock:
            answers, last = self._answers, list(self._last)
        if not last:
            return TrafficSnapshot(answers, *(math.nan,) * 4)
        times, up, down = np.array(last, np.float64).T
        p50, p95 = np.percentile(times, (50, 95))
        return TrafficSnapshot(
            answers, float(p50), float(p95), float(up.mean()), float(down.mean())
        )
