"""Queue of images before the backend, and the threads that take batches of them to it.

Oldest first: a batch is the image that has waited longest and those of its size behind it. An
image waits `batch_delay_ms` for others while the backend is idle; while it is busy, batches fill
by themselves. A request whose caller is gone or whose deadline has passed never reaches the
backend.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tiekd_ros.core.images import RgbImage
from tiekd_ros.teacher.backend import Backend, label_all, takes_batches
from tiekd_ros.teacher.errors import (
    BackendRefusal,
    BusyError,
    CallerGoneError,
    LateError,
    StoppingError,
)
from tiekd_ros.teacher.metrics import ServiceMetrics
from tiekd_ros.teacher.protocol import DepthAnswer, DepthRequest
from tiekd_ros.teacher.settings import ServiceSettings

# A caller's own clock for its deadline runs ahead by the time that the request took to get here: a
# call that ends so shortly before the deadline has waited for it.
_CLOCK_LEAD_S = 0.25
_LONGEST_WAIT_S = 600.0  # for callers without a deadline
_CALLER_CHECK_S = 0.25  # so often a waiting request asks whether its caller is still there
_MAX_FAILED_BATCHES = 5  # in a row: by then it is not the images
_STOPPING = "the teacher server is about to end; ask again later, or another one"


@dataclass(eq=False)
class QueuedRequest:
    """One image on its way through the batcher."""

    image: RgbImage | None  # None once it is labelled: an answer must not keep it in memory
    request: DepthRequest
    size: tuple[int, int]
    arrived_s: float  # on the monotonic clock, as `deadline_s`
    deadline_s: float
    is_active: Callable[[], bool]
    done: threading.Event = field(default_factory=threading.Event)
    outcome: DepthAnswer | Exception | None = None

    def finish(self, outcome: DepthAnswer | Exception) -> None:
        """Hand the outcome to the thread that waits, and let the pixels go."""
        self.image = None
        self.outcome = outcome
        self.done.set()

    def cancel_reason(self) -> BusyError | None:
        """Return why it need not be labelled any more; None where it does."""
        left_s = self.deadline_s - time.monotonic()
        if left_s > 0 and self.is_active():
            return None
        if left_s > _CLOCK_LEAD_S:
            return CallerGoneError("the caller has given up")
        return LateError(
            "the backend did not come to this image before the request's deadline; try later"
        )


class Batcher:
    """Labels images from many threads with one backend, in batches where it can.

    A caller takes a `place`, decodes its image, and calls `submit` inside.
    """

    def __init__(
        self, backend: Backend, settings: ServiceSettings, metrics: ServiceMetrics
    ) -> None:
        """Start `settings.workers` threads that wait for images; `close` ends them."""
        self._backend = backend
        self._metrics = metrics
        self._largest = settings.max_batch if takes_batches(backend) else 1
        self._delay_s = settings.batch_delay_ms / 1000.0 if self._largest > 1 else 0.0
        self.places = settings.max_waiting + settings.workers * self._largest
        """Requests that are inside at most: waiting, or with the backend."""
        self._settings = settings
        self._changed = threading.Condition()  # guards all that follows
        self.inside = 0
        """Requests that have a place: being decoded, waiting, or with the backend."""
        self.held_bytes = 0
        """Memory of those inside: their pixels, and what they came in."""
        self._queue: list[QueuedRequest] = []
        self._busy_since: dict[int, float] = {}
        self._failures = 0
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"teacher_backend_{index}", daemon=True)
            for index in range(settings.workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Number of decoded images that wait for the backend."""
        return len(self._queue)

    def busy_s(self) -> float:
        """Return for how long the backend has been at its present batch; 0 while it is idle."""
        with self._changed:
            now = time.monotonic()
            return now - min(self._busy_since.values(), default=now)

    @property
    def broken(self) -> bool:
        """True where only a new start may help: no image has been labelled for several batches.

        Refusals do not count. A label ends it; a thread that is dead does not come back.
        """
        dead = not all(thread.is_alive() for thread in self._threads)
        return dead or self._failures >= _MAX_FAILED_BATCHES

    @contextmanager
    def place(self, size: int) -> Iterator[Callable[[int], None]]:
        """Hold one of the places, for a request that takes `size` bytes of memory.

        Yields:
            A function that takes note of bytes that were let go before the end.

        Raises:
            BusyError: there is none, or the requests inside take all the memory they may.
            StoppingError: the batcher is closed.
        """

        def release(part: int) -> None:
            nonlocal size
            with self._changed:
                size -= part
                self.held_bytes -= part

        with self._changed:
            self._require_room(size)
            self.inside += 1
            self.held_bytes += size
        try:
            yield release
        finally:
            release(size)
            with self._changed:
                self.inside -= 1

    def submit(
        self,
        image: RgbImage,
        request: DepthRequest,
        *,
        remaining_s: float | None,
        is_active: Callable[[], bool],
    ) -> DepthAnswer:
        """Label one image for which a place is held; blocks until it is done or too late.

        Args:
            image: uint8 RGB (H, W, 3).
            request: what came with it.
            remaining_s: time until the caller's deadline; None = it has none.
            is_active: says whether the caller still waits; asked from several threads.

        Raises:
            LateError: the backend did not come to it in time.
            CallerGoneError: the caller has given up.
            StoppingError: the batcher is closed.
            Exception: whatever the backend raised for this image, BackendRefusal for example.
        """
        now = time.monotonic()
        wait_s = _LONGEST_WAIT_S if remaining_s is None else min(remaining_s, _LONGEST_WAIT_S)
        queued = QueuedRequest(
            image=image,
            request=request,
            size=(image.shape[0], image.shape[1]),
            arrived_s=now,
            deadline_s=now + wait_s,
            is_active=is_active,
        )
        with self._changed:
            if self._closed:
                raise StoppingError(_STOPPING)
            self._queue.append(queued)
            self._changed.notify_all()
        while not queued.done.wait(
            min(_CALLER_CHECK_S, max(0.0, queued.deadline_s - time.monotonic()))
        ):
            if reason := queued.cancel_reason():
                self._remove(queued)
                raise reason
        outcome, queued.outcome = queued.outcome, None
        if isinstance(outcome, DepthAnswer):
            return outcome
        assert outcome is not None
        try:
            raise outcome
        finally:
            del outcome  # the error holds this frame: a ring of both would keep the image

    def close(self, grace_s: float = 0.0) -> bool:
        """Take nothing new, label what waits for `grace_s` at most, then refuse the rest.

        Returns whether the backend is at no batch then: a running batch cannot be interrupted.
        """
        deadline_s = time.monotonic() + grace_s
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        with self._changed:
            left, self._queue = self._queue, []
        for queued in left:
            queued.finish(StoppingError(_STOPPING))
        return not self._busy_since

    def _require_room(self, size: int) -> None:
        if self._closed:
            raise StoppingError(_STOPPING)
        if self.inside >= self.places:
            raise BusyError(
                f"{self._settings.max_waiting} requests wait already (max_waiting); try later"
            )
        limit_mb = self._settings.max_waiting_mb
        # One is always let in, however large: max_pixels and max_image_mb judge that.
        if self.inside and self.held_bytes + size > limit_mb << 20:
            raise BusyError(
                f"those that wait may take {limit_mb} MiB together (max_waiting_mb); try later"
            )

    def _remove(self, queued: QueuedRequest) -> None:
        with self._changed:
            if queued in self._queue:  # else it is with the backend, whose answer goes unread
                self._queue.remove(queued)

    def _work(self) -> None:
        while batch := self._next_batch():
            self._run(batch)
            del batch  # its answers are the callers' now

    def _next_batch(self) -> list[QueuedRequest]:
        """Wait for images and take a batch of them; empty once closed and none waits."""
        with self._changed:
            while True:
                if not self._queue:
                    if self._closed:
                        return []
                    self._changed.wait()
                    continue
                left_s = self._queue[0].arrived_s + self._delay_s - time.monotonic()
                batch = self._oldest_of_one_size()
                if len(batch) < self._largest and left_s > 0 and not self._closed:
                    self._changed.wait(left_s)
                    continue
                batch = self._take(batch)
                if batch:
                    self._busy_since[threading.get_ident()] = time.monotonic()
                    return batch

    def _oldest_of_one_size(self) -> list[QueuedRequest]:
        size = self._queue[0].size
        return [queued for queued in self._queue if queued.size == size][: self._largest]

    def _take(self, batch: list[QueuedRequest]) -> list[QueuedRequest]:
        """Take a batch out of the queue; return those of it that are not cancelled."""
        taken = set(map(id, batch))
        self._queue = [queued for queued in self._queue if id(queued) not in taken]
        kept = []
        for queued in batch:
            if reason := queued.cancel_reason():
                queued.finish(reason)
            else:
                kept.append(queued)
        return kept

    def _run(self, batch: list[QueuedRequest]) -> None:
        started_s = time.monotonic()
        outcomes: list[DepthAnswer | Exception]
        try:
            images = [queued.image for queued in batch if queued.image is not None]
            outcomes = label_all(self._backend, images, [queued.request for queued in batch])
            if len(outcomes) != len(batch):
                raise RuntimeError(f"{len(outcomes)} answers came for {len(batch)} images")
        except Exception as error:
            outcomes = [error for _ in batch]
        duration_s = time.monotonic() - started_s
        labelled = sum(isinstance(outcome, DepthAnswer) for outcome in outcomes)
        refused = sum(isinstance(outcome, BackendRefusal) for outcome in outcomes)
        with self._changed:
            del self._busy_since[threading.get_ident()]
            if labelled:
                self._failures = 0
            elif refused < len(outcomes):
                self._failures += 1
        waits_s = [started_s - queued.arrived_s for queued in batch]
        self._metrics.add_batch(waits_s, duration_s, labelled)
        for queued in batch:
            queued.finish(outcomes.pop(0))  # an error's frames lead to this one: none leads back
