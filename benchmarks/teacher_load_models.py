"""The teachers of `teacher_load.py`, and the marks that tell their labels apart.

Three kinds of teacher: a Depth Anything network with random weights, written as a checkpoint and
loaded by the `huggingface` backend as any other; one that only waits, as a server does whose
network runs on a GPU; and one that answers at once, to see what all the rest takes.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tiekd_ros.core.images import DepthMap, RgbImage, encode_jpeg
from tiekd_ros.teacher.backend import Backend
from tiekd_ros.teacher.backends import read_backend
from tiekd_ros.teacher.protocol import DepthAnswer, DepthRequest, TeacherIdentity
from tiekd_ros.worlds import IndoorWorld, WorldSettings

WIDTH, HEIGHT = 640, 480
CAMERA = IndoorWorld.default_intrinsics(WIDTH, HEIGHT)
WAITING, INSTANT = "waiting", "instant"
_PICTURES = 8
_SECOND = 1_000_000_000

_BASE = 512  # a mark's digits are read as 1 to 512 m: exact in FP16, and believed by clients
_DIGITS = 3
_FRAME_BITS = 18
_MARK_SHARE = 16  # a digit's field is 1/16 of the map's height and width


def pictures() -> list[RgbImage]:
    """Return what the robots' cameras see: views of the synthetic world, 640x480."""
    world = IndoorWorld(WorldSettings(seed=3))
    step_ns = 5 * _SECOND
    return [world.render(k * step_ns, WIDTH, HEIGHT).image for k in range(_PICTURES)]


def jpegs() -> list[bytes]:
    return [encode_jpeg(image) for image in pictures()]


def stamp_of(robot: int, frame: int) -> int:
    """Return the stamp that names a robot's frame, both below 2^18 and their digits' range."""
    return (robot << _FRAME_BITS) | frame


def write_mark(depth: DepthMap, stamp_ns: int) -> None:
    """Write a stamp into a corner of a map in place: 1.2 % of it, whatever its size later."""
    for number in range(_DIGITS):
        rows, columns = _field(depth.shape, number)
        depth[rows, columns] = 1 + stamp_ns // _BASE**number % _BASE


def read_mark(depth: npt.NDArray[np.floating[Any]]) -> int:
    """Return the stamp that `write_mark` wrote, also after resizing."""
    stamp_ns = 0
    for number in range(_DIGITS):
        rows, columns = _field(depth.shape, number)
        middle = depth[(rows.start + rows.stop) // 2, (columns.start + columns.stop) // 2]
        stamp_ns += (round(float(middle)) - 1) * _BASE**number
    return stamp_ns


def _field(shape: tuple[int, ...], number: int) -> tuple[slice, slice]:
    height, width = shape[0] // _MARK_SHARE, shape[1] // _MARK_SHARE
    return slice(0, height), slice(number * width, (number + 1) * width)


def ramp(low: float, high: float, width: int = WIDTH, height: int = HEIGHT) -> DepthMap:
    """Return a map that grows evenly from left to right, float32 (height, width)."""
    return np.tile(np.linspace(low, high, width, dtype=np.float32), (height, 1))


class WaitingBackend:
    """Waits `first_ms` a batch and `each_ms` an image, and keeps no core busy."""

    identity = TeacherIdentity("waiting", "1", metric=True)

    def __init__(self, first_ms: float, each_ms: float) -> None:
        self._first_s, self._each_s = first_ms / 1e3, each_ms / 1e3
        self._turn = threading.Lock()  # one GPU: two callers do not wait at the same time
        self._depth = ramp(1.0, 9.0)

    def infer(self, image: RgbImage, request: DepthRequest) -> DepthAnswer:
        return self.infer_batch([image], [request])[0]

    def infer_batch(
        self, images: Sequence[RgbImage], requests: Sequence[DepthRequest]
    ) -> list[DepthAnswer]:
        with self._turn:
            time.sleep(self._first_s + self._each_s * len(images))
        return [DepthAnswer(self._depth) for _ in images]


class InstantBackend:
    """Answers at once, always the same."""

    identity = TeacherIdentity("instant", "1", metric=True)

    def __init__(self) -> None:
        self._answer = DepthAnswer(ramp(1.0, 9.0))

    def infer(self, image: RgbImage, request: DepthRequest) -> DepthAnswer:
        return self._answer


def open_model(text: str, device: str) -> Backend:
    """Return a teacher: `instant`, `waiting:FIRST_MS,EACH_MS`, or a backend and its argument."""
    kind, _, argument = text.partition(":")
    if kind == INSTANT:
        return InstantBackend()
    if kind == WAITING:
        first_ms, each_ms = (float(word) for word in argument.split(","))
        return WaitingBackend(first_ms, each_ms)
    return read_backend(text, {"device": device}).build()


class MarkingBackend:
    """A teacher that marks its labels with their frames' stamps, and counts what it did.

    Its depth is tilted as well: random weights give a nearly constant one, which clients refuse.
    """

    def __init__(self, teacher: Backend) -> None:
        self.identity = teacher.identity
        self._teacher = teacher
        self._lock = threading.Lock()
        self._batches: Counter[int] = Counter()
        self._labelled: Counter[int] = Counter()

    def infer(self, image: RgbImage, request: DepthRequest) -> DepthAnswer:
        return self._noted([self._teacher.infer(image, request)], [request])[0]

    def counts(self) -> dict[str, Any]:
        """Return batches by size, images labelled, and how many of them again; start anew."""
        with self._lock:
            labelled, self._labelled = self._labelled, Counter()
            batches, self._batches = self._batches, Counter()
        return {
            "batches": {str(size): count for size, count in sorted(batches.items())},
            "labelled": labelled.total(),
            "again": labelled.total() - len(labelled),
        }

    def _noted(
        self, answers: Sequence[DepthAnswer], requests: Sequence[DepthRequest]
    ) -> list[DepthAnswer]:
        with self._lock:
            self._batches[len(requests)] += 1
            self._labelled.update(request.stamp_ns for request in requests)
        return [_marked(a, r.stamp_ns) for a, r in zip(answers, requests, strict=True)]


class MarkingBatchBackend(MarkingBackend):
    """The same, of a teacher that takes several images at a time."""

    def infer_batch(
        self, images: Sequence[RgbImage], requests: Sequence[DepthRequest]
    ) -> list[DepthAnswer]:
        return self._noted(self._teacher.infer_batch(images, requests), requests)


def marking(teacher: Backend) -> MarkingBackend:
    batches = hasattr(teacher, "infer_batch")
    return MarkingBatchBackend(teacher) if batches else MarkingBackend(teacher)


def _marked(answer: DepthAnswer, stamp_ns: int) -> DepthAnswer:
    height, width = answer.depth.shape
    depth = answer.depth * ramp(0.5, 1.5, width, height)
    write_mark(depth, stamp_ns)
    return DepthAnswer(depth, answer.confidence)
