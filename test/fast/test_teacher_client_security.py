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
from tiekd_ros.teacher.protocol import TeacherIdentity
from tiekd_ros.teacher.tls import read_credentials

TOKEN, OTHER_TOKEN = "0123456789abcdef-robot", "fedcba9876543210-robot"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(autouse=True)
def _no_token_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TIEKD_TEACHER_TOKEN", "TIEKD_TEACHER_TOKENS"):
        monkeypatch.delenv(name, raising=False)


def secret(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o600)
    return str(path)


def client_for(url: str, **settings) -> TeacherClient:
    return TeacherClient(ClientSettings(url=url, **{"timeout_s": 5.0, **settings}))


def with_tls(certificates: Certificates, **settings: str) -> dict[str, str]:
    return {"tls_cert": str(certificates.cert), "tls_key": str(certificates.key), **settings}


def test_a_server_with_tls_is_known_by_its_authority(certificates):
    with (
        serving(StubBackend(), **with_tls(certificates)) as url,
        client_for(url, tls=True, ca=str(certificates.ca)) as client,
    ):
        assert client.infer(depth_request()).teacher == METRIC


@pytest.mark.parametrize("authority", ["stranger_ca", ""])
def test_a_server_whose_authority_is_not_known_is_not_believed(certificates, authority):
    ca = str(getattr(certificates, authority)) if authority else ""
    backend = StubBackend()
    with (
        serving(backend, **with_tls(certificates)) as url,
        client_for(url, tls=True, ca=ca) as client,
        pytest.raises(TeacherDeniedError, match=r"no TLS connection.*teacher\.ca"),
    ):
        client.infer(depth_request())
    assert backend.requests == []


def test_an_expired_certificate_is_named_and_a_renewed_one_serves_the_same_client(certificates):
    with (
        serving_expired(certificates.expired_cert, certificates.expired_key) as before,
        serving(StubBackend(), **with_tls(certificates)) as after,
        TcpProxy(int(before.rpartition(":")[2])) as proxy,
        client_for(proxy.url, tls=True, ca=str(certificates.ca)) as client,
    ):
        with pytest.raises(TeacherDeniedError, match=r"CERTIFICATE_VERIFY_FAILED.*expired"):
            client.infer(depth_request())
        proxy.target_port = int(after.rpartition(":")[2])
        assert client.infer(depth_request()).teacher == METRIC


def test_a_server_with_a_strangers_certificate_gets_no_image(certificates):
    backend = StubBackend()
    stranger = {
        "tls_cert": str(certificates.stranger_cert),
        "tls_key": str(certificates.stranger_key),
    }
    with (
        serving(backend, **stranger) as url,
        client_for(url, tls=True, ca=str(certificates.ca)) as client,
        pytest.raises(TeacherDeniedError, match="authority"),
    ):
        client.infer(depth_request())
    assert backend.requests == []


def test_the_name_in_the_certificate_can_be_another_than_the_host(certificates):
    with serving(StubBackend(), **with_tls(certificates)) as url:
        tls = {"tls": True, "ca": str(certificates.ca)}
        with client_for(url, server_name="localhost", **tls) as client:
            client.infer(depth_request())
        with (
            client_for(url, server_name="workstation", **tls) as client,
            pytest.raises(TeacherDeniedError),
        ):
            client.infer(depth_request())


def test_tls_on_one_side_only_gets_no_answer_and_harms_nobody(certificates):
    tls = {"tls": True, "ca": str(certificates.ca)}
    with serving(StubBackend(), **with_tls(certificates)) as url:
        with client_for(url) as plain, pytest.raises(TeacherUnreachableError, match="without TLS"):
            plain.infer(depth_request())
        with client_for(url, **tls) as client:
            client.infer(depth_request())
    with (
        serving(StubBackend()) as url,
        client_for(url, **tls) as client,
        pytest.raises(TeacherUnreachableError, match="TLS"),
    ):
        client.infer(depth_request())


def test_mutual_tls_lets_in_whom_its_authority_knows_and_nobody_else(certificates):
    mutual = with_tls(certificates, client_ca=str(certificates.ca))
    tls = {"tls": True, "ca": str(certificates.ca)}
    own = {"cert": str(certificates.client_cert), "key": str(certificates.client_key)}
    strange = {"cert": str(certificates.stranger_cert), "key": str(certificates.stranger_key)}
    backend = StubBackend()
    with serving(backend, **mutual) as url:
        with client_for(url, **tls, **own) as client:
            client.infer(depth_request())
        for shown in ({}, strange):
            with client_for(url, **tls, **shown) as client, pytest.raises(TeacherUnreachableError):
                client.infer(depth_request())
    assert len(backend.requests) == 1


def test_a_token_comes_from_a_file_or_the_environment_and_each_known_one_does(
    tmp_path, monkeypatch
):
    known = secret(tmp_path / "known", "# robots", TOKEN, OTHER_TOKEN)
    own = secret(tmp_path / "own", TOKEN)
    with serving(StubBackend(), token_file=known) as url:
        with client_for(url, token_file=own) as client:
            client.infer(depth_request())
        monkeypatch.setenv("TIEKD_TEACHER_TOKEN", OTHER_TOKEN)
        with client_for(url) as client:
            client.infer(depth_request())


