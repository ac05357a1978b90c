"""deploy/ray/haproxy.cfg before a server that notes what reaches it: strangers do not."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from helpers.children import PATIENCE_S, wait_until
from helpers.haproxy import haproxy, haproxy_before, version
from helpers.teachers import depth_request, foreign_server, secret
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.errors import TeacherDeniedError
from tiekd_ros.teacher.security import REFUSAL

PROGRAM = haproxy()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="haproxy is not here")

# HTTP/2's preface and a frame of settings, as before a request (RFC 9113, sections 3.4 and 6.5).
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
OLD, NEW = "the-one-from-before", "a-token-of-the-robots"
MEGABYTES = service_pb2.ModelInferRequest(raw_input_contents=[bytes(3 << 20)])


class Notes(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers whatever gets here, and counts it."""

    def __init__(self) -> None:
        self.calls = 0
        self.go_on = threading.Event()
        self.go_on.set()

    def ServerLive(self, request, context):  # noqa: N802 (the protocol says so)
        self.calls += 1
        return service_pb2.ServerLiveResponse(live=True)

    def ModelInfer(self, request, context):  # noqa: N802 (the protocol says so)
        self.calls += 1
        assert self.go_on.wait(PATIENCE_S)
        return service_pb2.ModelInferResponse()


@pytest.fixture(scope="module")
def notes() -> Notes:
    return Notes()


@pytest.fixture(scope="module")
def front(notes, tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """Return the front's url and its authority."""
    folder = tmp_path_factory.mktemp("front")
    file = secret(folder / "tokens", "# robots", OLD, "", NEW)
    with (
        foreign_server(notes) as server,
        haproxy_before(server, file, folder, str(PROGRAM)) as (url, certificates),
    ):
        with opened((url, certificates.ca)) as channel:  # HAProxy has found the server
            wait_until(lambda: code_of(channel, [("authorization", f"Bearer {NEW}")]) == "OK")
        yield url, certificates.ca


def until_closed(stranger: socket.socket) -> None:
    """Read what comes, until the other side has closed the connection."""
    stranger.settimeout(PATIENCE_S)
    with contextlib.suppress(ConnectionResetError):
        while stranger.recv(4096):
            pass


def test_who_connects_and_asks_nothing_loses_its_place_and_a_slow_answer_arrives(tmp_path):
    tokens, notes = secret(tmp_path / "tokens", NEW), Notes()
    short = {"http_request": "1s", "client": "1s"}
    with (
        foreign_server(notes) as server,
        haproxy_before(server, tokens, tmp_path, str(PROGRAM), **short) as (url, certificates),
        opened((url, certificates.ca)) as channel,
        ThreadPoolExecutor(1) as caller,
    ):
        friend = [("authorization", f"Bearer {NEW}")]
        wait_until(lambda: code_of(channel, friend) == "OK")
        notes.go_on.clear()
        before = notes.calls
        slow = caller.submit(code_of, channel, friend, "ModelInfer", MEGABYTES)
        wait_until(lambda: notes.calls > before)
        host, port = url.split(":")
        context = ssl.create_default_context(cafile=str(certificates.ca))
        context.check_hostname = False
        context.set_alpn_protocols(["h2"])
        with socket.create_connection((host, int(port))) as silent:
            until_closed(silent)
        with (
            socket.create_connection((host, int(port))) as plain,
            context.wrap_socket(plain) as greeter,
        ):
            greeter.sendall(GREETING)
            until_closed(greeter)
        notes.go_on.set()
        assert slow.result(PATIENCE_S) == "OK"


def opened(front: tuple[str, Path]) -> grpc.Channel:
    return grpc.secure_channel(front[0], grpc.ssl_channel_credentials(front[1].read_bytes()))


def code_of(channel: grpc.Channel, headers, method: str = "ServerLive", request=None) -> str:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    try:
        ask = getattr(stub, method)
        ask(request or service_pb2.ServerLiveRequest(), timeout=PATIENCE_S, metadata=headers)
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"
    return "OK"


def test_a_stranger_is_told_so_by_grpc_and_does_not_reach_the_server(notes, front):
    before = notes.calls
    for value in (
        None, "", "Bearer", "Bearer ", f"Bearer {NEW[:-1]}", f"Bearer {NEW}x", f"Basic {NEW}", NEW,
        "Bearer # robots",
    ):  # fmt: skip
        headers = [] if value is None else [("authorization", value)]
        with opened(front) as channel:
            assert code_of(channel, headers) == f"UNAUTHENTICATED: {REFUSAL}"
            code = code_of(channel, headers, "ModelInfer", MEGABYTES).partition(":")[0]
        # Before 2.8 the answer can come too late for a caller that still sends.
        allowed = ("UNAUTHENTICATED", "CANCELLED")[: 1 if version(str(PROGRAM)) >= (2, 8) else 2]
        assert code in allowed
    assert notes.calls == before


def test_every_token_of_the_file_gets_through_also_beside_strangers_on_a_connection(notes, front):
    before = notes.calls
    with opened(front) as channel:
        for value in (f"Bearer {OLD}", f"Bearer {NEW}", f"bearer {NEW}"):
            assert code_of(channel, []).startswith("UNAUTHENTICATED")
            assert code_of(channel, [("authorization", value)]) == "OK"
            assert code_of(channel, [("authorization", value)], "ModelInfer", MEGABYTES) == "OK"
    assert notes.calls == before + 6


def test_a_robot_without_a_token_is_told_what_it_lacks(front, monkeypatch):
    monkeypatch.delenv("TIEKD_TEACHER_TOKEN", raising=False)
    settings = ClientSettings(url=front[0], tls=True, ca=str(front[1]))
    with TeacherClient(settings) as client, pytest.raises(TeacherDeniedError, match="token"):
        client.infer(depth_request())
