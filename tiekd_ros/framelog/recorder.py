"""Logging images without ever making the camera's callback wait."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.mailbox import Mailbox
from tiekd_ros.framelog.records import Observation
from tiekd_ros.framelog.store import FrameStore

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecorderSnapshot:
    """The recorder at one moment, for the diagnostics. Counts are since the start."""

    paused: bool
    offered: int
    replaced: int
    """Images that a newer one displaced before the store was free."""
    kept: int
    not_kept: dict[str, int]
    """Images that the policy refused, by reason."""
    errors: int
    last_error: str
    """The last fault's message; it stays after the fault is over."""
    healthy: bool
    """Whether the last image that was taken up met no fault."""


class Recorder:
    """A one-slot mailbox before the store, and the thread that empties it.

    Newest wins: an image that waits is replaced by the next. A store that is locked, full
    or damaged costs the images of that time and nothing else.
    """

    def __init__(self, store: FrameStore, on_kept: Callable[[int], None] | None = None) -> None:
        """Prepare; `start()` starts. `on_kept` gets each stored frame's id, in the thread."""
        self._store = store
        self._on_kept = on_kept
        self._offers: Mailbox[Observation] = Mailbox()
        self._lock = threading.Lock()  # guards all below
        self._paused = False
        self._offered = self._kept = self._errors = 0
        self._not_kept: Counter[str] = Counter()
        self._last_error = ""
        self._healthy = True
        # A daemon: a store that waits for a lock must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)

    def start(self) -> None:
        """Start the thread (once)."""
        self._thread.start()

    def offer(self, observation: Observation) -> None:
        """Offer an image; returns at once. The image must not be changed afterwards."""
        with self._lock:
            if self._paused or self._offers.closed:
                return
            self._offered += 1
            self._offers.put(observation)

    def pause(self) -> None:
        """Take no more images; one that waits is dropped."""
        with self._lock:
            self._paused = True
            self._offers.take(0.0)

    def resume(self) -> None:
        """Take images again."""
        with self._lock:
            self._paused = False

    def stop(self, timeout: float = 2.0) -> bool:
        """Drop what waits, let the write under way end; return whether it did in time."""
        with self._lock:
            self._offers.take(0.0)
            self._offers.close()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def snapshot(self) -> RecorderSnapshot:
        """Return the present state."""
        with self._lock:
            return RecorderSnapshot(
                paused=self._paused,
                offered=self._offered,
                replaced=self._offers.replaced,
                kept=self._kept,
                not_kept=dict(self._not_kept),
                errors=self._errors,
                last_error=self._last_error,
                healthy=self._healthy,
            )

    def _work(self) -> None:
        while (observation := self._offers.take()) is not None:
            try:
                self._record(observation)
            except Exception as error:  # whatever it is, the thread must go on
                self._note(error)

    def _record(self, observation: Observation) -> None:
        verdict = self._store.add(observation)
        with self._lock:
            self._healthy = True
            if verdict.frame_id is None:
                self._not_kept[verdict.reason] += 1
                return
            self._kept += 1
        if self._on_kept is not None:
            self._on_kept(verdict.frame_id)

    def _note(self, error: Exception) -> None:
        text = str(error) if isinstance(error, TiekdError) else f"{type(error).__name__}: {error}"
        with self._lock:
            self._errors += 1
            self._healthy = False
            is_new, self._last_error = text != self._last_error, text
        if is_new:  # the same fault again and again is logged once
            _LOG.warning("frame log: %s", text)
