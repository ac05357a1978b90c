"""Having logged frames labelled by a teacher that may be slow, picky or away.

A few daemon threads (one a request in flight) take frames from the store, oldest first, and
call the injected `ask`. They are no ThreadPoolExecutor, because Python waits for such a
pool's threads at exit: a request that hangs would keep the robot's process from ending.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from tiekd_ros.errors import BadDepthError, TiekdError
from tiekd_ros.frames.errors import UnknownFrameError
from tiekd_ros.frames.records import LoggedFrame
from tiekd_ros.frames.settings import LabellerSettings
from tiekd_ros.frames.store import FrameStore
from tiekd_ros.images import DepthMap

_LOG = logging.getLogger(__name__)
_MOST_DOUBLINGS = 30  # beyond, the power of two says nothing: the cap has been met

LinkState = Literal["idle", "waiting", "ok", "down"]


class RefusedLabel(TiekdError):  # noqa: N818 (an answer, not an error)
    """Raised by `ask`: this frame will never get a good label.

    `reason` is short and fit for counting, such as 'bad_label' or 'too_large'.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class LabelAnswer:
    """What a teacher said of a frame, checked already."""

    depth: DepthMap
    """float32 (h, w), metres, NaN = unknown: the frame's view at any size."""
    confidence: npt.NDArray[np.floating] | None
    """(h, w) in 0..1, where the teacher gives one."""
    teacher_name: str
    teacher_version: str


@dataclass(frozen=True)
class LabellerSnapshot:
    """The labeller at one moment, for the diagnostics."""

    link: LinkState
    """'idle': nothing to label; 'waiting': asked, no answer yet; 'ok': the last request was
    answered; 'down': it failed, and is tried again in `retry_in_s`."""
    labelled: int
    refused: int
    failed: int
    """Requests and writes that failed; their frames stay logged and are asked for again."""
    in_flight: int
    last_error: str
    retry_in_s: float


