"""What keeps one connection from staying for ever, or from taking everybody's turn.

The limits are shortened where the server reads them.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from helpers.certificates import make_certificates
from helpers.children import wait_until
from helpers.proxy import TcpProxy
from helpers.teachers import SilentBackend, StubBackend, depth_request, serving
from tiekd_ros.teacher import server
from tiekd_ros.teacher.protocol import infer_arguments

SOON_S = 10.0
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


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
