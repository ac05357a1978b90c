"""Counts and durations of a server's requests, in the protocol's own terms."""

from __future__ import annotations

import threading
import time

from tritonclient.grpc import service_pb2


class Statistics:
    """Thread-safe counters since the server's start; durations in nanoseconds."""

    def __init__(self) -> None:
        """Start at zero."""
        self._lock = threading.Lock()
        self._last_ms = 0
        self._labelled = 0
        self._durations = {"success": [0, 0], "fail": [0, 0], "compute_infer": [0, 0]}

    def add_request(self, succeeded: bool, duration_ns: int) -> None:
        """Count one request from arrival to answer."""
        with self._lock:
            self._last_ms = time.time_ns() // 1_000_000
            self._add("success" if succeeded else "fail", duration_ns)

    def add_inference(self, duration_ns: int) -> None:
        """Count one image that the backend labelled."""
        with self._lock:
            self._labelled += 1
            self._add("compute_infer", duration_ns)

    def message(self, name: str, version: str) -> service_pb2.ModelStatistics:
        """Return the counters as the protocol's message."""
        with self._lock:
            message = service_pb2.ModelStatistics(
                name=name,
                version=version,
                last_inference=self._last_ms,
                inference_count=self._labelled,
                execution_count=self._labelled,
            )
            for key, (count, duration_ns) in self._durations.items():
                duration = getattr(message.inference_stats, key)
                duration.count, duration.ns = count, duration_ns
        return message

    def _add(self, key: str, duration_ns: int) -> None:
        self._durations[key][0] += 1
        self._durations[key][1] += duration_ns
