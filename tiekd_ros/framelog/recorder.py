"""The frame log's side of a live stream: pausing, counting, and faults that pass."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.framelog.records import Observation
from tiekd_ros.framelog.store import FrameStore

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecorderSnapshot:
    """The recorder at one moment, for the diagnostics. Counts are since the start."""

    paused: bool
    offered: int
    kept: int
    not_kept: dict[str, int]
    """Images that the policy refused, by reason."""
    errors: int
    last_error: str
    """The last fault's message; it stays after the fault is over."""
    healthy: bool
    """Whether the last image met no fault."""


class Recorder:
    """Stores the images of a live stream, unless it is paused.

    A store that is locked, full or damaged costs the images of that time and nothing else.
    `record` takes as long as the store does, so it has a thread of its caller's to itself; all
    else may be called from any thread.

    Args:
        store: where images are kept.
        on_kept: called with the id of each stored frame, in the thread of `record`.
    """

    def __init__(self, store: FrameStore, on_kept: Callable[[int], None] | None = None) -> None:
        self._store = store
        self._on_kept = on_kept
        self._lock = threading.Lock()  # guards all below
        self._paused = False
        self._offered = self._kept = self._errors = 0
        self._not_kept: Counter[str] = Counter()
        self._last_error = ""
        self._healthy = True

    def record(self, observation: Observation) -> None:
        """Store an image if it is worth keeping; a fault is counted and logged, not raised."""
        with self._lock:
            if self._paused:
                return
            self._offered += 1
        try:
            self._add(observation)
        except Exception as error:  # whatever it is, the next image may do better
            self._note(error)

    def pause(self) -> None:
        """Store no more images; one that is being stored is finished."""
        with self._lock:
            self._paused = True

    def resume(self) -> None:
        """Store images again."""
        with self._lock:
            self._paused = False

    def snapshot(self) -> RecorderSnapshot:
        """Return the present state."""
        with self._lock:
            return RecorderSnapshot(
                paused=self._paused,
                offered=self._offered,
                kept=self._kept,
                not_kept=dict(self._not_kept),
                errors=self._errors,
                last_error=self._last_error,
                healthy=self._healthy,
            )

    def _add(self, observation: Observation) -> None:
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
