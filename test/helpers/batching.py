"""A batcher's callers, and backends that hold still until they are told to go on."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from helpers.children import PATIENCE_S, wait_until
from helpers.teachers import METRIC
from tiekd_ros.core.images import RgbImage
from tiekd_ros.teacher.batcher import Batcher
from tiekd_ros.teacher.errors import BackendRefusal
from tiekd_ros.teacher.metrics import ServiceMetrics
from tiekd_ros.teacher.protocol import DepthAnswer, DepthRequest
from tiekd_ros.teacher.settings import ServiceSettings

__all__ = [
    "LONG_MS",
    "PATIENCE_S",
    "Callers",
    "GatedBackend",
    "SingleBackend",
    "in_the_backend",
    "metres",
    "waiting",
]

LONG_MS = 10_000.0  # no test waits for this delay to pass


class SingleBackend:
    """Labels image n, whose pixels are all n, with n metres; each call waits for `go`."""

    identity = METRIC

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.sizes: list[tuple[int, int]] = []
        self.go = threading.Semaphore(0)
        self.broken: set[int] = set()

    def infer(self, image: RgbImage, request: DepthRequest) -> DepthAnswer:
        (answer,) = self._label([image], [request])
        return answer

    def _label(self, images, requests) -> list[DepthAnswer]:
        numbers = [int(image[0, 0, 0]) for image in images]
        self.batches.append(numbers)
        self.sizes.append(images[0].shape[:2])
        assert len({image.shape for image in images}) == 1
        assert [request.stamp_ns for request in requests] == numbers
        assert self.go.acquire(timeout=PATIENCE_S)
        if self.broken & set(numbers):
            raise BackendRefusal(f"not {self.broken}")
        return [
            DepthAnswer(np.full(image.shape[:2], number, np.float32))
            for image, number in zip(images, numbers, strict=True)
        ]


class GatedBackend(SingleBackend):
    """The same, several images at once."""

    def infer_batch(self, images, requests) -> list[DepthAnswer]:
        return self._label(images, requests)


class Callers:
    """Threads that ask a batcher, in the order in which they were started."""

    def __init__(self, backend, **settings) -> None:
        self._settings = ServiceSettings(**settings)
        self.metrics = ServiceMetrics(METRIC, self._settings.max_batch)
        self.batcher = Batcher(backend, self._settings, self.metrics)
        self._threads = ThreadPoolExecutor(64)

    def ask(self, number: int, *, size=(6, 8), remaining_s=PATIENCE_S, is_active=lambda: True):
        """Ask for one label; returns once the image is waiting, or the call is over."""
        image = np.full((*size, 3), number, np.uint8)
        request = DepthRequest(b"", None, number, "camera")
        before = self.batcher.inside
        asked: Future[DepthAnswer] = self._threads.submit(
            self._label, image, request, remaining_s=remaining_s, is_active=is_active
        )
        wait_until(lambda: asked.done() or self.batcher.inside > before)
        return asked

    def _label(self, image, request, **waiting):
        with self.batcher.place(image.nbytes):
            return self.batcher.submit(image, request, **waiting)

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.batcher.close(0.0)
        self._threads.shutdown()


def metres(asked: Future[DepthAnswer]) -> float:
    """Return the label's first pixel."""
    return float(asked.result(PATIENCE_S).depth[0, 0])


def in_the_backend(backend: SingleBackend, batches: int) -> None:
    """Wait until so many batches have come to the backend."""
    wait_until(lambda: len(backend.batches) == batches)


def waiting(callers: Callers, images: int) -> None:
    """Wait until so many images wait."""
    wait_until(lambda: callers.batcher.waiting == images)
