"""The labeller: waiting frames get their labels from a teacher that may be slow, picky or away.

It alone decides when a request is repeated. A few daemon threads (one a request in flight) take
frames from a queue, oldest first, and ask a label source. They are no ThreadPoolExecutor, because
Python waits for such a pool's threads at exit: a request that hangs would keep the robot's process
from ending.
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
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tiekd_ros.core.errors import BadDepthError, TiekdError
from tiekd_ros.core.labels import FrameToLabel, Label, LabelRejected, TeacherUnavailable
from tiekd_ros.framelog.schema import UnknownFrameError
from tiekd_ros.framelog.settings import LabellerSettings

LinkState = Literal["idle", "waiting", "ok", "down"]


class LabelQueue(Protocol):
    """The frames that wait for labels, and where these go; a `FrameStore`, for example."""

    def unlabelled(self, limit: int, skip: Collection[int] = ()) -> Sequence[FrameToLabel]:
        """Return up to `limit` waiting frames, oldest first, without those of `skip`."""
        ...

    def put_label(self, frame_id: int, label: Label) -> None:
        """Keep a label. Raises BadDepthError where it cannot be kept: the frame is rejected."""
        ...

    def reject(self, frame_id: int, reason: str) -> None:
        """Note that a frame gets no label."""
        ...


class SuspectTeacherError(TiekdError):
    """A teacher's labels are rejected again and again: it is at fault, not the frames."""

    def __init__(self, count: int, rejection: LabelRejected) -> None:
        """Say so; `count` rejections had no believed label between them."""
        who = f" {rejection.teacher}" if rejection.teacher else ""
        super().__init__(
            f"the teacher{who} is suspect: its last {count} labels were refused (last: "
            f"{rejection}); frames wait until one is believed"
        )


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


