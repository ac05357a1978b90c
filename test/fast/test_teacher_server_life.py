"""A server's start and end, and who waits for it in between."""

from __future__ import annotations

import threading
import time

import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from helpers.strangers import image_input, infer, refusal
from helpers.teachers import SilentBackend, StubBackend, picture, serving
from tiekd_ros.core.images import encode_jpeg
from tiekd_ros.teacher.errors import TeacherServerError
from tiekd_ros.teacher.server import TeacherServer
from tiekd_ros.teacher.settings import ServerSettings

PROMPT_S = 5.0


def test_a_port_in_use_is_a_clear_error():
    first = TeacherServer(StubBackend())
    port = first.start()
    try:
        with pytest.raises(TeacherServerError, match=f"127.0.0.1:{port}.*another program"):
            TeacherServer(StubBackend(), ServerSettings(port=port)).start()
    finally:
        first.stop(0.0)


def test_health_answers_while_every_worker_is_busy_and_the_next_request_is_told_to_come_back():
    backend = SilentBackend()
    with (
        serving(backend, workers=1, max_waiting=0) as url,
        triton.InferenceServerClient(url) as client,
    ):
        waiting = threading.Thread(target=infer, args=(url, encode_jpeg(picture())))
        waiting.start()
        assert backend.asked.wait(PROMPT_S)
        assert client.is_server_ready(client_timeout=PROMPT_S)
        assert refusal(url, encode_jpeg(picture()))[0] == "RESOURCE_EXHAUSTED"
        backend.released.set()
        waiting.join(PROMPT_S)


def test_a_request_whose_caller_gave_up_never_reaches_the_backend():
    backend = SilentBackend()
    with serving(backend, workers=1) as url, triton.InferenceServerClient(url) as client:
        first = threading.Thread(target=infer, args=(url, encode_jpeg(picture())))
        first.start()
        assert backend.asked.wait(PROMPT_S)
        with pytest.raises(InferenceServerException):
            client.infer("depth_teacher", [image_input(encode_jpeg(picture()))], client_timeout=0.1)
        time.sleep(0.1)
        backend.released.set()
        first.join(PROMPT_S)
        infer(url, encode_jpeg(picture()))
    assert len(backend.requests) == 2


def test_a_caller_without_a_deadline_is_served():
    with serving(StubBackend()) as url, triton.InferenceServerClient(url) as client:
        result = client.infer("depth_teacher", [image_input(encode_jpeg(picture()))])
    assert result.as_numpy("depth").shape == (48, 64)


def test_waiting_for_a_server_ends_when_it_is_stopped():
    server = TeacherServer(StubBackend())
    server.start()
    assert not server.wait(0.01)
    server.stop(0.0)
    assert server.wait(PROMPT_S)
