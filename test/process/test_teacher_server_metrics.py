"""What a server tells of itself: the protocol's statistics, and metrics for Prometheus."""

from __future__ import annotations

import socket
import threading
import urllib.request

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from helpers.children import wait_until
from helpers.teachers import SilentBackend, StubBackend, free_port, picture, serving
from tiekd_ros.core.images import encode_jpeg
from tiekd_ros.teacher.errors import TeacherServerError
from tiekd_ros.teacher.protocol import DepthAnswer
from tiekd_ros.teacher.server import TeacherServer
from tiekd_ros.teacher.settings import ServerSettings

SOON_S = 10.0


class PairsBackend(StubBackend):
    """A stub that takes images together."""

    def infer_batch(self, images, requests):
        return [self.infer(*pair) for pair in zip(images, requests, strict=True)]


def infer(client: triton.InferenceServerClient, data: bytes | None = None) -> None:
    image = triton.InferInput("image", [1], "BYTES")
    content = encode_jpeg(picture()) if data is None else data
    image.set_data_from_numpy(np.array([content], dtype=np.object_))
    client.infer("depth_teacher", [image], client_timeout=SOON_S)


def scrape(port: int) -> dict[str, float]:
    """Return every sample by its name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SOON_S) as page:
        assert page.headers["Content-Type"].startswith("text/plain")
        lines = page.read().decode().splitlines()
    pairs = [line.rpartition(" ") for line in lines if not line.startswith("#")]
    return {name.removeprefix("tiekd_teacher_"): float(value) for name, _, value in pairs}


def test_statistics_tell_of_queue_batches_and_the_steps_of_a_request():
    with (
        serving(PairsBackend(), max_batch=2, batch_delay_ms=5000.0) as url,
        triton.InferenceServerClient(url) as client,
    ):
        pair = [threading.Thread(target=infer, args=(client,)) for _ in range(2)]
        for thread in pair:
            thread.start()
        for thread in pair:
            thread.join(SOON_S)
        (model,) = client.get_inference_statistics().model_stats
    stats = model.inference_stats
    assert (model.inference_count, model.execution_count) == (2, 1)
    assert [(batch.batch_size, batch.compute_infer.count) for batch in model.batch_stats] == [
        (2, 1)
    ]
    steps = (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output)
    assert [step.count for step in steps] == [2, 2, 2, 2]
    assert all(step.ns > 0 for step in steps)
    assert model.last_inference > 0


def test_the_repositorys_index_names_the_one_model():
    with serving(StubBackend()) as url, triton.InferenceServerClient(url) as client:
        (model,) = client.get_model_repository_index().models
    assert (model.name, model.version, model.state) == ("depth_teacher", "7", "READY")


def test_a_backend_that_hangs_makes_the_server_not_ready():
    backend = SilentBackend()
    with (
        serving(backend, stuck_after_s=1.0) as url,
        triton.InferenceServerClient(url) as client,
    ):
        asking = threading.Thread(target=infer, args=(client,))
        asking.start()
        wait_until(lambda: not client.is_server_ready())
        assert client.is_server_live()
        assert not client.is_model_ready("depth_teacher")
        backend.released.set()
        asking.join(SOON_S)
        wait_until(client.is_server_ready)


def test_prometheus_reads_what_happened():
    port = free_port()
    with (
        serving(StubBackend(), metrics_port=port) as url,
        triton.InferenceServerClient(url) as client,
    ):
        data = encode_jpeg(picture())
        infer(client, data)
        infer(client, data)
        with pytest.raises(InferenceServerException):
            infer(client, b"garbage")
        found = scrape(port)
    assert found['requests_total{code="OK"}'] == 2
    assert found['requests_total{code="INVALID_ARGUMENT"}'] == 1
    assert found["labels_total"] == 2
    assert found["image_bytes_total"] == 2 * len(data)
    assert found["answer_bytes_total"] == 2 * 48 * 64 * 2
    assert found["unauthenticated_total"] == 0
    assert found["ready"] == 1
    assert (found["inside"], found["waiting"]) == (0, 0)
    assert found["places"] == 129
    assert found['identity{metric="true",teacher="stub",version="7"}'] == 1
    for name in ("request", "queue", "decode", "encode"):
        assert found[f"{name}_seconds_count"] == 2
        assert found[f'{name}_seconds_bucket{{le="+Inf"}}'] == 2
        assert found[f"{name}_seconds_sum"] > 0
    assert found["failed_request_seconds_count"] == 1
    assert found['batch_seconds_count{size="1"}'] == 2
    assert found['batch_size_bucket{le="1.0"}'] == 2
    assert found["batch_size_sum"] == 2


def test_metrics_count_the_calls_without_a_token(monkeypatch):
    monkeypatch.setenv("TIEKD_TEACHER_TOKENS", "the-token-0123456789")
    port = free_port()
    with (
        serving(StubBackend(), metrics_port=port) as url,
        triton.InferenceServerClient(url) as client,
    ):
        for _ in range(3):
            with pytest.raises(InferenceServerException, match="token"):
                infer(client)
        assert scrape(port)["unauthenticated_total"] == 3


def test_a_scraper_that_says_nothing_keeps_no_other_waiting():
    port = free_port()
    with (
        serving(StubBackend(), metrics_port=port),
        socket.create_connection(("127.0.0.1", port), SOON_S),
    ):
        assert scrape(port)["ready"] == 1


def test_metrics_on_a_port_in_use_are_a_clear_error_and_leave_no_server_behind():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        metrics_port, port = taken.getsockname()[1], free_port()
        settings = ServerSettings(port=port, metrics_port=metrics_port)
        with pytest.raises(TeacherServerError, match=f"metrics on 127.0.0.1:{metrics_port}"):
            TeacherServer(StubBackend(), settings).start()
    with serving(StubBackend(), port=port):
        pass


def test_an_answer_counts_its_confidence_too():
    port = free_port()
    answer = DepthAnswer(np.ones((6, 8), np.float32), np.ones((6, 8), np.float32))
    with (
        serving(StubBackend(answer), metrics_port=port) as url,
        triton.InferenceServerClient(url) as client,
    ):
        infer(client)
        assert scrape(port)["answer_bytes_total"] == 2 * 6 * 8 * 2
