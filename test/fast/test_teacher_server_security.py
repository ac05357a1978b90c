"""Who gets in: tokens, TLS, mutual TLS, and where the server does not listen at all."""

from __future__ import annotations

import logging

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from helpers.certificates import Certificates, make_certificates
from helpers.teachers import StubBackend, serving
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.teacher.server import TeacherServer
from tiekd_ros.teacher.settings import ServerSettings, is_loopback

OLD, NEW = "old-token-0123456789", "new-token-0123456789"
SOON_S = 5.0
METHODS = {
    "ServerLive": service_pb2.ServerLiveRequest(),
    "ServerReady": service_pb2.ServerReadyRequest(),
    "ServerMetadata": service_pb2.ServerMetadataRequest(),
    "ModelReady": service_pb2.ModelReadyRequest(name="depth_teacher"),
    "ModelMetadata": service_pb2.ModelMetadataRequest(name="depth_teacher"),
    "ModelConfig": service_pb2.ModelConfigRequest(name="depth_teacher"),
    "ModelStatistics": service_pb2.ModelStatisticsRequest(),
    "ModelInfer": service_pb2.ModelInferRequest(model_name="depth_teacher"),
}


@pytest.fixture(autouse=True)
def no_tokens_in_the_environment(monkeypatch):
    monkeypatch.delenv("TIEKD_TEACHER_TOKENS", raising=False)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def token_file(tmp_path) -> str:
    path = tmp_path / "tokens"
    path.write_text(f"{OLD}\n{NEW}\n")
    path.chmod(0o600)
    return str(path)


def tls(certificates: Certificates, **more) -> dict[str, object]:
    return {"tls_cert": str(certificates.cert), "tls_key": str(certificates.key), **more}


def ask(channel: grpc.Channel, method: str = "ServerLive", token: str = ""):
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    metadata = [("authorization", f"Bearer {token}")] if token else []
    return getattr(stub, method)(METHODS[method], timeout=SOON_S, metadata=metadata)


def code_of(channel: grpc.Channel, method: str = "ServerLive", token: str = "") -> str:
    with pytest.raises(grpc.RpcError) as raised:
        ask(channel, method, token)
    return raised.value.code().name


def secure(url: str, ca, cert=None, key=None) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(
        ca.read_bytes(), key and key.read_bytes(), cert and cert.read_bytes()
    )
    return grpc.secure_channel(url, credentials)


@pytest.mark.parametrize("method", METHODS)
def test_without_a_token_every_method_is_unauthenticated(token_file, method):
    backend = StubBackend()
    with serving(backend, token_file=token_file) as url, grpc.insecure_channel(url) as channel:
        assert code_of(channel, method) == "UNAUTHENTICATED"
        assert code_of(channel, method, token="x" * 20) == "UNAUTHENTICATED"
    assert backend.requests == []


@pytest.mark.parametrize("token", [OLD, NEW])
def test_each_token_of_the_file_lets_in(token_file, token):
    with (
        serving(StubBackend(), token_file=token_file) as url,
        grpc.insecure_channel(url) as channel,
    ):
        assert ask(channel, token=token).live
        assert ask(channel, "ModelConfig", token).config.name == "depth_teacher"


def test_tokens_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("TIEKD_TEACHER_TOKENS", OLD)
    with serving(StubBackend()) as url, grpc.insecure_channel(url) as channel:
        assert code_of(channel) == "UNAUTHENTICATED"
        assert ask(channel, token=OLD).live


def test_a_refusal_says_what_to_send_and_the_log_tells_of_many_only_once(token_file, caplog):
    with (
        caplog.at_level(logging.WARNING, "tiekd_ros.teacher"),
        serving(StubBackend(), token_file=token_file) as url,
        grpc.insecure_channel(url) as channel,
    ):
        for _ in range(5):
            with pytest.raises(grpc.RpcError, match="authorization: Bearer TOKEN"):
                ask(channel)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert "without a valid token, the last from ipv4:127.0.0.1" in told[0]


def test_over_tls_a_client_that_trusts_the_authority_is_served(certificates, token_file):
    settings = tls(certificates, token_file=token_file)
    with serving(StubBackend(), **settings) as url, secure(url, certificates.ca) as channel:
        assert ask(channel, token=OLD).live
        assert code_of(channel) == "UNAUTHENTICATED"


def test_a_client_that_does_not_trust_it_sends_nothing(certificates):
    with (
        serving(StubBackend(), **tls(certificates)) as url,
        secure(url, certificates.stranger_ca) as channel,
    ):
        assert code_of(channel) == "UNAVAILABLE"


