"""What the server's log and counters say of requests that got no label."""

from __future__ import annotations

import logging
import threading

import grpc
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from helpers.children import PATIENCE_S, wait_until
from helpers.strangers import image_input, refusal
from helpers.teachers import RELATIVE, SilentBackend, StubBackend, picture, serving
from tiekd_ros.core.images import encode_jpeg
from tiekd_ros.teacher import security
from tiekd_ros.teacher.server import TeacherServer
from tiekd_ros.teacher.service import TeacherService
from tiekd_ros.teacher.settings import ServerSettings

IMAGE = encode_jpeg(picture())
LONG_S = 5.0  # in which a request reaches the queue, on a busy machine too
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