class Labeller:
    """Labels frames in the background until stopped; an unreachable teacher stops nothing.

    A frame whose request fails stays `logged`, and the others are tried before it comes up
    again: one frame that the teacher cannot digest does not block the rest. While the
    teacher fails, one request at a time probes it, with growing, jittered waits between.
    """

    def __init__(
        self,
        store: FrameStore,
        ask: Callable[[LoggedFrame], LabelAnswer],
        settings: LabellerSettings | None = None,
    ) -> None:
        """Prepare; `start()` starts.

        `ask` is called from several threads at a time and must have a timeout of its own. It
        raises `RefusedLabel` for a frame to reject; any other exception means "not now".
        """
        self._store = store
        self._ask = ask
        self._settings = settings if settings is not None else LabellerSettings()
        self._wake = threading.Condition()  # guards all below
        self._stopping = False
        self._threads: list[threading.Thread] = []
        self._in_flight: set[int] = set()
        self._set_back: set[int] = set()  # failed lately: the others come first
        self._failures = 0  # in a row
        self._retry_at = 0.0  # monotonic
        self._link: LinkState = "idle"
        self._labelled = self._refused = self._failed = 0
        self._last_error = ""

    def start(self) -> None:
        """Start the threads.

        Raises:
            RuntimeError: it was started before.
        """
        if self._threads:
            raise RuntimeError("a labeller can be started once; make a new one")
        self._threads = [
            threading.Thread(target=self._work, name=f"labeller-{number}", daemon=True)
            for number in range(self._settings.in_flight)
        ]
        for thread in self._threads:
            thread.start()

    def notify(self) -> None:
        """Say that a frame was logged. Waits for no request, no write and no teacher."""
        with self._wake:
            self._wake.notify_all()

    def stop(self, timeout: float = 2.0) -> bool:
        """Stop asking; wait at most `timeout` seconds for answers that are under way.

        Returns whether all threads have ended. Close the store afterwards: an answer that
        comes later still finds it closed, and its frame stays logged.
        """
        deadline = time.monotonic() + timeout
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def snapshot(self) -> LabellerSnapshot:
        """Return the present state."""
        with self._wake:
            return LabellerSnapshot(
                link=self._link,
                labelled=self._labelled,
                refused=self._refused,
                failed=self._failed,
                in_flight=len(self._in_flight),
                last_error=self._last_error,
                retry_in_s=max(0.0, self._retry_at - time.monotonic()),
            )

    def _work(self) -> None:
        while (frame := self._next_frame()) is not None:
            try:
                self._label(frame)
            finally:
                with self._wake:
                    self._in_flight.discard(frame.id)
                    self._wake.notify_all()

    def _next_frame(self) -> LoggedFrame | None:
        """Wait for a frame and for leave to ask for it; None at the end."""
        with self._wake:
            while not self._stopping:
                wait_s = self._closed_for_s()
                if wait_s == 0:
                    frame = self._take()
                    if frame is not None:
                        return frame
                    wait_s = self._settings.poll_s
                self._wake.wait(wait_s)
        return None

    def _closed_for_s(self) -> float:
        if self._failures and self._in_flight:
            return self._settings.poll_s  # the probe's end wakes us
        return max(0.0, self._retry_at - time.monotonic())

    def _take(self) -> LoggedFrame | None:
        try:
            frames = self._store.unlabelled(1, skip=self._in_flight | self._set_back)
            if not frames and self._set_back:
                self._set_back.clear()
                frames = self._store.unlabelled(1, skip=self._in_flight)
        except Exception as error:  # whatever it is, the thread must go on
            self._note(error)
            return None
        if frames:
            self._in_flight.add(frames[0].id)
            if self._link == "idle":
                self._link = "waiting"
            return frames[0]
        if not self._in_flight:
            self._link = "idle"
        return None

    def _label(self, frame: LoggedFrame) -> None:
        try:
            answer = self._ask(frame)
        except RefusedLabel as refusal:
            self._answered()
            reason = refusal.reason
            self._save(lambda: self._reject(frame.id, reason))
        except Exception as error:  # whatever it is, the thread must go on
            self._fail(frame, error)
        else:
            self._answered()
            self._save(lambda: self._put(frame.id, answer))

    def _put(self, frame_id: int, answer: LabelAnswer) -> None:
        try:
            self._store.put_label(
                frame_id,
                answer.depth,
                answer.teacher_name,
                answer.teacher_version,
                answer.confidence,
            )
        except BadDepthError as error:
            _LOG.warning("frame %d: %s", frame_id, error)
            self._reject(frame_id, "bad_label")
            return
        with self._wake:
            self._labelled += 1

    def _reject(self, frame_id: int, reason: str) -> None:
        self._store.reject(frame_id, reason)
        with self._wake:
            self._refused += 1

    def _save(self, change: Callable[[], None]) -> None:
        """Store an answer; try again while the store is at fault, for answers are dear."""
        attempt = 0
        while True:
            try:
                change()
                return
            except UnknownFrameError:
                return  # evicted meanwhile
            except Exception as error:  # whatever it is, the thread must go on
                attempt += 1
                with self._wake:
                    self._note(error)
                    if self._stopping:
                        return
                    self._pause(self._delay_s(attempt))

    def _pause(self, delay_s: float) -> None:
        until = time.monotonic() + delay_s
        while not self._stopping and (left := until - time.monotonic()) > 0:
            self._wake.wait(left)

    def _answered(self) -> None:
        with self._wake:
            self._link = "ok"
            self._failures = 0
            self._retry_at = 0.0

    def _fail(self, frame: LoggedFrame, error: Exception) -> None:
        with self._wake:
            self._note(error)
            self._set_back.add(frame.id)
            self._link = "down"
            now = time.monotonic()
            if now >= self._retry_at:  # requests that fail together count as one failure
                self._failures += 1
                self._retry_at = now + self._delay_s(self._failures)

    def _note(self, error: Exception) -> None:
        self._failed += 1
        text = str(error) if isinstance(error, TiekdError) else f"{type(error).__name__}: {error}"
        if text != self._last_error:  # the same fault again and again is logged once
            _LOG.warning("labelling: %s", text)
        self._last_error = text

    def _delay_s(self, attempt: int) -> float:
        # Jitter: robots that lost the same teacher together must not come back together.
        doubled = self._settings.retry_s * 2.0 ** min(attempt - 1, _MOST_DOUBLINGS)
        return min(doubled, self._settings.max_retry_s) * random.uniform(0.5, 1.0)
