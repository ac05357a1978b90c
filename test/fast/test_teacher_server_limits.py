"""Limits of connections and requests, the request log, statistics and metrics."""

from __future__ import annotations

import logging
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from helpers.certificates import make_certificates
from helpers.children import PATIENCE_S, wait_until
from helpers.proxy import TcpProxy
from helpers.strangers import image_input, refusal
from helpers.teachers import (
    RELATIVE,
    SilentBackend,
    StubBackend,
    depth_request,
    free_port,
    picture,
    serving,
)
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.images import encode_jpeg
from tiekd_ros.teacher import security, server
from tiekd_ros.teacher.errors import TeacherServerError
from tiekd_ros.teacher.protocol import DepthAnswer, infer_arguments
from tiekd_ros.teacher.server import TeacherServer
from tiekd_ros.teacher.service import TeacherService
from tiekd_ros.teacher.settings import ServerSettings

SOON_S = 10.0

OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


def served_now(channel: grpc.Channel) -> bool:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    try:
        stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=SOON_S)
    except grpc.RpcError:
        return False
    return True


def test_strangers_who_stay_and_ask_nothing_lose_their_places():
    with serving(StubBackend(), max_connections=3, max_idle_s=1.0) as url, ExitStack() as opened:

        def connected() -> grpc.Channel:
            return opened.enter_context(grpc.insecure_channel(url, OWN_CONNECTION))

        assert all(served_now(connected()) for _ in range(3))
        late = connected()
        wait_until(lambda: served_now(late))


def test_the_largest_image_fits_into_the_largest_message():
    with pytest.raises(InvalidSettingError, match=r"larger than max_image_mb = 16.*got 16"):
        ServerSettings(max_message_mb=16)
    ServerSettings(max_message_mb=16, max_image_mb=15)


@contextmanager
def stub_of(url: str) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    """One connection of its own."""
    with grpc.insecure_channel(url, OWN_CONNECTION) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


@contextmanager
def proxied(url: str) -> Iterator[TcpProxy]:
    with TcpProxy(int(url.rpartition(":")[2])) as proxy:
        yield proxy


def live(stub: service_pb2_grpc.GRPCInferenceServiceStub, timeout_s: float = SOON_S) -> bool:
    return stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=timeout_s).live


def message() -> service_pb2.ModelInferRequest:
    tensor = infer_arguments(depth_request())["inputs"][0]
    request = service_pb2.ModelInferRequest(model_name="depth_teacher")
    request.inputs.append(tensor._get_tensor())
    request.raw_input_contents.append(tensor._get_content())
    return request


def test_an_old_connection_makes_way_for_a_new_one_and_no_call_is_lost(monkeypatch):
    monkeypatch.setattr(server, "_MAX_CONNECTION_AGE_S", 0.3)
    with serving(StubBackend()) as url, proxied(url) as proxy, stub_of(proxy.url) as stub:
        assert live(stub)
        assert proxy.accepted == 1
        wait_until(lambda: live(stub) and proxy.accepted >= 3, SOON_S)


def test_a_call_that_runs_on_an_old_connection_comes_to_its_end(monkeypatch):
    monkeypatch.setattr(server, "_MAX_CONNECTION_AGE_S", 0.3)
    backend = SilentBackend()
    with serving(backend) as url, proxied(url) as proxy, stub_of(proxy.url) as stub:
        call = stub.ModelInfer.future(message(), timeout=2 * SOON_S)
        assert backend.asked.wait(SOON_S)
        wait_until(lambda: live(stub) and proxy.accepted >= 3, SOON_S)
        assert not call.done()
        backend.released.set()
        assert call.result(SOON_S).outputs[0].name == "depth"


def test_and_is_cut_off_where_it_takes_too_long(monkeypatch):
    monkeypatch.setattr(server, "_MAX_CONNECTION_AGE_S", 0.3)
    monkeypatch.setattr(server, "_MAX_AGE_GRACE_S", 0.2)
    backend = SilentBackend()
    with serving(backend) as url, stub_of(url) as stub:
        call = stub.ModelInfer.future(message(), timeout=2 * SOON_S)
        assert backend.asked.wait(SOON_S)
        assert call.exception(SOON_S).code() is grpc.StatusCode.UNAVAILABLE
        assert live(stub)


