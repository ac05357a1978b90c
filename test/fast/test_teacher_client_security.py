"""TLS, mutual TLS and tokens, as the robot's side meets them.

Against real servers with certificates of the test's own. A test passes when the client gets a
label where it should, and otherwise raises an error that says what to put right.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from helpers.certificates import Certificates, make_certificates
from helpers.proxy import TcpProxy
from helpers.teachers import (
    METRIC,
    RELATIVE,
    StubBackend,
    depth_request,
    listening,
    secret,
    serving,
    serving_expired,
)
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.errors import (
    RelativeTeacherError,
    TeacherDeniedError,
    TeacherUnreachableError,
    WrongTeacherError,
)
from tiekd_ros.teacher.protocol import DepthAnswer, TeacherIdentity
from tiekd_ros.teacher.tls import read_credentials

TOKEN, OTHER_TOKEN = "0123456789abcdef-robot", "fedcba9876543210-robot"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(autouse=True)
def _no_token_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TIEKD_TEACHER_TOKEN", "TIEKD_TEACHER_TOKENS"):
        monkeypatch.delenv(name, raising=False)


def client_for(url: str, **settings) -> TeacherClient:
    return TeacherClient(ClientSettings(url=url, **{"timeout_s": 5.0, **settings}))


def ask(url: str, **settings) -> DepthAnswer:
    with client_for(url, **settings) as client:
        return client.infer(depth_request())


def denied(words: str) -> Any:
    return pytest.raises(TeacherDeniedError, match=words)


def with_tls(certificates: Certificates, **settings: str) -> dict[str, str]:
    return {"tls_cert": str(certificates.cert), "tls_key": str(certificates.key), **settings}


@pytest.fixture
def tls(certificates) -> dict[str, Any]:
    """Settings of a client that knows the server's authority."""
    return {"tls": True, "ca": str(certificates.ca)}


def test_a_server_with_tls_is_known_by_its_authority_and_its_name(certificates, tls):
    backend = StubBackend()
    with serving(backend, **with_tls(certificates)) as url:
        assert ask(url, **tls).teacher == METRIC
        ask(url, server_name="localhost", **tls)
        assert len(backend.requests) == 2
        for wrong in (
            {"ca": str(certificates.stranger_ca)},
            {"ca": ""},
            {"server_name": "workstation"},
        ):
            with denied(r"no TLS connection.*teacher\.ca"):
                ask(url, **{**tls, **wrong})
    stranger = {
        "tls_cert": str(certificates.stranger_cert),
        "tls_key": str(certificates.stranger_key),
    }
    with serving(backend, **stranger) as url, denied("authority"):
        ask(url, **tls)
    assert len(backend.requests) == 2


def test_an_expired_certificate_is_named_and_a_renewed_one_serves_the_same_client(
    certificates, tls
):
    with (
        serving_expired(certificates.expired_cert, certificates.expired_key) as before,
        serving(StubBackend(), **with_tls(certificates)) as after,
        TcpProxy(int(before.rpartition(":")[2])) as proxy,
        client_for(proxy.url, **tls) as client,
    ):
        with denied(r"CERTIFICATE_VERIFY_FAILED.*expired"):
            client.infer(depth_request())
        proxy.target_port = int(after.rpartition(":")[2])
        assert client.infer(depth_request()).teacher == METRIC


def test_tls_on_one_side_only_gets_no_answer_and_does_no_harm(certificates, tls):
    with serving(StubBackend(), **with_tls(certificates)) as url:
        with pytest.raises(TeacherUnreachableError, match="without TLS"):
            ask(url)
        ask(url, **tls)
    with serving(StubBackend()) as url, pytest.raises(TeacherUnreachableError, match="TLS"):
        ask(url, **tls)


def test_mutual_tls_lets_in_only_whom_its_authority_knows(certificates, tls):
    own = {"cert": str(certificates.client_cert), "key": str(certificates.client_key)}
    strange = {"cert": str(certificates.stranger_cert), "key": str(certificates.stranger_key)}
    backend = StubBackend()
    with serving(backend, **with_tls(certificates, client_ca=str(certificates.ca))) as url:
        ask(url, **tls, **own)
        for shown in ({}, strange):
            with pytest.raises(TeacherUnreachableError):
                ask(url, **tls, **shown)
    assert len(backend.requests) == 1


def test_a_token_of_a_file_or_the_environment_lets_in_and_no_other_does(tmp_path, monkeypatch):
    known = secret(tmp_path / "known", "# robots", TOKEN, OTHER_TOKEN)
    own, wrong = secret(tmp_path / "own", TOKEN), secret(tmp_path / "wrong", "x" + TOKEN)
    backend = StubBackend()
    with serving(backend, token_file=known) as url:
        for settings in ({}, {"token_file": wrong}):
            with denied(r"UNAUTHENTICATED.*teacher\.token_file") as refusal:
                ask(url, **settings)
            assert TOKEN not in str(refusal.value)
        assert backend.requests == []
        ask(url, token_file=own)
        monkeypatch.setenv("TIEKD_TEACHER_TOKEN", OTHER_TOKEN)
        ask(url)


def test_a_token_that_is_exchanged_is_used_without_a_new_client(tmp_path):
    known = secret(tmp_path / "known", OTHER_TOKEN)
    own = secret(tmp_path / "own", TOKEN)
    with serving(StubBackend(), token_file=known) as url, client_for(url, token_file=own) as client:
        with pytest.raises(TeacherDeniedError):
            client.infer(depth_request())
        secret(tmp_path / "own", OTHER_TOKEN)
        client.infer(depth_request())


