"""Drift: labels disagree with the live student by more than when it went live.

A change detector (CUSUM, Page 1954) on the logarithm of each label's AbsRel: what it exceeds the
student's held-out AbsRel by, less a slack, is summed up, never below 0; drift is where the sum
passes a threshold. One label counts for no more than its share, so a lie or two prove nothing.
docs/learning.md has how soon it is noticed, and how seldom in vain.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable

_SLACK = 0.25  # of ln AbsRel: a quarter more is no drift
_THRESHOLD = 3.0
_MOST = 1.0  # what one label counts for
_LAST = 20
"""Labels over which the disagreement is told; and the first ones of a student without scores."""


class DriftDetector:
    """Compares labels with the student that is live; safe to use from several threads.

    Args:
        held_out_abs_rel: returns a version's AbsRel on held-out frames, None where none is known.
    """

    def __init__(self, held_out_abs_rel: Callable[[str], float | None]) -> None:
        self._held_out_abs_rel = held_out_abs_rel
        self._lock = threading.Lock()  # guards all below
        self._version: str | None = None
        self._begin(None)

    def _begin(self, usual: float | None) -> None:
        self._usual, self._sum = usual, 0.0
        self._last: deque[float] = deque(maxlen=_LAST)

    def add(self, version: str, abs_rel: float) -> None:
        """Note by how much a label and the student disagree.

        Args:
            version: of the student.
            abs_rel: mean of |label - student| / label over the frame.
        """
        with self._lock:
            if version != self._version:
                self._version = version
                self._begin(self._held_out_abs_rel(version))
            self._last.append(abs_rel)
            if self._usual is None:
                if len(self._last) == _LAST:
                    self._usual = sum(self._last) / _LAST
                return
            excess = math.log(max(abs_rel, 1e-6) / max(self._usual, 1e-6))
            self._sum = max(0.0, self._sum + max(-_MOST, min(excess, _MOST)) - _SLACK)

    def restart(self) -> None:
        """Count anew, as when a round starts."""
        with self._lock:
            self._sum = 0.0

    @property
    def disagreement(self) -> float:
        """Mean AbsRel between the last labels and the student; NaN where there is none."""
        with self._lock:
            return sum(self._last) / len(self._last) if self._last else math.nan

    def found(self, live: str | None) -> str | None:
        """Return what has drifted, None where nothing has.

        Args:
            live: the version that is live; what is known of another one says nothing.
        """
        with self._lock:
            if self._sum <= _THRESHOLD or self._usual is None or live != self._version:
                return None
            last = sum(self._last) / len(self._last)
            return (
                f"labels disagree with student {self._version} by AbsRel {last:.2f}, "
                f"{self._usual:.2f} when it went live"
            )
