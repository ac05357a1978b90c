"""A client that cannot show who it is yet, and networks that only look like a wrong certificate."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from helpers.certificates import Certificates, make_certificates
from helpers.teachers import StubBackend, depth_request, listening, serving
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.errors import TeacherDeniedError, TeacherUnreachableError

TOKEN = "0123456789abcdef-robot"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@contextmanager
def always_unavailable(text: str, credentials: grpc.ServerCredentials | None) -> Iterator[str]:
    """Run a server that answers UNAVAILABLE with this text; yield its address."""

    def abort(request: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.UNAVAILABLE, text)
        raise AssertionError

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(abort)

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Handler()])
    with listening(server, credentials) as url:
        yield url


def failure(url: str, **settings: Any) -> TeacherUnreachableError:
    quick = {"timeout_s": 5.0, "attempts": 2, "backoff_initial_s": 0.01, **settings}
    with (
        TeacherClient(ClientSettings(url=url, **quick)) as client,
        pytest.raises(TeacherUnreachableError) as failed,
    ):
        client.infer(depth_request())
    return failed.value


def test_a_handshake_that_times_out_says_nothing_of_certificates(certificates):
    pair = (certificates.key.read_bytes(), certificates.cert.read_bytes())
    credentials = grpc.ssl_server_credentials([pair])
    text = "failed to connect to all addresses; last error: Handshake timed out"
    with always_unavailable(text, credentials) as url:
        error = failure(url, tls=True, ca=str(certificates.ca))
    assert not isinstance(error, TeacherDeniedError)
    assert "in 2 tries" in str(error)


def test_without_tls_no_text_is_taken_for_a_certificates():
    with always_unavailable("SSL_ERROR_SSL: CERTIFICATE_VERIFY_FAILED", None) as url:
        assert not isinstance(failure(url), TeacherDeniedError)


def test_a_name_that_is_not_in_the_certificate_is_a_denial(certificates):
    closed = {"tls_cert": str(certificates.cert), "tls_key": str(certificates.key)}
    with serving(StubBackend(), **closed) as url:
        error = failure(url, tls=True, ca=str(certificates.ca), server_name="workstation")
    assert isinstance(error, TeacherDeniedError)


def test_a_client_may_begin_without_a_token_and_use_it_once_it_is_there(tmp_path: Path):
    token = tmp_path / "token"
    known = tmp_path / "known"
    for file in (known, token):
        file.write_text(TOKEN)
        file.chmod(0o600)
    with serving(StubBackend(), token_file=str(known)) as url:
        settings = ClientSettings(url=url, token_file=str(token), break_after=10)
        token.unlink()
        with pytest.raises(InvalidSettingError, match="token"):
            TeacherClient(settings)
        with TeacherClient(settings, require_credentials=False) as client:
            assert str(token) in client.obstacle()
            with pytest.raises(TeacherDeniedError, match="token"):
                client.infer(depth_request())
            token.write_text(TOKEN)
            token.chmod(0o600)
            assert client.obstacle() == ""
            assert client.known_teacher is None
            client.infer(depth_request())
            assert client.known_teacher == StubBackend().identity