def test_without_tls_there_is_no_answer_on_a_tls_port(certificates):
    with serving(StubBackend(), **tls(certificates)) as url:
        with grpc.insecure_channel(url) as channel:
            assert code_of(channel) == "UNAVAILABLE"
        with secure(url, certificates.ca) as channel:
            assert ask(channel).live


def test_mutual_tls_lets_in_only_whom_the_authority_knows(certificates):
    settings = tls(certificates, client_ca=str(certificates.ca))
    with serving(StubBackend(), **settings) as url:
        pair = (certificates.client_cert, certificates.client_key)
        with secure(url, certificates.ca, *pair) as channel:
            assert ask(channel).live
        with secure(url, certificates.ca) as channel:
            assert code_of(channel) == "UNAVAILABLE"
        stranger = (certificates.stranger_cert, certificates.stranger_key)
        with secure(url, certificates.ca, *stranger) as channel:
            assert code_of(channel) == "UNAVAILABLE"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "no-such-host.invalid"])
@pytest.mark.parametrize(
    ("with_tls", "with_tokens", "lacking"),
    [
        (False, False, r"no TLS .* and no token"),
        (True, False, r"no token \(--token-file\)"),
        (False, True, r"no TLS \(--tls-cert, --tls-key\);"),
    ],
)
def test_beyond_loopback_the_server_wants_tls_and_a_token(
    certificates, token_file, host, with_tls, with_tokens, lacking
):
    settings = {**(tls(certificates) if with_tls else {})}
    settings |= {"token_file": token_file} if with_tokens else {}
    server = TeacherServer(StubBackend(), ServerSettings(host=host, **settings))
    with pytest.raises(InvalidSettingError, match=lacking):
        server.start()


def test_with_both_it_listens_everywhere(certificates, token_file):
    settings = ServerSettings(host="0.0.0.0", **tls(certificates, token_file=token_file))
    server = TeacherServer(StubBackend(), settings)
    port = server.start()
    try:
        with secure(f"127.0.0.1:{port}", certificates.ca) as channel:
            assert ask(channel, token=NEW).live
    finally:
        server.stop(0.0)


def test_insecure_says_that_it_may_without_and_the_log_warns(caplog):
    server = TeacherServer(StubBackend(), ServerSettings(host="0.0.0.0", insecure=True))
    port = server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            assert ask(channel).live
    finally:
        server.stop(0.0)
    assert "whoever reaches 0.0.0.0 can use it" in caplog.text


def test_a_private_key_that_everybody_can_read_is_warned_of(certificates, tmp_path, caplog):
    key = tmp_path / "key.pem"
    key.write_bytes(certificates.key.read_bytes())
    key.chmod(0o644)
    with serving(StubBackend(), tls_cert=str(certificates.cert), tls_key=str(key)):
        pass
    assert f"access to the private key {key}" in caplog.text


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_these_are_loopback(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "", "8.8.8.8", "x.invalid"])
def test_these_are_not(host):
    assert not is_loopback(host)


@pytest.mark.parametrize("lacking", ["tls_cert", "tls_key"])
def test_a_certificate_and_its_key_come_together(certificates, lacking):
    settings = {**tls(certificates), lacking: ""}
    with pytest.raises(InvalidSettingError, match=f"needs {lacking} as well"):
        ServerSettings(**settings)


def test_mutual_tls_needs_a_certificate_of_the_servers_own(certificates):
    with pytest.raises(InvalidSettingError, match="client_ca needs tls_cert"):
        ServerSettings(client_ca=str(certificates.ca))


def test_files_that_make_no_tls_are_named(certificates, tmp_path):
    gone, text = tmp_path / "gone.pem", tmp_path / "text.pem"
    text.write_text("no certificate")
    damaged = tmp_path / "damaged.pem"
    damaged.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    for changes, reason in (
        ({"tls_cert": str(gone)}, "cannot read the server's certificate .*gone.pem"),
        ({"tls_key": str(gone)}, "cannot read the server's private key .*gone.pem"),
        ({"tls_cert": str(text)}, "text.pem is no PEM file"),
        ({"tls_key": str(certificates.client_key)}, "do not work together"),
        ({"tls_cert": str(damaged)}, "do not work together"),
        ({"client_ca": str(damaged)}, "the clients' authority .*damaged.pem holds no usable"),
    ):
        settings = ServerSettings(**{**tls(certificates), **changes})
        with pytest.raises(InvalidSettingError, match=reason):
            TeacherServer(StubBackend(), settings).start()
