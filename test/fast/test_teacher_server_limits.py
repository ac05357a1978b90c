"""Limits of connections and requests, the request log, statistics and metrics."""

from __future__ import annotations

import logging
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from helpers.attacks import METHOD, message
from helpers.certificates import make_certificates
from helpers.children import PATIENCE_S, wait_until
from helpers.proxy import TcpProxy
from helpers.strangers import image_input, refusal
from helpers.teachers import (
    METRIC,
    RELATIVE,
    SilentBackend,
    StubBackend,
    picture,
    ramp,
    serving,
)
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.images import encode_jpeg
from tiekd_ros.core.launch_options import free_port
from tiekd_ros.teacher import security, server
from tiekd_ros.teacher.errors import TeacherServerError
from tiekd_ros.teacher.protocol import DepthAnswer
from tiekd_ros.teacher.server import TeacherServer
from tiekd_ros.teacher.service import TeacherService
from tiekd_ros.teacher.settings import ServerSettings

SOON_S = 10.0
IMAGE = encode_jpeg(picture())
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


@contextmanager
def stub_of(url: str) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    """One connection of its own."""
    with grpc.insecure_channel(url, OWN_CONNECTION) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def live(stub: service_pb2_grpc.GRPCInferenceServiceStub, timeout_s: float = SOON_S) -> bool:
    return stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=timeout_s).live


def test_strangers_who_stay_and_ask_nothing_lose_their_places():
    def gets_in() -> bool:
        with suppress(grpc.RpcError):
            return live(late)
        return False

    with serving(StubBackend(), max_connections=3, max_idle_s=1.0) as url, ExitStack() as opened:
        assert all(live(opened.enter_context(stub_of(url))) for _ in range(3))
        late = opened.enter_context(stub_of(url))
        wait_until(gets_in)


def test_the_largest_image_fits_into_the_largest_message():
    with pytest.raises(InvalidSettingError, match=r"larger than max_image_mb = 16.*got 16"):
        ServerSettings(max_message_mb=16)
    ServerSettings(max_message_mb=16, max_image_mb=15)


def test_an_old_connection_makes_way_for_a_new_one_and_no_call_is_lost(monkeypatch):
    monkeypatch.setattr(server, "_MAX_CONNECTION_AGE_S", 0.3)
    backend = SilentBackend()
    with (
        serving(backend) as url,
        TcpProxy(int(url.rpartition(":")[2])) as proxy,
        stub_of(proxy.url) as stub,
    ):
        assert live(stub)
        assert proxy.accepted == 1
        call = stub.ModelInfer.future(message(IMAGE), timeout=2 * SOON_S)
        assert backend.asked.wait(SOON_S)
        wait_until(lambda: live(stub) and proxy.accepted >= 3, SOON_S)
        assert not call.done()
        backend.released.set()
        assert call.result(SOON_S).outputs[0].name == "depth"


def test_a_call_that_takes_too_long_on_an_old_connection_is_cut_off(monkeypatch):
    monkeypatch.setattr(server, "_MAX_CONNECTION_AGE_S", 0.3)
    monkeypatch.setattr(server, "_MAX_AGE_GRACE_S", 0.2)
    backend = SilentBackend()
    with serving(backend) as url, stub_of(url) as stub:
        call = stub.ModelInfer.future(message(IMAGE), timeout=2 * SOON_S)
        assert backend.asked.wait(SOON_S)
        assert call.exception(SOON_S).code() is grpc.StatusCode.UNAVAILABLE
        assert live(stub)


def test_the_calls_of_one_connection_wait_on_its_side_and_keep_no_other_out(monkeypatch):
    monkeypatch.setattr(server, "_CALLS_PER_CONNECTION", 2)
    backend = SilentBackend()
    with serving(backend) as url, stub_of(url) as greedy, stub_of(url) as other:
        assert live(greedy)  # the limit is known from here on
        calls = [greedy.ModelInfer.future(message(IMAGE), timeout=2 * SOON_S) for _ in range(2)]
        assert backend.asked.wait(SOON_S)
        with pytest.raises(grpc.RpcError) as raised:
            live(greedy, timeout_s=1.0)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert live(other)
        backend.released.set()
        assert all(call.result(SOON_S).outputs for call in calls)
        assert live(greedy)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_who_connects_and_does_not_say_hello_is_hung_up_on(monkeypatch, tmp_path, tls):
    monkeypatch.setattr(server, "_HANDSHAKE_S", 0.3)
    settings = {"max_idle_s": 3600.0}
    if tls:
        certificates = make_certificates(tmp_path)
        settings |= {"tls_cert": str(certificates.cert), "tls_key": str(certificates.key)}
    half_a_hello = b"\x16\x03\x01\x02\x00" if tls else b"PRI * HTTP/2.0\r\n"
    with serving(StubBackend(), **settings) as url:
        host, _, port = url.rpartition(":")
        for said in (b"", half_a_hello):
            with (
                socket.create_connection((host, int(port)), SOON_S) as line,
                suppress(ConnectionResetError),
            ):
                line.sendall(said)
                while line.recv(4096):
                    pass


