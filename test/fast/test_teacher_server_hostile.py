"""A server on a network with strangers: what they send, it answers or drops, and lives on.

A test passes when the stranger is turned away in the way that its name says, and a plain client
is served right after. `test_teacher_server_memory` does it again and again.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest

from helpers.attacks import (
    METHOD,
    SOON_S,
    channel_to,
    infer,
    jpeg_of_many_scans,
    png_of,
    raw_refused,
    refused,
    shout,
)
from helpers.children import PATIENCE_S
from helpers.teachers import StubBackend, picture, serving
from tiekd_ros.core.images import encode_jpeg
from tiekd_ros.teacher import service
from tiekd_ros.teacher.settings import ServiceSettings

TOKEN = "the-token-0123456789"


@pytest.fixture
def served() -> Iterator[tuple[str, grpc.Channel, StubBackend]]:
    """A server; behind the test a plain client must be served."""
    backend = StubBackend()
    with serving(backend, max_message_mb=20) as url, channel_to(url) as channel:
        yield url, channel, backend
        assert infer(channel, encode_jpeg(picture())).outputs[0].name == "depth"
        assert len(backend.requests) == 1


def test_bytes_that_are_no_message_are_an_invalid_argument(served):
    _, channel, _ = served
    for data in (b"\xff" * 100, b"GET / HTTP/1.1\r\n\r\n", os.urandom(5000)):
        status, text = raw_refused(channel, data)
        assert status in ("INVALID_ARGUMENT", "NOT_FOUND")  # noise may be fields without a meaning
        assert "Open Inference Protocol" in text or "unknown model" in text
    status, text = raw_refused(channel, b"\xff" * 100)
    assert status == "INVALID_ARGUMENT"
    assert text.startswith("100 bytes are no request of ModelInfer")


def test_methods_that_are_not_there_are_unimplemented(served):
    _, channel, _ = served
    prefix = "/inference.GRPCInferenceService/"
    for method in (
        prefix + "SystemSharedMemoryStatus",
        prefix + "NoSuchMethod",
        "/other/Method",
    ):
        assert raw_refused(channel, b"", method)[0] == "UNIMPLEMENTED"


def test_a_png_that_claims_less_than_it_holds_is_no_bomb_either(served):
    _, channel, _ = served
    infer(channel, png_of(64, 48, rows=1_000_000))
    served[2].requests.clear()


def test_files_that_would_keep_a_decoder_busy_are_refused_before_they_are_decoded(
    served, monkeypatch
):
    bomb = png_of(10_000, 10_000)
    assert len(bomb) < 40_000
    jpeg = encode_jpeg(picture())
    for data, words in (
        (bomb, "10000x10000 = 100000000 pixels, this server takes 16000000 (max_pixels)"),
        (png_of(2**31 - 1, 2**31 - 1, rows=0), ""),
        (png_of(2**32 - 1, 1, rows=0), ""),
        (png_of(1, 2**32 - 1, rows=0), ""),
        (jpeg_of_many_scans(), "scans"),
        (jpeg + bytes((ServiceSettings().max_image_mb << 20) + 1), "max_image_mb"),
    ):
        with monkeypatch.context() as patch:
            patch.delattr(service, "decode_image")
            status, text = refused(served[1], data)
        assert (status, words in text) == ("INVALID_ARGUMENT", True), text


def test_messages_beyond_the_limit_or_compressed_are_not_unpacked(served):
    _, channel, _ = served
    status, text = refused(channel, bytes(21 << 20))
    assert status == "RESOURCE_EXHAUSTED"
    assert "larger" in text.lower()
    status, text = refused(channel, bytes(19 << 20), compression=grpc.Compression.Gzip)
    assert status in ("UNIMPLEMENTED", "INTERNAL")
    assert "gzip" in text.lower()


def test_who_does_not_speak_grpc_gets_no_further(served):
    url, _, backend = served
    for data in (
        b"", b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00",
        bytes(10_000), os.urandom(10_000), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(10_000),
    ):  # fmt: skip
        shout(url, data, patience_s=0.5)
    assert backend.requests == []


def test_a_crowd_that_says_nothing_keeps_nobody_out(served):
    url, _, _ = served
    host, _, port = url.rpartition(":")
    crowd = [socket.create_connection((host, int(port)), SOON_S) for _ in range(100)]
    try:
        with channel_to(url) as channel:
            infer(channel, encode_jpeg(picture()))
        served[2].requests.clear()
    finally:
        for line in crowd:
            line.close()


@contextmanager
def unsent_calls(channel: grpc.Channel, count: int) -> Iterator[list[grpc.Future]]:
    """Begin calls whose request does not come before the end."""
    stop = threading.Event()

    def never():
        stop.wait(PATIENCE_S)
        yield b""

    method = channel.stream_unary(METHOD)
    yield [method.future(never(), timeout=PATIENCE_S) for _ in range(count)]
    stop.set()


def test_callers_that_never_send_their_request_are_cut_off_and_do_not_keep_its_threads():
    backend = StubBackend()
    settings = {"max_waiting": 0, "receive_timeout_s": 0.5}
    with serving(backend, **settings) as url, channel_to(url) as channel:
        with unsent_calls(channel, 40) as slow:
            for call in slow:
                assert call.exception(PATIENCE_S).code() is grpc.StatusCode.CANCELLED
        infer(channel, encode_jpeg(picture()))
    assert len(backend.requests) == 1


def test_a_stranger_without_a_token_is_refused_before_its_megabytes_are_read(monkeypatch):
    monkeypatch.setenv("TIEKD_TEACHER_TOKENS", TOKEN)
    with (
        serving(StubBackend()) as url,
        channel_to(url) as channel,
        unsent_calls(channel, 1) as (call,),
    ):
        assert call.exception(SOON_S).code() is grpc.StatusCode.UNAUTHENTICATED
