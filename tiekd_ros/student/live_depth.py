"""The live student's depth of a logged frame, for a label to be compared with."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.images import DepthMap, RgbImage, decode_image
from tiekd_ros.core.labels import StudentDepth
from tiekd_ros.student.registry import StudentRegistry
from tiekd_ros.student.runtimes.base import Runtime
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime

_LOG = logging.getLogger(__name__)


class LiveStudentDepth:
    """Runs the registry's live student on one CPU thread; the GPU is the depth node's.

    May be called from several threads, which take turns.
    """

    def __init__(self, registry: StudentRegistry) -> None:
        """Prepare; the first call loads the student."""
        self._registry = registry
        self._lock = threading.Lock()
        self._version: str | None = None
        self._runtime: Runtime | None = None
        self._has_failed = False  # this version, at least once

    def __call__(self, image: bytes, size: tuple[int, int]) -> StudentDepth | None:
        """Return the student's depth at a (height, width); None where none can be run.

        Args:
            image: encoded, as the frame log has it; decoded only where a student is live.
            size: (height, width) of the answer.

        Raises:
            BadImageError: the image cannot be decoded.
        """
        with self._lock, _one_thread():
            runtime = self._current()
            if runtime is None:
                return None
            depth = self._predict(runtime, decode_image(image), size)
            if depth is None:
                return None
            bins = runtime.card.bins
            return StudentDepth(depth, self._version or "", bins.min_depth_m, bins.max_depth_m)

    def _current(self) -> Runtime | None:
        try:
            live = self._registry.live()
        except TiekdError:
            return None  # the announcer says why
        if live != self._version:
            self._version, self._runtime, self._has_failed = live, None, False
            if live is not None:
                self._runtime = self._load(live)
        return self._runtime

    def _predict(self, runtime: Runtime, image: RgbImage, size: tuple[int, int]) -> DepthMap | None:
        try:
            return runtime.predict(image, size, confidence=False).depth
        except Exception as error:  # whatever it is, the label is taken without the comparison
            if not self._has_failed:
                _LOG.warning("labels are not compared with student %s: %s", self._version, error)
            self._has_failed = True
            return None

    def _load(self, version: str) -> Runtime | None:
        try:
            return TorchRuntime(self._registry.load(version), "cpu", owned=True)
        except Exception as error:  # whatever it is, labels are taken without the comparison
            _LOG.warning("labels are not compared with student %s: %s", version, error)
            return None


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread in the block: all others belong to the stream and to training."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
