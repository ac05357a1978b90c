"""Access to the server: tokens, loopback, files of TLS and their dates.

TLS and mutual TLS themselves: `test_teacher_client_security`.
"""

from __future__ import annotations

import datetime
import logging
import urllib.request
from contextlib import closing
from pathlib import Path

import grpc
import pytest
import trustme
from tritonclient.grpc import service_pb2, service_pb2_grpc

from helpers.certificates import Certificates, make_certificates
from helpers.children import wait_until
from helpers.teachers import StubBackend, secret, serving
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.launch_options import free_port
from tiekd_ros.teacher.security import Tokens, authorization_of
from tiekd_ros.teacher.server import TeacherServer
from tiekd_ros.teacher.settings import ServerSettings, is_loopback
from tiekd_ros.teacher.tls import CertificateWatch, certificate_until

OLD, NEW = "old-token-0123456789", "new-token-0123456789"

VARIABLE = "TIEKD_TEACHER_TOKENS"


@pytest.fixture(autouse=True)
def no_tokens_in_the_environment(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


def write_tokens(folder, text: str, mode: int = 0o600) -> str:
    path = Path(secret(folder / "tokens", text))
    path.chmod(mode)
    return str(path)


def test_each_of_several_tokens_is_accepted_and_nothing_else(tmp_path, monkeypatch):
    tokens = Tokens(write_tokens(tmp_path, f"# the fleet's\n{OLD}\n\n  {NEW}  \n"))
    assert len(tokens) == 2
    for header in (f"Bearer {OLD}", f"bearer {OLD}", f"Bearer {NEW}"):
        assert tokens.accept(header)
    for header in (
        "", "Bearer", "Bearer ", OLD, f"Basic {OLD}", f"Bearer {OLD[:-1]}", f"Bearer {OLD}x",
        f"Bearer {OLD.upper()}", f"Bearer {OLD} {NEW}", f"Bearer {OLD},{NEW}",
        f"Digest {OLD}", "Bearer " + "x" * 9999, "Bearer \udcff" + OLD, "Bearer é" + OLD,
    ):  # fmt: skip
        assert not tokens.accept(header), header
    for known in tokens._digests:  # the tokens themselves do not stay in memory
        assert OLD.encode() not in known
    assert OLD not in repr(vars(tokens))
    none = Tokens()
    assert not none
    assert not any(map(none.accept, ("Bearer ", f"Bearer {OLD}")))
    monkeypatch.setenv(VARIABLE, f"{OLD}\n{NEW}")  # where no file is given
    assert Tokens().accept(f"Bearer {NEW}")
    assert not Tokens(write_tokens(tmp_path, OLD)).accept(f"Bearer {NEW}")


def test_a_source_that_makes_no_safe_tokens_is_refused_and_shows_none(tmp_path, monkeypatch):
    for text, mode, reason in (
        ("", 0o600, "has no token"),
        ("# only a comment\n\n", 0o600, "has no token"),
        ("short", 0o600, "5 characters; use at least 16"),
        (f"{OLD}\nsecret with spaces", 0o600, "a space"),
        ("tökén-0123456789-0123", 0o600, "outside ASCII"),
        (OLD, 0o644, "open to everybody .*mode 644.*chmod 600"),
        (OLD, 0o602, "open to everybody"),
    ):
        path = write_tokens(tmp_path, text, mode)
        with pytest.raises(InvalidSettingError, match=reason) as raised:
            Tokens(path)
        assert path in str(raised.value)
        assert "secret" not in str(raised.value)
        assert OLD not in str(raised.value)
    with pytest.raises(InvalidSettingError, match=r"cannot read the token file .*gone"):
        Tokens(str(tmp_path / "gone"))
    monkeypatch.setenv(VARIABLE, "")
    with pytest.raises(InvalidSettingError, match=f"{VARIABLE} has no token"):
        Tokens()


def test_only_one_authorization_header_counts():
    header = f"Bearer {OLD}"
    assert authorization_of([("user-agent", "x"), ("authorization", header)]) == header
    assert authorization_of([("authorization", "Bearer x"), ("authorization", header)]) == ""
    assert authorization_of([]) == ""
    assert authorization_of(None) == ""


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


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def two_tokens(tmp_path) -> str:
    return secret(tmp_path / "tokens", OLD, NEW)


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


def test_every_method_wants_one_of_the_tokens(two_tokens, monkeypatch):
    backend = StubBackend()
    with (
        serving(backend, token_file=two_tokens) as url,
        grpc.insecure_channel(url) as channel,
    ):
        for method in METHODS:
            assert code_of(channel, method) == "UNAUTHENTICATED"
            assert code_of(channel, method, token="x" * 20) == "UNAUTHENTICATED"
        assert backend.requests == []
        for token in (OLD, NEW):
            assert ask(channel, token=token).live
            assert ask(channel, "ModelConfig", token).config.name == "depth_teacher"
    monkeypatch.setenv(VARIABLE, OLD)
    with serving(StubBackend()) as url, grpc.insecure_channel(url) as channel:
        assert code_of(channel) == "UNAUTHENTICATED"
        assert ask(channel, token=OLD).live


def test_a_refusal_says_what_to_send_and_the_log_tells_of_many_only_once(two_tokens, caplog):
    with (
        caplog.at_level(logging.WARNING, "tiekd_ros.teacher"),
        serving(StubBackend(), token_file=two_tokens) as url,
        grpc.insecure_channel(url) as channel,
    ):
        for _ in range(5):
            with pytest.raises(grpc.RpcError, match="authorization: Bearer TOKEN"):
                ask(channel)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert "without a valid token, the last from ipv4:127.0.0.1" in told[0]


def test_beyond_loopback_the_server_wants_tls_and_a_token(certificates, two_tokens, caplog):
    files, token = tls(certificates), {"token_file": two_tokens}
    trusted = grpc.ssl_channel_credentials(certificates.ca.read_bytes())
    for settings, lacking in (
        ({}, r"no TLS .* and no token"),
        (files, r"no token \(--token-file\)"),
        (token, r"no TLS \(--tls-cert, --tls-key\);"),
    ):
        for host in ("0.0.0.0", "::", "192.0.2.7", "no-such-host.invalid"):
            server = TeacherServer(StubBackend(), ServerSettings(host=host, **settings))
            with pytest.raises(InvalidSettingError, match=lacking):
                server.start()
    for settings in ({**files, **token}, {"insecure": True}):
        server = TeacherServer(StubBackend(), ServerSettings(host="0.0.0.0", **settings))
        url = f"127.0.0.1:{server.start()}"
        try:
            is_open = "insecure" in settings
            opened = grpc.insecure_channel(url) if is_open else grpc.secure_channel(url, trusted)
            with opened as channel:
                assert ask(channel, token=NEW).live
        finally:
            server.stop(0.0)
    assert caplog.text.count("every machine that reaches 0.0.0.0 can use it") == 1
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert is_loopback(host)
    for host in ("0.0.0.0", "::", "10.0.0.1", "", "8.8.8.8", "x.invalid"):
        assert not is_loopback(host)


def test_a_private_key_that_everybody_can_read_is_warned_of(certificates, tmp_path, caplog):
    key = tmp_path / "key.pem"
    key.write_bytes(certificates.key.read_bytes())
    key.chmod(0o644)
    with serving(StubBackend(), tls_cert=str(certificates.cert), tls_key=str(key)):
        pass
    assert f"access to the private key {key}" in caplog.text


def test_files_that_make_no_tls_are_named(certificates, tmp_path):
    for lacking in ("tls_cert", "tls_key"):
        with pytest.raises(InvalidSettingError, match=f"needs {lacking} as well"):
            ServerSettings(**{**tls(certificates), lacking: ""})
    with pytest.raises(InvalidSettingError, match="client_ca needs tls_cert"):
        ServerSettings(client_ca=str(certificates.ca))
    gone, text, damaged = (tmp_path / f"{name}.pem" for name in ("gone", "text", "damaged"))
    text.write_text("no certificate")
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
    with pytest.raises(InvalidSettingError, match="no certificate with dates"):
        certificate_until(damaged)


# A certificate's dates.

DAY = datetime.timedelta(days=1)


def issue(folder, begin: datetime.timedelta, end: datetime.timedelta) -> tuple[str, str]:
    """Write a certificate that holds from `begin` until `end` from now; returns it and its key."""
    now = datetime.datetime.now(datetime.timezone.utc)
    leaf = trustme.CA().issue_cert("localhost", not_before=now + begin, not_after=now + end)
    cert, key = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(leaf.cert_chain_pems[0].bytes())
    key.write_bytes(leaf.private_key_pem.bytes())
    key.chmod(0o600)
    return str(cert), str(key)


@pytest.mark.parametrize(
    ("begin", "end", "words"),
    [(-3 * DAY, -DAY, "has expired on "), (2 * DAY, 9 * DAY, "does not hold yet: from ")],
)
def test_one_that_does_not_hold_today_stops_the_start_with_its_date(tmp_path, begin, end, words):
    cert, key = issue(tmp_path, begin, end)
    date = datetime.datetime.now(datetime.timezone.utc) + (end if end < 0 * DAY else begin)
    with pytest.raises(InvalidSettingError, match=f"{words}{date:%Y-%m-%d}"):
        TeacherServer(StubBackend(), ServerSettings(tls_cert=cert, tls_key=key)).start()


def test_an_expired_one_of_its_chain_is_warned_of_and_does_not_stop_the_start(
    tmp_path, certificates, caplog
):
    own, old = certificates.cert.read_bytes(), certificates.expired_cert.read_bytes()
    chain = tmp_path / "chain.pem"
    chain.write_bytes(own + old)
    with caplog.at_level(logging.WARNING), closing(CertificateWatch(str(chain))) as watch:
        assert watch.until == certificate_until(certificates.cert)
    (words,) = caplog.messages
    assert words.startswith(f"certificate 2 of {chain}, of its chain, has expired on ")
    chain.write_bytes(old + own)
    with pytest.raises(InvalidSettingError, match="expired"):
        certificate_until(chain)


def test_its_last_30_days_are_warned_of_at_the_start_and_again_and_again(tmp_path, caplog):
    cert, _ = issue(tmp_path, -DAY, 29 * DAY)
    with (
        caplog.at_level(logging.WARNING),
        closing(CertificateWatch(cert, check_every_s=3600)) as watch,
    ):
        assert len(caplog.messages) == 1
        assert f"{cert} expires on {watch.until:%Y-%m-%d}" in caplog.text
    with closing(CertificateWatch(cert, check_every_s=0.01)):
        wait_until(lambda: len(caplog.messages) > 3)
    for days in (9, 365 * 30):  # beyond 2049 dates are written in another way
        cert, _ = issue(tmp_path, -DAY, days * DAY)
        left = certificate_until(cert) - datetime.datetime.now(datetime.timezone.utc)
        assert abs(left - days * DAY) < datetime.timedelta(minutes=5)


def test_a_fresh_one_is_not_warned_of_and_the_metrics_show_how_long_it_holds(certificates, caplog):
    settings = tls(certificates, metrics_port=(port := free_port()))
    with caplog.at_level(logging.WARNING), serving(StubBackend(), **settings):
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    (line,) = [each for each in text.splitlines() if each.startswith("tiekd_teacher_certificate")]
    name, left = line.split()
    assert name == "tiekd_teacher_certificate_left_seconds"
    until = certificate_until(certificates.cert)
    assert float(left) == pytest.approx(
        until.timestamp() - datetime.datetime.now().timestamp(), abs=60
    )
    assert "certificate" not in caplog.text
