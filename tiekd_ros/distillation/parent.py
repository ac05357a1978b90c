"""The process that started the worker, as the worker hears it: on its standard input."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

PAUSE, RESUME = "pause", "resume"
"""What the parent may say, one a line."""


class Parent:
    """Listens to the parent: training rests from `pause` to `resume`; at its death, it ends.

    Args:
        emit: gets a `resting` event when a rest begins, and one when it is over.
    """

    def __init__(self, emit: Callable[[dict[str, Any]], None]) -> None:
        self._emit = emit
        self._may_train = threading.Event()
        self._may_train.set()

    def listen(self) -> None:
        """Listen in a thread of its own, until standard input closes; then end this process."""
        threading.Thread(target=self._listen, name="parent", daemon=True).start()

    def rest(self) -> float:
        """Block while training has to rest, and return the seconds that this took."""
        if self._may_train.is_set():
            return 0.0
        self._emit({"event": "resting", "resting": True, "seconds": 0.0})
        start = time.monotonic()
        self._may_train.wait()
        seconds = time.monotonic() - start
        self._emit({"event": "resting", "resting": False, "seconds": seconds})
        return seconds

    def _listen(self) -> None:
        begun = b""
        while said := os.read(0, 4096):  # not sys.stdin: its lock would trouble Python's own end
            *lines, begun = (begun + said).split(b"\n")
            for line in lines:
                if line == PAUSE.encode():
                    self._may_train.clear()
                elif line == RESUME.encode():
                    self._may_train.set()
        os._exit(3)