class RetryState:
    """Failed requests in a row, and the wait before the next. The labeller's lock guards it."""

    def __init__(self, settings: LabellerSettings) -> None:
        self.state: LinkState = "idle"
        self.suspect = False
        """It is down since the teacher answers, but nothing that is believed."""
        self.failures = 0
        """In a row."""
        self.failed = 0
        """Since the start, the store's faults too."""
        self.error: Exception | None = None
        """Of the last request that failed, or of the queue."""
        self._settings = settings
        self._retry_at = 0.0  # monotonic
        self._said_at = -math.inf  # monotonic
        self._starting_until = time.monotonic() + settings.starting_s

    @property
    def last_error(self) -> str:
        """The error in words; empty where there was none."""
        if self.error is None or isinstance(self.error, TiekdError):
            return str(self.error or "")
        return f"{type(self.error).__name__}: {self.error}"

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
            if isinstance(error, TeacherUnavailable) and error.retry_after_s is not None:
                delay_s = error.retry_after_s * random.uniform(0.5, 1.0)
            self._retry_at = now + delay_s

    def note(self, error: Exception, *, news: bool = False, level: int = logging.WARNING) -> None:
        """Count an error, and log it now and then; at once where it is `news`."""
        self.failed += 1
        self.error = error
        now = time.monotonic()
        # Not by the text: it says how long was waited, and so differs each time.
        if news or now - self._said_at >= _SAY_AGAIN_S:
            self._said_at = now
            _LOG.log(level, "labelling: %s", self.last_error)

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

    A frame without a label that can be believed is rejected. Where one teacher's labels are
    rejected again and again, with none believed between, the teacher is suspected instead:
    frames wait as if it were away.

    Args:
        queue: the frames that wait, and where their labels go.
        label: the label source, called from several threads at a time, with a deadline of its
            own. It raises LabelRejected for a frame to reject and TeacherUnavailable where no
            frame gets a label now; any other exception means "this frame later".
        settings: how patiently.
        on_result: called from a thread with the id of each frame that is labelled (None) or
            rejected; where it is left out, rejections are logged.
    """

    def __init__(
        self,
        queue: LabelQueue,
        label: Callable[[Any], Label],
        settings: LabellerSettings | None = None,
        on_result: Callable[[int, LabelRejected | None], None] | None = None,
    ) -> None:
        self._queue = queue
        self._label_source = label
        self._settings = settings if settings is not None else LabellerSettings()
        self._on_result = on_result or _log_rejection
        self._wake = threading.Condition()  # guards all below
        self._stopping = self._paused = False
        self._threads: list[threading.Thread] = []
        self._in_flight: set[int] = set()
        self._set_back: set[int] = set()  # failed lately: the others come first
        self._failing: dict[int, Exception] = {}  # frames without an answer, and their last error
        self._retry = RetryState(self._settings)
        self._is_empty = False  # nothing waits, and nothing is in flight
        self._queue_fault: Exception | None = None
        self._labelled = 0
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

    def label_all(self, give_up_after: int) -> dict[int, Exception]:
        """Start, label all that waits, and stop.

        Args:
            give_up_after: failures in a row after which it ends; the labels stay.

        Returns:
            Frames that kept failing while others were labelled, by id, and their last errors.

        Raises:
            TiekdError: the teacher is away, or suspect; or the queue is at fault.
        """
        self.start()
        try:
            with self._wake:
                while not self._is_empty:
                    if self._queue_fault is not None:
                        raise self._queue_fault
                    if self._retry.suspect or self._retry.failures >= give_up_after:
                        return self._failing_frames()
                    self._wake.wait(self._settings.poll_s)
            return {}
        finally:
            self.stop()  # answers under way are taken, where they come soon

    def _failing_frames(self) -> dict[int, Exception]:
        """Return the frames that wait, where each of them fails by itself; else raise."""
        error = self._retry.error
        assert error is not None
        is_teacher = isinstance(error, TeacherUnavailable | SuspectTeacherError)
        if is_teacher or not self._labelled or self._queue.unlabelled(1, skip=self._failing):
            raise error
        return dict(self._failing)

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
                link=self._retry.state,
                labelled=self._labelled,
                refused=self._refusals.total(),
                failed=self._retry.failed,
                in_flight=len(self._in_flight),
                last_error=self._retry.last_error,
                retry_in_s=self._retry.retry_in_s(),
                refusals=dict(self._refusals),
                refused_in_a_row=self._refused_in_a_row,
                last_refusal=self._last_refusal,
                suspect=self._retry.suspect,
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

    def _next_frame(self) -> FrameToLabel | None:
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
        if self._paused or (self._retry.failures and self._in_flight):
            return self._settings.poll_s  # `resume` or the probe's end wakes us
        return self._retry.retry_in_s()

    def _take(self) -> FrameToLabel | None:
        try:
            frames = self._queue.unlabelled(1, skip=self._in_flight | self._set_back)
            if not frames and self._set_back:
                self._set_back.clear()
                frames = self._queue.unlabelled(1, skip=self._in_flight)
        except Exception as error:  # whatever it is, the thread must go on
            self._note_queue_fault(error)
            return None
        was_empty, self._is_empty = self._is_empty, not frames and not self._in_flight
        if frames:
            self._in_flight.add(frames[0].id)
            if self._retry.state == "idle":
                self._retry.state = "waiting"
            return frames[0]
        if self._is_empty:
            self._retry.state = "idle"
            if not was_empty:  # else idle threads would wake each other for ever
                self._wake.notify_all()
        return None

    def _label(self, frame: FrameToLabel) -> None:
        try:
            label = self._label_source(frame)
        except LabelRejected as rejection:
            self._refuse(frame, rejection)
        except Exception as error:  # whatever it is, the thread must go on
            self._fail(frame, error)
        else:
            self._save(lambda: self._put(frame, label))

    def _put(self, frame: FrameToLabel, label: Label) -> None:
        teacher = f"{label.teacher_name} {label.teacher_version}"
        try:
            self._queue.put_label(frame.id, label)
        except BadDepthError as error:
            self._refuse(frame, LabelRejected("bad_label", str(error), teacher=teacher))
            return
        self._answered()
        with self._wake:
            self._failing.pop(frame.id, None)
            self._labelled += 1
            self._refused_in_a_row = 0
            self._refused_of.pop(teacher, None)  # another that is ill beside it stays suspected
        self._on_result(frame.id, None)

    def _refuse(self, frame: FrameToLabel, rejection: LabelRejected) -> None:
        with self._wake:
            self._last_refusal = str(rejection)
            if rejection.asked:
                self._refused_in_a_row += 1
                self._refused_of[rejection.teacher] += 1
            count = self._refused_of[rejection.teacher] if rejection.asked else 0
        if 0 < self._settings.suspect_after < count:
            self._fail(frame, SuspectTeacherError(count, rejection))
            return
        if rejection.asked:
            self._answered()
        self._save(lambda: self._reject(frame.id, rejection))

    def _reject(self, frame_id: int, rejection: LabelRejected) -> None:
        self._queue.reject(frame_id, rejection.reason)
        with self._wake:
            self._failing.pop(frame_id, None)
            self._refusals[rejection.reason] += 1
        self._on_result(frame_id, rejection)

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
                    self._note_queue_fault(error)
                    if self._stopping:
                        return
                    self._wake.wait_for(lambda: self._stopping, self._retry.delay_s(attempt))

    def _answered(self) -> None:
        with self._wake:
            self._retry.answered()

    def _fail(self, frame: FrameToLabel, error: Exception) -> None:
        with self._wake:
            self._retry.fail(error)
            self._set_back.add(frame.id)
            self._failing[frame.id] = error

    def _note_queue_fault(self, error: Exception) -> None:
        self._queue_fault = self._queue_fault or error
        self._retry.note(error)
        self._wake.notify_all()


def _log_rejection(frame_id: int, rejection: LabelRejected | None) -> None:
    if rejection is not None:
        _LOG.warning(
            "frame %d gets no label (%s): %s", frame_id, rejection.reason, rejection.detail
        )


def _give_way() -> None:
    """Let this thread have the processor after the stream; elsewhere than on Linux it may not."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            thread = threading.get_native_id()
            niceness = max(_NICENESS, os.getpriority(os.PRIO_PROCESS, thread))
            os.setpriority(os.PRIO_PROCESS, thread, niceness)