def test_a_missing_or_wrong_token_is_said_and_gets_no_label(tmp_path):
    known = secret(tmp_path / "known", TOKEN)
    wrong = secret(tmp_path / "wrong", OTHER_TOKEN)
    backend = StubBackend()
    with serving(backend, token_file=known) as url:
        for settings in ({}, {"token_file": wrong}):
            with (
                client_for(url, **settings) as client,
                pytest.raises(
                    TeacherDeniedError, match=r"UNAUTHENTICATED.*teacher\.token_file"
                ) as refusal,
            ):
                client.infer(depth_request())
            assert OTHER_TOKEN not in str(refusal.value)
    assert backend.requests == []


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
        with pytest.raises(TeacherDeniedError, match="no TLS connection"):
            client.infer(depth_request())
        ca.unlink()
        with pytest.raises(TeacherDeniedError, match=f"cannot read .*{ca.name}"):
            client.infer(depth_request())
        shutil.copy(certificates.ca, ca)
        client.infer(depth_request())


def test_a_token_does_not_travel_for_everybody_to_read(tmp_path, certificates):
    own = secret(tmp_path / "own", TOKEN)
    with pytest.raises(InvalidSettingError, match=r"everybody to read.*teacher\.tls"):
        client_for("192.0.2.1:8001", token_file=own)
    with pytest.raises(InvalidSettingError, match="everybody to read"):
        client_for("workstation:8001", token_file=own)
    client_for("192.0.2.1:8001", token_file=own, plaintext_token=True).close()
    client_for("192.0.2.1:8001", token_file=own, tls=True, ca=str(certificates.ca)).close()
    for local in ("localhost:8001", "127.0.0.1:8001", "[::1]:8001"):
        client_for(local, token_file=own).close()


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ca": "ca.pem"}, "tls is off"),
        ({"tls": True, "cert": "robot.pem"}, "cert and key belong together"),
        ({"tls": True, "key": "robot.key"}, "cert and key belong together"),
    ],
)
def test_settings_that_would_not_be_used_are_refused(settings, message):
    with pytest.raises(InvalidSettingError, match=message):
        ClientSettings(**settings)


def test_files_that_are_not_there_are_named_at_the_start(certificates):
    with pytest.raises(InvalidSettingError, match=r"the server's authority nowhere\.pem"):
        client_for("127.0.0.1:1", tls=True, ca="nowhere.pem")
    mixed = {"cert": str(certificates.client_cert), "key": str(certificates.stranger_key)}
    with pytest.raises(InvalidSettingError, match="do not work together"):
        client_for("127.0.0.1:1", tls=True, **mixed)


@pytest.mark.parametrize("pin", ["stub", "stub 7"])
def test_the_pinned_teacher_is_taken(pin):
    with serving(StubBackend()) as url, client_for(url, pin=pin) as client:
        assert client.infer(depth_request()).teacher == METRIC


@pytest.mark.parametrize("pin", ["stub 8", "another", "7"])
def test_another_than_the_pinned_teacher_is_not_even_sent_the_image(pin):
    backend = StubBackend()
    with serving(backend) as url, client_for(url, pin=pin) as client:
        with pytest.raises(WrongTeacherError, match=rf"'stub' version '7'.*pin is '{pin}'"):
            client.infer(depth_request())
        with pytest.raises(WrongTeacherError):
            client.identity()
    assert backend.requests == []


def test_a_teacher_that_takes_the_pinned_ones_place_is_noticed_at_its_first_answer():
    backend = StubBackend()
    with serving(backend) as url, client_for(url, pin="stub 7") as client:
        client.infer(depth_request())
        backend.identity = TeacherIdentity("stub", "8", metric=True)
        with pytest.raises(WrongTeacherError, match="'8'"):
            client.infer(depth_request())
        backend.identity = METRIC
        client.infer(depth_request())


def test_the_pin_does_not_make_a_relative_teacher_metric():
    with (
        serving(StubBackend(identity=RELATIVE)) as url,
        client_for(url, pin="stub") as client,
        pytest.raises(RelativeTeacherError),
    ):
        client.identity()


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


def failure(url: str, **settings: Any) -> TeacherUnreachableError:
    with (
        client_for(url, **settings) as client,
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
    assert "no answer" in str(error)


def test_without_tls_no_text_is_taken_for_a_certificates():
    with always_unavailable("SSL_ERROR_SSL: CERTIFICATE_VERIFY_FAILED", None) as url:
        assert not isinstance(failure(url), TeacherDeniedError)


def test_a_client_may_begin_without_a_token_and_use_it_once_it_is_there(tmp_path: Path):
    token = tmp_path / "token"
    known = tmp_path / "known"
    for file in (known, token):
        file.write_text(TOKEN)
        file.chmod(0o600)
    with serving(StubBackend(), token_file=str(known)) as url:
        settings = ClientSettings(url=url, token_file=str(token))
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
