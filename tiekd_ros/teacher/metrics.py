"""A teacher server's metrics: counted with prometheus_client, shown over plain HTTP.

The protocol's ModelStatistics are read from the same metrics, so that nothing is counted twice.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from http.server import ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import MetricsHandler
from tritonclient.grpc import service_pb2

from tiekd_ros.teacher.errors import TeacherServerError
from tiekd_ros.teacher.protocol import MODEL_NAME, TeacherIdentity

_NAMESPACE = "tiekd_teacher"
_SCRAPER_TIMEOUT_S = 10.0  # a scraper that sends nothing is cut off
_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class ServiceMetrics:
    """Counts and durations of one server's requests since its start; safe from all threads."""

    def __init__(self, identity: TeacherIdentity, max_batch: int) -> None:
        """Start at zero.

        Args:
            identity: the teacher that they are of.
            max_batch: most images that go through the backend together.
        """
        self.registry = CollectorRegistry()
        self._common = {"namespace": _NAMESPACE, "registry": self.registry}
        self._identity = identity
        self._last_request_ms = 0
        self._requests = Counter(
            "requests", "Requests to label an image, by gRPC status.", ["code"], **self._common
        )
        self.labels = Counter("labels", "Images that the backend labelled.", **self._common)
        self.image_bytes = Counter("image_bytes", "Encoded images that came.", **self._common)
        self.answer_bytes = Counter("answer_bytes", "Depth and confidence sent.", **self._common)
        self.unauthenticated = Counter(
            "unauthenticated", "Calls without a valid token.", **self._common
        )
        self._answered = self._seconds(
            "request_seconds", "Requests that were answered, from arrival to answer."
        )
        self._failed = self._seconds(
            "failed_request_seconds", "Requests that were refused or given up."
        )
        self._queue = self._seconds("queue_seconds", "Waiting for the backend, by image.")
        self.decode = self._seconds("decode_seconds", "Decoding, by image.")
        self.encode = self._seconds("encode_seconds", "Writing the answer, by image.")
        self._batches = self._seconds("batch_seconds", "The backend's batches, by size.", ["size"])
        self._batch_sizes = Histogram(
            "batch_size",
            "Images that went through the backend together.",
            buckets=[2**power for power in range((max_batch - 1).bit_length() + 1)],
            **self._common,
        )
        who = Gauge("identity", "The teacher.", ["teacher", "version", "metric"], **self._common)
        who.labels(identity.name, identity.version, str(identity.metric).lower()).set(1)

    def _seconds(self, name: str, text: str, labels: Sequence[str] = ()) -> Histogram:
        return Histogram(name, text, labels, buckets=_BUCKETS_S, **self._common)

    def add_gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Show what `value` returns whenever the metrics are read."""
        Gauge(name, text, **self._common).set_function(value)

    def add_request(self, code: str, duration_s: float) -> None:
        """Count one request from arrival to answer, by the name of its gRPC status."""
        self._last_request_ms = time.time_ns() // 1_000_000
        self._requests.labels(code).inc()
        (self._answered if code == "OK" else self._failed).observe(duration_s)

    def add_batch(self, waits_s: Sequence[float], duration_s: float, labelled: int) -> None:
        """Count images that went through the backend together.

        Args:
            waits_s: how long each of them had waited for it, in seconds.
            duration_s: how long the backend took for all, in seconds.
            labelled: how many of them it gave a label.
        """
        self.labels.inc(labelled)
        self._batch_sizes.observe(len(waits_s))
        self._batches.labels(len(waits_s)).observe(duration_s)
        for wait_s in waits_s:
            self._queue.observe(wait_s)

    def statistics(self) -> service_pb2.ModelStatistics:
        """Return the protocol's message; its durations are in nanoseconds."""
        batches = {int(size): both for size, both in _count_and_ns(self._batches).items()}
        steps = {
            "success": _count_and_ns(self._answered)[""],
            "fail": _count_and_ns(self._failed)[""],
            "queue": _count_and_ns(self._queue)[""],
            "compute_input": _count_and_ns(self.decode)[""],
            # By image: each waits for all of its batch.
            "compute_infer": (
                sum(size * count for size, (count, _) in batches.items()),
                sum(size * ns for size, (_, ns) in batches.items()),
            ),
            "compute_output": _count_and_ns(self.encode)[""],
        }
        message = service_pb2.ModelStatistics(
            name=MODEL_NAME,
            version=self._identity.version,
            last_inference=self._last_request_ms,
            inference_count=int(self.registry.get_sample_value(f"{_NAMESPACE}_labels_total")),
            execution_count=sum(count for count, _ in batches.values()),
        )
        for step, (count, ns) in steps.items():
            stated = getattr(message.inference_stats, step)
            stated.count, stated.ns = count, ns
        for size, (count, ns) in sorted(batches.items()):
            batch = message.batch_stats.add(batch_size=size)
            batch.compute_infer.count, batch.compute_infer.ns = count, ns
        return message


def _count_and_ns(histogram: Histogram) -> dict[str, tuple[int, int]]:
    """Return count and nanoseconds by the value of the one label; by "" where there is none."""
    found: dict[str, dict[str, float]] = {}
    for sample in (sample for metric in histogram.collect() for sample in metric.samples):
        label = sample.labels.get("size", "")
        found.setdefault(label, {})[sample.name.rpartition("_")[2]] = sample.value
    return {label: (int(each["count"]), round(each["sum"] * 1e9)) for label, each in found.items()}


class MetricsServer:
    """Answers GET with the metrics of a registry until it is stopped."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        """Open the port; 0 takes any free one. All who reach it can read the metrics.

        Raises:
            TeacherServerError: the port is taken.
        """
        handler: Any = type(
            "Handler", (MetricsHandler,), {"registry": registry, "timeout": _SCRAPER_TIMEOUT_S}
        )
        try:
            self._server = ThreadingHTTPServer((host, port), handler)
        except OSError as error:
            raise TeacherServerError(
                f"cannot show metrics on {host}:{port}: {error.strerror}; choose another port"
            ) from error
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="teacher_metrics", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