def test_the_calls_of_one_connection_wait_on_its_side_and_keep_no_other_out(monkeypatch):
    monkeypatch.setattr(server, "_CALLS_PER_CONNECTION", 2)
    backend = SilentBackend()
    with serving(backend) as url, stub_of(url) as greedy, stub_of(url) as other:
        assert live(greedy)  # the limit is known from here on
        calls = [greedy.ModelInfer.future(message(), timeout=2 * SOON_S) for _ in range(2)]
        assert backend.asked.wait(SOON_S)
        with pytest.raises(grpc.RpcError) as raised:
            live(greedy, timeout_s=1.0)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert live(other)
        backend.released.set()
        assert all(call.result(SOON_S).outputs for call in calls)
        assert live(greedy)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("said", [b"", b"PRI * HTTP/2.0\r\n"], ids=["nothing", "half a hello"])
def test_whoever_connects_and_does_not_say_hello_is_hung_up_on(monkeypatch, tmp_path, tls, said):
    monkeypatch.setattr(server, "_HANDSHAKE_S", 0.3)
    settings = {"max_idle_s": 3600.0}
    if tls:
        certificates = make_certificates(tmp_path)
        settings |= {"tls_cert": str(certificates.cert), "tls_key": str(certificates.key)}
        said = b"\x16\x03\x01\x02\x00" if said else b""
    with serving(StubBackend(), **settings) as url:
        host, _, port = url.rpartition(":")
        with socket.create_connection((host, int(port)), SOON_S) as line:
            line.settimeout(SOON_S)
            line.sendall(said)
            try:
                while line.recv(4096):
                    pass
            except ConnectionResetError:
                pass


IMAGE = encode_jpeg(picture())

LONG_S = 2.0  # in which a request reaches the queue, on a busy machine too

LOGGER = "tiekd_ros.teacher.security"


def facts_of(caplog) -> list[dict[str, object]]:
    return [record.facts for record in caplog.records if hasattr(record, "facts")]


def label_patiently(url: str) -> None:
    with triton.InferenceServerClient(url) as client:
        client.infer("depth_teacher", [image_input(IMAGE)])


def summaries(caplog) -> list[str]:
    return [text for text in caplog.messages if "more requests" in text]


def test_a_message_that_is_too_large_is_logged_as_the_caller_was_told(caplog):
    with (
        caplog.at_level(logging.INFO, LOGGER),
        serving(StubBackend(), max_message_mb=2, max_image_mb=1) as url,
    ):
        assert refusal(url, bytes(3 << 20))[0] == "RESOURCE_EXHAUSTED"
        wait_until(lambda: facts_of(caplog))
    (facts,) = facts_of(caplog)
    assert facts["code"] == "CANCELLED"  # gRPC does not say why it ended the call
    assert "larger than max_message_mb" in facts["details"]


def test_who_does_not_send_in_time_is_logged_as_that_with_its_address(caplog):
    with (
        caplog.at_level(logging.INFO, LOGGER),
        serving(StubBackend(), receive_timeout_s=1.0) as url,
        grpc.insecure_channel(url) as channel,
    ):
        silence = threading.Event()
        unsent = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
        call = unsent.future(iter(silence.wait, True), timeout=PATIENCE_S)
        try:
            assert call.exception(PATIENCE_S) is not None
        finally:
            silence.set()
        wait_until(lambda: facts_of(caplog))
    (facts,) = facts_of(caplog)
    assert facts["code"] == "DEADLINE_EXCEEDED"
    assert facts["details"] == "ModelInfer did not come within receive_timeout_s = 1"
    assert str(facts["peer"]).startswith("ipv4:127.0.0.1:")