# The log of requests.

LONG_S = 2.0  # in which a request reaches the queue, on a busy machine too
LOGGER = "tiekd_ros.teacher.security"


def facts_of(caplog) -> list[dict[str, object]]:
    return [record.facts for record in caplog.records if hasattr(record, "facts")]


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


@contextmanager
def unsent_call(url: str) -> Iterator[grpc.Future]:
    """Begin a call whose request never comes."""
    silence = threading.Event()
    with grpc.insecure_channel(url) as channel:
        call = channel.stream_unary(METHOD).future(iter(silence.wait, True), timeout=PATIENCE_S)
        try:
            yield call
        finally:
            silence.set()


def test_who_does_not_send_in_time_is_logged_as_that_with_its_address(caplog):
    with (
        caplog.at_level(logging.INFO, LOGGER),
        serving(StubBackend(), receive_timeout_s=1.0) as url,
        unsent_call(url) as call,
    ):
        assert call.exception(PATIENCE_S) is not None
        wait_until(lambda: facts_of(caplog))
    (facts,) = facts_of(caplog)
    assert facts["code"] == "DEADLINE_EXCEEDED"
    assert facts["details"] == "ModelInfer did not come within receive_timeout_s = 1"
    assert str(facts["peer"]).startswith("ipv4:127.0.0.1:")


@contextmanager
def running(backend) -> Iterator[tuple[str, server._Running]]:
    """Serve as `serving` does; yields what is inside of the server as well."""
    own = TeacherServer(backend)
    url = f"127.0.0.1:{own.start()}"
    try:
        yield url, own._running
    finally:
        own.stop(0.0)


def test_who_hangs_up_before_it_has_sent_is_not_said_to_have_sent_too_much(caplog):
    with (
        caplog.at_level(logging.INFO, LOGGER),
        running(StubBackend()) as (url, inside),
        unsent_call(url) as call,
    ):
        wait_until(lambda: inside._timeouts._receiving)
        call.cancel()
        wait_until(lambda: facts_of(caplog))
    assert facts_of(caplog)[0]["code"] == "CANCELLED"
    assert facts_of(caplog)[0]["details"].startswith("the caller ended it, or its message")


@pytest.mark.parametrize(("gives_up", "code"), [(False, "DEADLINE_EXCEEDED"), (True, "CANCELLED")])
def test_who_waits_in_vain_is_told_apart_in_log_and_counters(caplog, gives_up, code):
    backend = SilentBackend()
    with running(backend) as (url, inside), stub_of(url) as stub:
        first = stub.ModelInfer.future(message(IMAGE))
        wait_until(backend.asked.is_set)
        with caplog.at_level(logging.INFO, LOGGER):
            patience_s = PATIENCE_S if gives_up else LONG_S
            second = stub.ModelInfer.future(message(IMAGE), timeout=patience_s)
            wait_until(lambda: inside.service.batcher.inside == 2)
            if gives_up:
                second.cancel()
            wait_until(lambda: facts_of(caplog))
        assert facts_of(caplog)[-1]["code"] == code
        registry = inside.service.metrics.registry
        assert registry.get_sample_value("tiekd_teacher_requests_total", {"code": code}) == 1
        backend.released.set()
        assert first.result(SOON_S).outputs


def test_a_client_that_is_always_refused_gets_few_lines_and_then_a_sum(caplog, monkeypatch):
    monkeypatch.setattr(security, "_MAX_LINES", 3)
    with caplog.at_level(logging.INFO, LOGGER), serving(StubBackend()) as url:
        for _ in range(8):
            assert refusal(url, b"garbage")[0] == "INVALID_ARGUMENT"
        assert not summaries(caplog)
        assert len(facts_of(caplog)) == 3
    wait_until(lambda: summaries(caplog))
    assert summaries(caplog) == ["5 more requests were refused or given up; debug tells of each"]


