"""Having logged frames labelled by a teacher that may be slow, picky or away.

A few daemon threads (one a request in flight) take frames from the store, oldest first, and
call the injected `ask`. They are no ThreadPoolExecutor, because Python waits for such a
pool's threads at exit: a request that hangs would keep the robot's process from ending.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from tiekd_ros.core.errors import BadDepthError, TiekdError
from tiekd_ros.core.images import DepthMap
from tiekd_ros.framelog.records import LoggedFrame
from tiekd_ros.framelog.schema import UnknownFrameError
from tiekd_ros.framelog.settings import LabellerSettings
from tiekd_ros.framelog.store import FrameStore

LinkState = Literal["idle", "waiting", "ok", "down"]


class RefusedLabel(TiekdError):  # noqa: N818 (an answer, not an error)
    """Raised by `ask`: this frame will never get a good label."""

    def __init__(
        self, reason: str, detail: str = "", *, teacher: str = "", asked: bool = True
    ) -> None:
        """Say why.

        Args:
            reason: short and fit for counting, such as 'bad_label' or 'too_large'.
            detail: says more to people.
            teacher: name and version of who was asked; one that refuses everything is suspected.
            asked: False where the frame itself is at fault, and no teacher was asked.
        """
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.teacher = teacher
        self.asked = asked


class NotNow(TiekdError):  # noqa: N818 (an answer, not an error)
    """Raised by `ask`: nobody can label anything before `retry_in_s` seconds have passed."""

    def __init__(self, text: str, retry_in_s: float) -> None:
        super().__init__(text)
        self.retry_in_s = retry_in_s


class SuspectTeacherError(TiekdError):
    """A teacher's labels are refused again and again: it is at fault, not the frames."""

    def __init__(self, count: int, refusal: RefusedLabel) -> None:
        """Say so; `count` refusals had no believed label between them."""
        who = f" {refusal.teacher}" if refusal.teacher else ""
        super().__init__(
            f"the teacher{who} is suspect: its last {count} labels were refused (last: {refusal}); "
            "frames wait until one is believed"
        )


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
    refusals: dict[str, int]
    """Labels refused since the start, by reason."""
    refused_in_a_row: int
    """Answers since the last label that was kept."""
    last_refusal: str
    suspect: bool
    """The link is 'down' since the teacher answers, but nothing that is believed."""


_LOG = logging.getLogger(__name__)
_MOST_DOUBLINGS = 30  # beyond, the power of two says nothing: the cap has been met
_SAY_AGAIN_S = 60.0


class TeacherLink:
    """Counts failures and waits longer after each. The labeller's lock guards it."""

    def __init__(self, settings: LabellerSettings) -> None:
        self.state: LinkState = "idle"
        self.suspect = False
        """It is down since the teacher answers, but nothing that is believed."""
        self.failures = 0
        """In a row."""
        self.failed = 0
        """Since the start, the store's faults too."""
        self.last_error = ""
        self._settings = settings
        self._retry_at = 0.0  # monotonic
        self._said_at = -math.inf  # monotonic
        self._starting_until = time.monotonic() + settings.starting_s

    def retry_in_s(self) -> float:
        """Return how long to leave the teacher alone from now on."""
        return max(0.0, self._retry_at - time.monotonic())

    def answered(self) -> None:
        """Take note of an answer."""
        self.state = "ok"
        self._starting_until = 0.0
        self.suspect = False
        self.failures = 0
        self._retry_at = 0.0

    def fail(self, error: Exception) -> None:
        """Take note of a request that failed."""
        suspect = isinstance(error, SuspectTeacherError)
        starting = not suspect and time.monotonic() < self._starting_until
        news = self.state != "down" or suspect != self.suspect
        self.note(error, news=news, level=logging.INFO if starting else logging.WARNING)
        self.state = "down"
        self.suspect = suspect
        now = time.monotonic()
        if now >= self._retry_at:  # requests that fail together count as one failure
            self.failures += 1
            delay_s = self.delay_s(self.failures)
            if isinstance(error, NotNow):
                delay_s = error.retry_in_s
            self._retry_at = now + delay_s

    def note(self, error: Exception, *, news: bool = False, level: int = logging.WARNING) -> None:
        """Count an error, and log it now and then; at once where it is `news`."""
        self.failed += 1
        text = str(error) if isinstance(error, TiekdError) else f"{type(error).__name__}: {error}"
        now = time.monotonic()
        # Not by the text: it says how long was waited, and so differs each time.
        if news or now - self._said_at >= _SAY_AGAIN_S:
            self._said_at = now
            _LOG.log(level, "labelling: %s", text)
        self.last_error = text

    def delay_s(self, attempt: int) -> float:
        """Return how long to wait after so many failures in a row."""
        # Jitter: robots that lost the same teacher together must not come back together.
        doubled = self._settings.retry_s * 2.0 ** min(attempt - 1, _MOST_DOUBLINGS)
        return min(doubled, self._settings.max_retry_s) * random.uniform(0.5, 1.0)


_NICENESS = 10  # the stream of depth comes first