def test_who_hangs_up_before_it_has_sent_is_not_said_to_have_sent_too_much(caplog):
    server, silence = TeacherServer(StubBackend(), ServerSettings()), threading.Event()
    url = f"127.0.0.1:{server.start()}"
    try:
        with caplog.at_level(logging.INFO, LOGGER), grpc.insecure_channel(url) as channel:
            unsent = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
            call = unsent.future(iter(silence.wait, True), timeout=PATIENCE_S)
            wait_until(lambda: server._running._timeouts._receiving)
            call.cancel()
            wait_until(lambda: facts_of(caplog))
    finally:
        silence.set()
        server.stop(0.0)
    assert facts_of(caplog)[0]["code"] == "CANCELLED"
    assert facts_of(caplog)[0]["details"].startswith("the caller ended it, or its message")


@pytest.mark.parametrize(("gives_up", "code"), [(False, "DEADLINE_EXCEEDED"), (True, "CANCELLED")])
def test_who_waits_in_vain_is_told_apart_in_log_and_counters(caplog, gives_up, code):
    backend = SilentBackend()
    server = TeacherServer(backend, ServerSettings())
    url = f"127.0.0.1:{server.start()}"
    first = threading.Thread(target=label_patiently, args=(url,))
    try:
        first.start()
        wait_until(backend.asked.is_set)
        with caplog.at_level(logging.INFO, LOGGER):
            with triton.InferenceServerClient(url) as client:
                told = threading.Event()
                call = client.async_infer(
                    "depth_teacher",
                    [image_input(IMAGE)],
                    lambda result, error: told.set(),
                    client_timeout=PATIENCE_S if gives_up else LONG_S,
                )
                wait_until(lambda: server._running.service.batcher.inside == 2)
                if gives_up:
                    call.cancel()
                wait_until(told.is_set)
            wait_until(lambda: facts_of(caplog))
        assert facts_of(caplog)[-1]["code"] == code
        registry = server._running.service.metrics.registry
        assert registry.get_sample_value("tiekd_teacher_requests_total", {"code": code}) == 1
    finally:
        backend.released.set()
        first.join()
        server.stop(0.0)


def test_a_client_that_is_always_refused_gets_few_lines_and_then_a_sum(caplog, monkeypatch):
    monkeypatch.setattr(security, "_MAX_LINES", 3)
    with caplog.at_level(logging.INFO, LOGGER), serving(StubBackend()) as url:
        with triton.InferenceServerClient(url) as client:
            for _ in range(8):
                with pytest.raises(InferenceServerException):
                    client.infer("depth_teacher", [image_input(b"garbage")])
            assert client.is_server_live()
        assert not summaries(caplog)
        assert len(facts_of(caplog)) == 3
    wait_until(lambda: summaries(caplog))
    assert summaries(caplog) == ["5 more requests were refused or given up; debug tells of each"]


def test_the_next_minute_has_its_own_lines(caplog, monkeypatch):
    monkeypatch.setattr(security, "_MAX_LINES", 1)
    monkeypatch.setattr(security, "_LINES_EVERY_S", 0.05)
    with caplog.at_level(logging.INFO, LOGGER), serving(StubBackend()) as url:

        def some_refused() -> bool:
            for _ in range(3):
                assert refusal(url, b"garbage")[0] == "INVALID_ARGUMENT"
            return bool(summaries(caplog)) and len(facts_of(caplog)) >= 2

        wait_until(some_refused)


def test_at_debug_every_one_has_its_line(caplog, monkeypatch):
    monkeypatch.setattr(security, "_MAX_LINES", 1)
    with caplog.at_level(logging.DEBUG, LOGGER), serving(StubBackend()) as url:
        for _ in range(3):
            assert refusal(url, b"garbage")[0] == "INVALID_ARGUMENT"
        wait_until(lambda: len(facts_of(caplog)) == 3)
    assert not summaries(caplog)


@pytest.mark.parametrize("metric", [True, False])
def test_a_teacher_that_is_not_metric_is_warned_of_at_the_start(caplog, metric):
    backend = StubBackend() if metric else StubBackend(identity=RELATIVE)
    with caplog.at_level(logging.WARNING):
        TeacherService(backend, ServerSettings()).close()
    assert ("stub is not metric: robots refuse its labels" in caplog.text) is not metric


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
