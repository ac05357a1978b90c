"""A circuit breaker: while nobody answers, calls are not made but for a probe now and then."""

from __future__ import annotations

import random
import threading
import time
from typing import Literal

from tiekd_ros.teacher.errors import CircuitOpenError

CircuitState = Literal["closed", "open", "half-open"]
_MOST_DOUBLINGS = 30  # beyond, the power of two says nothing: the cap has been met


class CircuitBreaker:
    """Counts calls without an answer; safe to use from several threads.

    Closed: calls are made. After `break_after` failures in a row it opens: calls are turned away
    until a jittered, growing time has passed. Then it is half-open: one call, the probe, is
    let through; its answer closes the circuit, its failure opens it for longer.

    Args:
        break_after: failures in a row that open it.
        initial_s: longest time to the first probe.
        max_s: longest time between two probes.
    """

    def __init__(self, break_after: int, initial_s: float, max_s: float) -> None:
        self._break_after = break_after
        self._initial_s = initial_s
        self._max_s = max_s
        self._lock = threading.Lock()  # guards all below
        self._failures = 0  # in a row
        self._openings = 0  # since it was closed last
        self._probe_at: float | None = None  # monotonic; None while closed
        self._probing = False
        self._reason = ""

    def enter(self) -> bool:
        """Ask for leave to call; returns whether the call is the probe.

        The caller must report with `succeed`, `fail` or, where the call said nothing, `leave`.

        Raises:
            CircuitOpenError: not now; says when.
        """
        with self._lock:
            if self._probe_at is None:
                return False
            left_s = self._probe_at - time.monotonic()
            if left_s > 0 or self._probing:
                raise CircuitOpenError(
                    f"the teacher is not asked, since it did not answer {self._failures} requests "
                    f"in a row (last: {self._reason})",
                    # A probe under way may end any moment.
                    left_s if left_s > 0 else min(self._initial_s, self._max_s),
                )
            self._probing = True
            return True

    def succeed(self) -> None:
        """Note that somebody answered, whatever the answer was."""
        with self._lock:
            self._failures = self._openings = 0
            self._probe_at = None
            self._probing = False

    def fail(self, reason: str, *, probe: bool) -> float | None:
        """Note that nobody answered.

        Args:
            reason: for the message of calls that are turned away.
            probe: what `enter` returned for this call.

        Returns:
            Seconds to the next probe; None while calls are still made.
        """
        with self._lock:
            self._failures += 1
            self._reason = reason
            if probe:
                self._probing = False
            is_late = self._probe_at is not None and not probe  # began before it opened
            if self._failures >= self._break_after and not is_late:
                self._open()
            if self._probe_at is None:
                return None
            return max(0.0, self._probe_at - time.monotonic())

    def leave(self, *, probe: bool) -> None:
        """Note that a call ended without saying anything about the teacher."""
        if probe:
            with self._lock:
                self._probing = False

    def state(self) -> tuple[CircuitState, float]:
        """Return how it stands, and the seconds to the next probe."""
        with self._lock:
            if self._probe_at is None:
                return "closed", 0.0
            left_s = self._probe_at - time.monotonic()
            return ("open", left_s) if left_s > 0 and not self._probing else ("half-open", 0.0)

    def _open(self) -> None:
        doubled = self._initial_s * 2.0 ** min(self._openings, _MOST_DOUBLINGS)
        self._openings += 1
        # Jitter keeps robots that lost the same server from coming back in step.
        wait_s = min(doubled, self._max_s) * random.uniform(0.5, 1.0)
        self._probe_at = time.monotonic() + wait_s
