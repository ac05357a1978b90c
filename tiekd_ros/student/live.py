"""The student that is live: loaded beside the frame's path, exchanged between two frames."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.mailbox import Mailbox
from tiekd_ros.student.registry import StudentRegistry
from tiekd_ros.student.runtimes.base import Runtime
from tiekd_ros.student.runtimes.choosing import RuntimeFactory


@dataclass(frozen=True)
class LiveState:
    """What runs now and what went wrong last; for diagnostics."""

    version: str | None
    error: str
    swaps: int
    swap_started: float  # monotonic seconds
    swap_ended: float
    loading: bool


class LiveStudent:
    """Holds the running student; loads others in a thread of its own.

    Loading, checking, fusing and warming happen in that thread. Going live is one assignment:
    the frame that is being computed ends with the old student, the next begins with the new.

    Args:
        registry: where versions are read from.
        factory: what makes them run.
        on_change: called from the loading thread after a swap or a failed one.
        on_start: called from that thread before each; a request for what runs starts none.
    """

    def __init__(
        self,
        registry: StudentRegistry,
        factory: RuntimeFactory,
        on_change: Callable[[LiveState], None] = lambda state: None,
        on_start: Callable[[], None] = lambda: None,
    ) -> None:
        self._registry = registry
        self._factory = factory
        self._on_change = on_change
        self._on_start = on_start
        self._wanted: Mailbox[str] = Mailbox()
        self._state = LiveState(None, "", 0, 0.0, 0.0, False)
        self.runtime: Runtime | None = None
        self._thread = threading.Thread(
            target=self._load_wanted, name="student-loader", daemon=True
        )
        self._thread.start()

    @property
    def state(self) -> LiveState:
        """A consistent snapshot."""
        return self._state

    def load_pointer(self) -> None:
        """Load the registry's live version; if it is damaged, the latest earlier one that works.

        Leaves no student, and the reason in `state.error`, where there is none to run.
        """
        problems = []
        try:
            live = self._registry.live()
            candidates = [live, *reversed(self._registry.history())] if live else []
        except TiekdError as error:
            candidates, problems = [], [str(error)]
        for version in candidates:
            problem = self._attempt(version)
            if not problem:
                break
            problems.append(problem)
        self._state = replace(self._state, error="; ".join(problems), loading=False)

    def request(self, version: str) -> None:
        """Ask for a version; returns at once. The latest request wins."""
        self._wanted.put(version)

    def close(self) -> None:
        """End the loading thread."""
        self._wanted.close()
        self._thread.join(10.0)

    def _load_wanted(self) -> None:
        while not self._wanted.closed:
            version = self._wanted.take()
            if version is None:
                continue
            if version == self._state.version:  # a rollback to it: what failed is not wanted now
                self._state = replace(self._state, error="")
                continue
            with contextlib.suppress(Exception):
                self._on_start()
            problem = self._attempt(version)
            if problem:
                self._state = replace(
                    self._state, error=problem, swap_ended=time.monotonic(), loading=False
                )
            with contextlib.suppress(Exception):
                self._on_change(self._state)

    def _attempt(self, version: str) -> str:
        """Go live with a version; return what prevented it, or an empty string."""
        try:
            self._exchange(version)
        except TiekdError as error:
            return str(error)
        except Exception as error:  # the device is full, for instance; the thread must go on
            text = f"{type(error).__name__}: {error}"
            return f"student {version} cannot run on {self._factory.device}: {text}"
        return ""

    def _exchange(self, version: str) -> None:
        old, started = self._state, time.monotonic()
        self._state = replace(old, error="", swap_started=started, loading=True)
        runtime = self._factory.make(self._registry.load(version), self.runtime)
        self.runtime = runtime
        swaps = old.swaps + (old.version is not None)
        self._state = LiveState(version, "", swaps, started, time.monotonic(), False)
