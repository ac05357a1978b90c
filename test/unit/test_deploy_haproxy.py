"""deploy/ray/haproxy.cfg before a server that notes what reaches it: strangers do not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from helpers.children import wait_until
from helpers.haproxy import haproxy, haproxy_before
from helpers.teachers import depth_request, foreign_server
from tiekd_ros.teacher.access import REFUSAL
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.errors import TeacherDeniedError

PROGRAM = haproxy()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="haproxy is not here")

OLD, NEW = "the-one-from-before", "a-token-of-the-robots"
MEGABYTES = service_pb2.ModelInferRequest(raw_input_contents=[bytes(3 << 20)])


class Notes(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers whatever gets here, and counts it."""

    def __init__(self) -> None:
        self.calls = 0

    def ServerLive(self, request, context):  # noqa: N802 (the protocol says so)
        self.calls += 1
        return service_pb2.ServerLiveResponse(live=True)

    def ModelInfer(self, request, context):  # noqa: N802 (the protocol says so)
        self.calls += 1
        return service_pb2.ModelInferResponse()


@pytest.fixture(scope="module")
def notes() -> Notes:
    return Notes()


@pytest.fixture(scope="module")
def front(notes, tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """Return the front's url and its authority."""
    folder = tmp_path_factory.mktemp("front")
    file = folder / "tokens"
    file.write_text(f"# robots\n{OLD}\n\n{NEW}\n")
    file.chmod(0o600)
    with (
        foreign_server(notes) as server,
        haproxy_before(server, file, folder, str(PROGRAM)) as (url, certificates),
    ):
        with opened((url, certificates.ca)) as channel:  # HAProxy has found the server
            wait_until(lambda: code_of(channel, [("authorization", f"Bearer {NEW}")]) == "OK")
        yield url, certificates.ca


def opened(front: tuple[str, Path]) -> grpc.Channel:
    return grpc.secure_channel(front[0], grpc.ssl_channel_credentials(front[1].read_bytes()))


def code_of(channel: grpc.Channel, headers, method: str = "ServerLive", request=None) -> str:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    try:
        ask = getattr(stub, method)
        ask(request or service_pb2.ServerLiveRequest(), timeout=10.0, metadata=headers)
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"
    return "OK"


@pytest.mark.parametrize(
    "value",
    [None, "", "Bearer", "Bearer ", f"Bearer {NEW[:-1]}", f"Bearer {NEW}x", f"Basic {NEW}", NEW,
     "Bearer # robots"],
)  # fmt: skip
def test_a_stranger_is_told_so_by_grpc_and_does_not_reach_the_server(notes, front, value):
    before = notes.calls
    headers = [] if value is None else [("authorization", value)]
    with opened(front) as channel:
        assert code_of(channel, headers) == f"UNAUTHENTICATED: {REFUSAL}"
        code = code_of(channel, headers, "ModelInfer", MEGABYTES).partition(":")[0]
        assert code in ("UNAUTHENTICATED", "CANCELLED")  # the latter from HAProxy 2.6
    assert notes.calls == before


@pytest.mark.parametrize("value", [f"Bearer {OLD}", f"Bearer {NEW}", f"bearer {NEW}"])
def test_every_token_of_the_file_gets_through(notes, front, value):
    before = notes.calls
    with opened(front) as channel:
        assert code_of(channel, [("authorization", value)]) == "OK"
        assert code_of(channel, [("authorization", value)], "ModelInfer", MEGABYTES) == "OK"
    assert notes.calls == before + 2


def test_one_connections_strangers_and_friends_are_told_apart(front):
    with opened(front) as channel:
        for _ in range(3):
            assert code_of(channel, []).startswith("UNAUTHENTICATED")
            assert code_of(channel, [("authorization", f"Bearer {NEW}")]) == "OK"


def test_a_robot_without_a_token_hears_what_it_lacks(front, monkeypatch):
    monkeypatch.delenv("TIEKD_TEACHER_TOKEN", raising=False)
    settings = ClientSettings(url=front[0], tls=True, ca=str(front[1]))
    with TeacherClient(settings) as client, pytest.raises(TeacherDeniedError, match="token"):
        client.infer(depth_request())