def test_certificates_that_vanish_are_said_and_used_again_when_they_are_back(
    certificates, tmp_path
):
    ca = tmp_path / "ca.pem"
    shutil.copy(certificates.stranger_ca, ca)
    with (
        serving(StubBackend(), **with_tls(certificates)) as url,
        client_for(url, tls=True, ca=str(ca)) as client,
    ):
        with denied("no TLS connection"):
            client.infer(depth_request())
        ca.unlink()
        with denied(f"cannot read .*{ca.name}"):
            client.infer(depth_request())
        shutil.copy(certificates.ca, ca)
        client.infer(depth_request())


def test_a_token_does_not_travel_for_others_to_read(tmp_path, tls):
    own = secret(tmp_path / "own", TOKEN)
    for elsewhere in ("192.0.2.1:8001", "workstation:8001"):
        with pytest.raises(InvalidSettingError, match=r"everybody to read.*teacher\.tls"):
            client_for(elsewhere, token_file=own)
    for settings in (
        {"url": "192.0.2.1:8001", "plaintext_token": True},
        {"url": "192.0.2.1:8001", **tls},
        {"url": "localhost:8001"},
        {"url": "127.0.0.1:8001"},
        {"url": "[::1]:8001"},
    ):
        client_for(token_file=own, **settings).close()


@pytest.mark.parametrize(
    ("lines", "mode", "message"),
    [
        ((TOKEN, OTHER_TOKEN), 0o600, "2 tokens"),
        ((), 0o600, "has no token"),
        (("short",), 0o600, "5 characters"),
        ((TOKEN,), 0o644, "open to everybody"),
    ],
)
def test_a_token_file_that_will_not_do_is_refused_at_the_start(tmp_path, lines, mode, message):
    own = Path(secret(tmp_path / "own", *lines))
    own.chmod(mode)
    with pytest.raises(InvalidSettingError, match=message) as refusal:
        client_for("127.0.0.1:8001", token_file=str(own))
    assert TOKEN not in str(refusal.value)


def test_no_secret_shows_in_settings_or_credentials(tmp_path):
    settings = ClientSettings(token_file=secret(tmp_path / "own", TOKEN))
    credentials = read_credentials(settings)
    assert credentials.headers == {"authorization": f"Bearer {TOKEN}"}
    assert TOKEN not in repr(credentials) + repr(settings)


def test_settings_and_files_that_would_not_do_are_refused_at_the_start(certificates):
    mixed = {"cert": str(certificates.client_cert), "key": str(certificates.stranger_key)}
    for settings, words in (
        ({"ca": "ca.pem"}, "tls is off"),
        ({"tls": True, "cert": "robot.pem"}, "cert and key belong together"),
        ({"tls": True, "key": "robot.key"}, "cert and key belong together"),
        ({"tls": True, "ca": "nowhere.pem"}, r"the server's authority nowhere\.pem"),
        ({"tls": True, **mixed}, "do not work together"),
    ):
        with pytest.raises(InvalidSettingError, match=words):
            client_for("127.0.0.1:1", **settings)


def test_only_the_pinned_teacher_is_sent_images():
    for pin in ("stub 8", "another", "7"):
        backend = StubBackend()
        with serving(backend) as url, client_for(url, pin=pin) as client:
            for call in (client.identity, lambda: client.infer(depth_request())):
                with pytest.raises(WrongTeacherError, match=rf"'stub' version '7'.*is '{pin}'"):
                    call()
        assert backend.requests == []
    with serving(StubBackend()) as url:
        assert ask(url, pin="stub").teacher == METRIC
    backend = StubBackend()
    with serving(backend) as url, client_for(url, pin="stub 7") as client:
        assert client.infer(depth_request()).teacher == METRIC
        backend.identity = TeacherIdentity("stub", "8", metric=True)
        with pytest.raises(WrongTeacherError, match="'8'"):
            client.infer(depth_request())
        backend.identity = METRIC
        client.infer(depth_request())
    with serving(StubBackend(identity=RELATIVE)) as url, pytest.raises(RelativeTeacherError):
        ask(url, pin="stub")  # a pin does not make it metric


# A client that cannot show who it is yet, and networks that only look like a wrong certificate.


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


def test_a_handshake_that_times_out_or_no_tls_at_all_says_nothing_of_certificates(
    certificates, tls
):
    pair = (certificates.key.read_bytes(), certificates.cert.read_bytes())
    for text, credentials, settings in (
        ("last error: Handshake timed out", grpc.ssl_server_credentials([pair]), tls),
        ("SSL_ERROR_SSL: CERTIFICATE_VERIFY_FAILED", None, {}),
    ):
        with (
            always_unavailable(text, credentials) as url,
            pytest.raises(TeacherUnreachableError, match="no answer") as failed,
        ):
            ask(url, **settings)
        assert not isinstance(failed.value, TeacherDeniedError)


def test_a_client_may_begin_without_a_token_and_use_it_once_it_is_there(tmp_path: Path):
    token, known = tmp_path / "token", secret(tmp_path / "known", TOKEN)
    with serving(StubBackend(), token_file=known) as url:
        settings = ClientSettings(url=url, token_file=str(token))
        with pytest.raises(InvalidSettingError, match="token"):
            TeacherClient(settings)
        with TeacherClient(settings, require_credentials=False) as client:
            assert str(token) in client.obstacle()
            with denied("token"):
                client.infer(depth_request())
            secret(token, TOKEN)
            assert (client.obstacle(), client.known_teacher) == ("", None)
            client.infer(depth_request())
            assert client.known_teacher == METRIC