def test_the_next_minute_has_its_own_lines_and_at_debug_every_one_has(caplog, monkeypatch):
    def some_refused() -> bool:
        for _ in range(3):
            assert refusal(url, b"garbage")[0] == "INVALID_ARGUMENT"
        return bool(summaries(caplog)) and len(facts_of(caplog)) >= 2

    monkeypatch.setattr(security, "_MAX_LINES", 1)
    with caplog.at_level(logging.DEBUG, LOGGER), serving(StubBackend()) as url:
        some_refused()
        wait_until(lambda: len(facts_of(caplog)) == 3)
    assert not summaries(caplog)
    caplog.clear()
    monkeypatch.setattr(security, "_LINES_EVERY_S", 0.05)
    with caplog.at_level(logging.INFO, LOGGER), serving(StubBackend()) as url:
        wait_until(some_refused)


def test_a_teacher_that_is_not_metric_is_warned_of_at_the_start(caplog):
    for identity, warnings in ((METRIC, 0), (RELATIVE, 1)):
        with caplog.at_level(logging.WARNING):
            TeacherService(StubBackend(identity=identity), ServerSettings()).close()
        assert caplog.text.count("stub is not metric: robots refuse its labels") == warnings


# Statistics and metrics.


class PairsBackend(StubBackend):
    """A stub that takes images together."""

    def infer_batch(self, images, requests):
        return [self.infer(*pair) for pair in zip(images, requests, strict=True)]


def infer(client: triton.InferenceServerClient, data: bytes = IMAGE) -> None:
    client.infer("depth_teacher", [image_input(data)], client_timeout=SOON_S)


@contextmanager
def client_of(backend, **settings) -> Iterator[triton.InferenceServerClient]:
    with serving(backend, **settings) as url, triton.InferenceServerClient(url) as client:
        yield client


def scrape(port: int) -> dict[str, float]:
    """Return every sample by its name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SOON_S) as page:
        assert page.headers["Content-Type"].startswith("text/plain")
        lines = page.read().decode().splitlines()
    pairs = [line.rpartition(" ") for line in lines if not line.startswith("#")]
    return {name.removeprefix("tiekd_teacher_"): float(value) for name, _, value in pairs}


def test_statistics_tell_of_queue_batches_and_the_steps_of_a_request():
    with client_of(PairsBackend(), max_batch=2, batch_delay_ms=5000.0) as client:
        pair = [threading.Thread(target=infer, args=(client,)) for _ in range(2)]
        for thread in pair:
            thread.start()
        for thread in pair:
            thread.join(SOON_S)
        with pytest.raises(InferenceServerException):
            infer(client, b"garbage")
        (model,) = client.get_inference_statistics("depth_teacher").model_stats
        (index,) = client.get_model_repository_index().models
    stats = model.inference_stats
    assert (model.inference_count, model.execution_count) == (2, 1)
    assert [(each.batch_size, each.compute_infer.count) for each in model.batch_stats] == [(2, 1)]
    steps = (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output)
    assert [step.count for step in (*steps, stats.success, stats.fail)] == [2, 2, 2, 2, 2, 1]
    assert all(step.ns > 0 for step in steps)
    assert stats.success.ns > stats.compute_infer.ns
    assert model.last_inference > 0
    assert (index.name, index.version, index.state) == ("depth_teacher", "7", "READY")


def test_a_backend_that_hangs_makes_the_server_not_ready():
    backend = SilentBackend()
    with client_of(backend, stuck_after_s=1.0) as client:
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
    backend = StubBackend(DepthAnswer(ramp(), np.ones((48, 64), np.float32)))
    with (
        client_of(backend, metrics_port=port) as client,
        socket.create_connection(("127.0.0.1", port), SOON_S),  # says nothing: keeps none waiting
    ):
        infer(client)
        infer(client)
        with pytest.raises(InferenceServerException):
            infer(client, b"garbage")
        found = scrape(port)
    assert found['requests_total{code="OK"}'] == 2
    assert found['requests_total{code="INVALID_ARGUMENT"}'] == 1
    assert found["labels_total"] == 2
    assert found["image_bytes_total"] == 2 * len(IMAGE)
    assert found["answer_bytes_total"] == 2 * 48 * 64 * (2 + 2)  # its confidence too
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
    with client_of(StubBackend(), metrics_port=port) as client:
        for _ in range(3):
            with pytest.raises(InferenceServerException, match="token"):
                infer(client)
        assert scrape(port)["unauthenticated_total"] == 3


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