class Labeller:
    """Labels frames in the background until stopped; an unreachable teacher stops nothing.

    A frame whose request fails stays `logged`, and the others are tried before it comes up
    again: one frame that the teacher cannot digest does not block the rest. While the
    teacher fails, one request at a time probes it, with growing, jittered waits between.

    A refused frame is rejected. Where one teacher's labels are refused again and again, with
    none believed between, the teacher is suspected instead: frames wait as if it were away.
    """

    def __init__(
        self,
        store: FrameStore,
        ask: Callable[[LoggedFrame], LabelAnswer],
        settings: LabellerSettings | None = None,
    ) -> None:
        """Prepare; `start()` starts.

        `ask` is called from several threads at a time and must have a timeout of its own. It
        raises `RefusedLabel` for a frame to reject and `NotNow` where it knows when to come
        back; any other exception means "later".
        """
        self._store = store
        self._ask = ask
        self._settings = settings if settings is not None else LabellerSettings()
        self._wake = threading.Condition()  # guards all below
        self._stopping = self._paused = False
        self._threads: list[threading.Thread] = []
        self._in_flight: set[int] = set()
        self._set_back: set[int] = set()  # failed lately: the others come first
        self._link = TeacherLink(self._settings)
        self._labelled = self._refused = 0
        self._refusals: Counter[str] = Counter()
        self._refused_in_a_row = 0
        self._refused_of: Counter[str] = Counter()  # in a row, by teacher
        self._last_refusal = ""

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

    def pause(self) -> None:
        """Ask for no more labels until `resume`; answers under way are taken."""
        with self._wake:
            self._paused = True

    def resume(self) -> None:
        """Ask again."""
        with self._wake:
            self._paused = False
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
                link=self._link.state,
                labelled=self._labelled,
                refused=self._refused,
                failed=self._link.failed,
                in_flight=len(self._in_flight),
                last_error=self._link.last_error,
                retry_in_s=self._link.retry_in_s(),
                refusals=dict(self._refusals),
                refused_in_a_row=self._refused_in_a_row,
                last_refusal=self._last_refusal,
                suspect=self._link.suspect,
            )

    def _work(self) -> None:
        _give_way()
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
        if self._paused or (self._link.failures and self._in_flight):
            return self._settings.poll_s  # `resume` or the probe's end wakes us
        return self._link.retry_in_s()

    def _take(self) -> LoggedFrame | None:
        try:
            frames = self._store.unlabelled(1, skip=self._in_flight | self._set_back)
            if not frames and self._set_back:
                self._set_back.clear()
                frames = self._store.unlabelled(1, skip=self._in_flight)
        except Exception as error:  # whatever it is, the thread must go on
            self._link.note(error)
            return None
        if frames:
            self._in_flight.add(frames[0].id)
            if self._link.state == "idle":
                self._link.state = "waiting"
            return frames[0]
        if not self._in_flight:
            self._link.state = "idle"
        return None

    def _label(self, frame: LoggedFrame) -> None:
        try:
            answer = self._ask(frame)
        except RefusedLabel as refusal:
            self._refuse(frame, refusal)
        except Exception as error:  # whatever it is, the thread must go on
            self._fail(frame, error)
        else:
            self._save(lambda: self._put(frame, answer))

    def _put(self, frame: LoggedFrame, answer: LabelAnswer) -> None:
        teacher = f"{answer.teacher_name} {answer.teacher_version}"
        try:
            self._store.put_label(
                frame.id,
                answer.depth,
                answer.teacher_name,
                answer.teacher_version,
                answer.confidence,
            )
        except BadDepthError as error:
            _LOG.warning("frame %d: %s", frame.id, error)
            self._refuse(frame, RefusedLabel("bad_label", str(error), teacher=teacher))
            return
        self._answered()
        with self._wake:
            self._labelled += 1
            self._refused_in_a_row = 0
            self._refused_of.pop(teacher, None)  # another that is ill beside it stays suspected

    def _refuse(self, frame: LoggedFrame, refusal: RefusedLabel) -> None:
        with self._wake:
            self._last_refusal = str(refusal)
            if refusal.asked:
                self._refused_in_a_row += 1
                self._refused_of[refusal.teacher] += 1
            count = self._refused_of[refusal.teacher] if refusal.asked else 0
        if count > self._settings.suspect_after:
            self._fail(frame, SuspectTeacherError(count, refusal))
            return
        if refusal.asked:
            self._answered()
        self._save(lambda: self._reject(frame.id, refusal.reason))

    def _reject(self, frame_id: int, reason: str) -> None:
        self._store.reject(frame_id, reason)
        with self._wake:
            self._refused += 1
            self._refusals[reason] += 1

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
                    self._link.note(error)
                    if self._stopping:
                        return
                    self._pause(self._link.delay_s(attempt))

    def _pause(self, delay_s: float) -> None:
        until = time.monotonic() + delay_s
        while not self._stopping and (left := until - time.monotonic()) > 0:
            self._wake.wait(left)

    def _answered(self) -> None:
        with self._wake:
            self._link.answered()

    def _fail(self, frame: LoggedFrame, error: Exception) -> None:
        with self._wake:
            self._link.fail(error)
            self._set_back.add(frame.id)


def _give_way() -> None:
    """Let this thread have the processor after the stream; elsewhere than on Linux it may not."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            thread = threading.get_native_id()
            niceness = max(_NICENESS, os.getpriority(os.PRIO_PROCESS, thread))
            os.setpriority(os.PRIO_PROCESS, thread, niceness)
