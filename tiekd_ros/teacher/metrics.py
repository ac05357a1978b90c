"""The server's numbers for Prometheus, over plain HTTP on an address of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from typing import Any

from tiekd_ros.teacher.errors import TeacherServerError
from tiekd_ros.teacher.service import TeacherService
from tiekd_ros.teacher.statistics import BOUNDS_S, Duration

_PREFIX = "tiekd_teacher"
_SILENCE_S = 10.0  # a scraper that says nothing is cut off
_DURATIONS = {
    "request_seconds": ("Requests that were answered, from arrival to answer.", "success"),
    "queue_seconds": ("Waiting for the backend, by image.", "queue"),
    "decode_seconds": ("Decoding, by image.", "compute_input"),
    "encode_seconds": ("Writing the answer, by image.", "compute_output"),
}


class MetricsServer:
    """Answers GET with the metrics of one service until it is stopped."""

    def __init__(
        self,
        service: TeacherService,
        host: str,
        port: int,
        refused: Callable[[], int],
        certificate_left_s: Callable[[], float] | None = None,
    ) -> None:
        """Open the port; 0 takes any free one.

        Args:
            service: whose numbers are shown.
            host: address to listen on; everybody who reaches it can read the numbers.
            port: the port.
            refused: returns the calls without a valid token.
            certificate_left_s: returns for how many seconds the certificate still holds; None
                without TLS.

        Raises:
            TeacherServerError: prometheus_client is not installed, or the port is taken.
        """
        try:
            from prometheus_client import CollectorRegistry
            from prometheus_client.exposition import MetricsHandler
        except ImportError as error:
            raise TeacherServerError(
                "metrics need the package prometheus-client: pip install prometheus-client, or "
                "leave out --metrics-port"
            ) from error
        registry = CollectorRegistry()
        registry.register(_Collector(service, refused, certificate_left_s))
        handler = type("Handler", (MetricsHandler,), {"registry": registry, "timeout": _SILENCE_S})
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


class _Collector:
    """Reads the service's counters whenever somebody asks; nothing is counted twice."""

    def __init__(
        self,
        service: TeacherService,
        refused: Callable[[], int],
        certificate_left_s: Callable[[], float] | None,
    ) -> None:
        self._service = service
        self._refused = refused
        self._certificate_left_s = certificate_left_s

    def describe(self) -> list[Any]:
        """Return nothing: the names need not be checked against other collectors."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield all metrics."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        service, counts = self._service, self._service.statistics.counts()
        requests = CounterMetricFamily(
            f"{_PREFIX}_requests", "Requests to label an image, by gRPC status.", labels=["code"]
        )
        for code, count in sorted(counts.codes.items()):
            requests.add_metric([code], count)
        yield requests
        for name, text, number in (
            ("labels", "Images that the backend labelled.", counts.labelled),
            ("image_bytes", "Encoded images that came.", counts.image_bytes),
            ("answer_bytes", "Depth and confidence that went.", counts.answer_bytes),
            ("unauthenticated", "Calls without a valid token.", self._refused()),
        ):
            yield CounterMetricFamily(f"{_PREFIX}_{name}", text, value=number)
        for name, text, value in (
            ("ready", "1 = requests are answered.", float(service.ready)),
            ("inside", "Requests that have a place.", service.batcher.inside),
            ("waiting", "Decoded images that wait for the backend.", service.batcher.waiting),
            ("held_bytes", "Memory of those inside.", service.batcher.held_bytes),
            ("places", "Requests that can have a place.", service.batcher.places),
            ("busy_seconds", "Time at the present batch.", service.batcher.busy_s()),
        ):
            yield GaugeMetricFamily(f"{_PREFIX}_{name}", text, value=value)
        if self._certificate_left_s is not None:
            yield GaugeMetricFamily(
                f"{_PREFIX}_certificate_left_seconds",
                "Until the server's certificate expires; negative once it has.",
                value=self._certificate_left_s(),
            )
        for name, (text, step) in _DURATIONS.items():
            yield _durations(name, text, counts.durations[step])
        yield _durations("batch_seconds", "The backend's batches.", _sum(counts.batches))
        yield _batch_sizes(counts.batches)
        identity = service.identity
        info = GaugeMetricFamily(
            f"{_PREFIX}_identity", "Who the teacher is.", labels=["teacher", "version", "metric"]
        )
        info.add_metric([identity.name, identity.version, str(identity.metric).lower()], 1)
        yield info


def _durations(name: str, text: str, duration: Duration) -> Any:
    from prometheus_client.core import HistogramMetricFamily

    buckets, total = [], 0
    for bound, count in zip((*BOUNDS_S, float("inf")), duration.classes, strict=True):
        total += count
        buckets.append((_bound(bound), total))
    return HistogramMetricFamily(
        f"{_PREFIX}_{name}", text, buckets=buckets, sum_value=duration.ns / 1e9
    )


def _batch_sizes(batches: dict[int, Duration]) -> Any:
    from prometheus_client.core import HistogramMetricFamily

    largest = max(batches, default=1)
    bounds = [float(2**power) for power in range((largest - 1).bit_length() + 1)]
    buckets = [
        (_bound(bound), sum(each.count for size, each in batches.items() if size <= bound))
        for bound in (*bounds, float("inf"))
    ]
    return HistogramMetricFamily(
        f"{_PREFIX}_batch_size",
        "Images that went through the backend together.",
        buckets=buckets,
        sum_value=sum(size * each.count for size, each in batches.items()),
    )


def _sum(batches: dict[int, Duration]) -> Duration:
    total = Duration()
    for each in batches.values():
        total.count += each.count
        total.ns += each.ns
        total.classes = [a + b for a, b in zip(total.classes, each.classes, strict=True)]
    return total


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else str(bound)
