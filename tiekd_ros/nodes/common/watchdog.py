"""A program whose executor hangs is ended, so that `respawn` or systemd starts it again.

Fast DDS can fall into an endless loop over a damaged message (seen in 2.14 with an image, reported
of 3.2 too). rclpy holds Python's lock meanwhile: no thread of the program gets a turn, and SIGTERM
has no effect. What still has one is the kernel's alarm clock: the executor winds it up again and
again, and when it rings the process is killed (SIGALRM), its threads' places printed just before.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator

from rclpy.clock import Clock, ClockType
from rclpy.node import Node

LIMIT_S = 60.0
"""An executor that comes to nothing for so long hangs."""
PATIENCE_S = 900.0
"""So long a transition may take: a large student that is exported on a small machine."""
_BEAT_S = 1.0
_BEFORE_S = 0.5
"""How long before the process is killed its threads' places are printed."""


class Watchdog:
    """Ends this process where one of the executors that beat it no longer does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: dict[str, float] = {}  # by node: when it counts as hanging, monotonic seconds

    def guard(self, node: Node) -> None:
        """Watch a node's executor, which spins from now on."""
        name, steady = node.get_fully_qualified_name(), Clock(clock_type=ClockType.STEADY_TIME)
        with self._lock:
            self._ends[name] = math.inf
        node.create_timer(_BEAT_S, lambda: self.beat(name), clock=steady)
        self.beat(name)

    def beat(self, name: str, patience_s: float | None = None) -> None:
        """Say that a watched node's executor works, and will again within so long (LIMIT_S)."""
        now = time.monotonic()
        with self._lock:
            if name not in self._ends:  # it does not spin yet
                return
            self._ends[name] = now + (LIMIT_S if patience_s is None else patience_s)
            left_s = max(min(self._ends.values()) - now, 2 * _BEFORE_S)
            signal.setitimer(signal.ITIMER_REAL, left_s)
            if sys.__stderr__ is not None:
                faulthandler.dump_traceback_later(left_s - _BEFORE_S, file=sys.__stderr__)

    def close(self) -> None:
        """Watch no longer."""
        with self._lock:
            self._ends.clear()
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            faulthandler.cancel_dump_traceback_later()


_running: list[Watchdog] = []


@contextlib.contextmanager
def watching() -> Iterator[Watchdog]:
    """Have a watchdog in this process, which then has no other use of SIGALRM."""
    dog = Watchdog()
    _running.append(dog)
    try:
        yield dog
    finally:
        _running.remove(dog)
        dog.close()


@contextlib.contextmanager
def patience(node: Node) -> Iterator[None]:
    """Let a node's executor be busy for long within this, such as in a transition."""
    name = node.get_fully_qualified_name()
    for dog in _running:
        dog.beat(name, PATIENCE_S)
    try:
        yield
    finally:
        for dog in _running:
            dog.beat(name)
