"""Counts and durations of a server's requests, in the protocol's own terms."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tritonclient.grpc import service_pb2

STEPS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
"""What is timed: whole requests by outcome; waiting, decoding, labelling and encoding by image."""

BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the classes of a duration's histogram; one more holds what takes longer."""


@dataclass
class Duration:
    """How often something happened and how long that took."""

    count: int = 0
    ns: int = 0
    classes: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))

    def add(self, ns: int) -> None:
        """Count one more."""
        self.count += 1
        self.ns += ns
        self.classes[bisect_left(BOUNDS_S, ns / 1e9)] += 1

    def copy(self) -> Duration:
        """Return a copy that later ones do not change."""
        return Duration(self.count, self.ns, list(self.classes))


@dataclass(frozen=True)
class Counts:
    """All counters at one moment."""

    labelled: int
    """Images that the backend has labelled."""
    codes: dict[str, int]
    """Requests by the name of their gRPC status."""
    batches: dict[int, Duration]
    """What the backend did, by the number of images that went through it together."""
    durations: dict[str, Duration]
    image_bytes: int
    """Encoded images that came."""
    answer_bytes: int
    last_ms: int
    """When the last request came to its end, since 1970; 0 = there was none."""


class Statistics:
    """Thread-safe counters since the server's start; durations in nanoseconds."""

    def __init__(self) -> None:
        """Start at zero."""
        self._lock = threading.Lock()
        self._last_ms = 0
        self._labelled = 0
        self._codes: Counter[str] = Counter()
        self._batches: dict[int, Duration] = {}
        self._durations = {step: Duration() for step in STEPS}
        self._image_bytes = 0
        self._answer_bytes = 0

    def add_request(self, code: str, duration_ns: int) -> None:
        """Count one request from arrival to answer, by the name of its gRPC status."""
        with self._lock:
            self._last_ms = time.time_ns() // 1_000_000
            self._codes[code] += 1
            self._durations["success" if code == "OK" else "fail"].add(duration_ns)

    def add_batch(self, waits_ns: Sequence[int], duration_ns: int, labelled: int) -> None:
        """Count images that went through the backend together.

        Args:
            waits_ns: how long each of them had waited for it.
            duration_ns: how long the backend took for all.
            labelled: how many of them it gave a label.
        """
        with self._lock:
            self._labelled += labelled
            self._batches.setdefault(len(waits_ns), Duration()).add(duration_ns)
            for wait_ns in waits_ns:
                self._durations["queue"].add(wait_ns)
                self._durations["compute_infer"].add(duration_ns)

    def add_input(self, image_bytes: int, duration_ns: int) -> None:
        """Count one image that was decoded."""
        with self._lock:
            self._image_bytes += image_bytes
            self._durations["compute_input"].add(duration_ns)

    def add_output(self, answer_bytes: int, duration_ns: int) -> None:
        """Count one answer that was written."""
        with self._lock:
            self._answer_bytes += answer_bytes
            self._durations["compute_output"].add(duration_ns)

    def counts(self) -> Counts:
        """Return all counters."""
        with self._lock:
            return Counts(
                labelled=self._labelled,
                codes=dict(self._codes),
                batches={size: each.copy() for size, each in sorted(self._batches.items())},
                durations={step: each.copy() for step, each in self._durations.items()},
                image_bytes=self._image_bytes,
                answer_bytes=self._answer_bytes,
                last_ms=self._last_ms,
            )

    def message(self, name: str, version: str) -> service_pb2.ModelStatistics:
        """Return the counters as the protocol's message."""
        counts = self.counts()
        message = service_pb2.ModelStatistics(
            name=name,
            version=version,
            last_inference=counts.last_ms,
            inference_count=counts.labelled,
            execution_count=sum(each.count for each in counts.batches.values()),
        )
        for step, duration in counts.durations.items():
            stated = getattr(message.inference_stats, step)
            stated.count, stated.ns = duration.count, duration.ns
        for size, duration in counts.batches.items():
            batch = message.batch_stats.add(batch_size=size)
            batch.compute_infer.count, batch.compute_infer.ns = duration.count, duration.ns
        return message
