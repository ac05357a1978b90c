"""Client and server that do not trust each other: certificates and tokens that do not do.

Over real TLS on 127.0.0.1. A test passes when nobody without the right papers gets a label, the
robot is told which of them is at fault, and gets in once they have been exchanged, with the same
client, while server and robot run.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.certificates import Certificates, make_certificates
from helpers.proxy import TcpProxy
from helpers.teachers import METRIC, StubBackend, depth_request, serving, serving_expired
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.errors import TeacherDeniedError, TeacherUnreachableError

OLD, NEW, STRANGE = ("o" * 32, "n" * 32, "s" * 32)  # tokens


def client_for(url: str, **settings) -> TeacherClient:
    quick = {
        "timeout_s": 5.0,
        "attempts": 2,
        "backoff_initial_s": 0.02,
        "backoff_max_s": 0.1,
        "break_after": 1000,
    }
    return TeacherClient(ClientSettings(url=url, **{**quick, **settings}))


def assert_label(client: TeacherClient) -> None:
    assert client.infer(depth_request()).teacher == METRIC


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def write_secret(path: Path, *tokens: str) -> str:
    path.touch(0o600)
    path.write_text("".join(f"{token}\n" for token in tokens))
    return str(path)


@pytest.fixture(scope="module")
def papers(tmp_path_factory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def tls(papers) -> dict[str, str]:
    """The server's settings."""
    return {"tls_cert": str(papers.cert), "tls_key": str(papers.key)}


@pytest.fixture
def trusting(papers) -> dict[str, object]:
    """The client's settings."""
    return {"tls": True, "ca": str(papers.ca)}


def test_with_the_right_papers_on_both_sides_there_is_a_label(papers, tls, trusting, tmp_path):
    token = write_secret(tmp_path / "token", OLD)
    own = {"cert": str(papers.client_cert), "key": str(papers.client_key), "token_file": token}
    with (
        serving(StubBackend(), **tls, client_ca=str(papers.ca), token_file=token) as url,
        client_for(url, **trusting, **own) as client,
    ):
        assert_label(client)


def test_an_expired_certificate_is_named_and_a_renewed_one_lets_the_same_client_in(
    papers, tls, trusting
):
    with (
        serving_expired(papers.expired_cert, papers.expired_key) as before,
        serving(StubBackend(), **tls) as after,
        TcpProxy(port_of(before)) as proxy,
        client_for(proxy.url, **trusting) as client,
    ):
        with pytest.raises(TeacherDeniedError, match="CERTIFICATE_VERIFY_FAILED"):
            client.infer(depth_request())
        proxy.target_port = port_of(after)
        assert_label(client)


def test_a_server_with_a_strangers_certificate_gets_no_image(papers, trusting):
    stranger = {"tls_cert": str(papers.stranger_cert), "tls_key": str(papers.stranger_key)}
    backend = StubBackend()
    with (
        serving(backend, **stranger) as url,
        client_for(url, **trusting) as client,
        pytest.raises(TeacherDeniedError, match="authority"),
    ):
        client.infer(depth_request())
    assert backend.requests == []


def test_plaintext_to_a_port_with_tls_gets_no_answer_and_harms_nobody(tls, trusting):
    with serving(StubBackend(), **tls) as url:
        with client_for(url) as plain, pytest.raises(TeacherUnreachableError, match="without TLS"):
            plain.infer(depth_request())
        with client_for(url, **trusting) as client:
            assert_label(client)


def test_tls_to_a_plaintext_port_is_told_so(trusting):
    with (
        serving(StubBackend()) as url,
        client_for(url, **trusting) as client,
        pytest.raises(TeacherUnreachableError, match="TLS"),
    ):
        client.infer(depth_request())


@pytest.mark.parametrize("paper", ["none", "stranger"])
def test_a_robot_without_a_certificate_of_the_right_authority_is_kept_out(
    papers, tls, trusting, paper
):
    own = {}
    if paper == "stranger":
        own = {"cert": str(papers.stranger_cert), "key": str(papers.stranger_key)}
    backend = StubBackend()
    with serving(backend, **tls, client_ca=str(papers.ca)) as url:
        with (
            client_for(url, **trusting, **own) as stranger,
            pytest.raises(TeacherUnreachableError),
        ):
            stranger.infer(depth_request())
        assert backend.requests == []


def test_a_wrong_token_is_denied_and_the_right_one_lets_the_same_client_in(tmp_path):
    backend = StubBackend()
    own = write_secret(tmp_path / "own", STRANGE)
    with (
        serving(backend, token_file=write_secret(tmp_path / "server", OLD)) as url,
        client_for(url, token_file=own) as client,
    ):
        with pytest.raises(TeacherDeniedError, match="UNAUTHENTICATED") as denied:
            client.infer(depth_request())
        assert STRANGE not in str(denied.value)
        assert backend.requests == []
        write_secret(tmp_path / "own", OLD)
        assert_label(client)


def test_without_a_token_there_is_no_label(tmp_path):
    with (
        serving(StubBackend(), token_file=write_secret(tmp_path / "server", OLD)) as url,
        client_for(url) as client,
        pytest.raises(TeacherDeniedError, match="token"),
    ):
        client.infer(depth_request())


def test_old_and_new_tokens_are_good_at_the_same_time(tmp_path):
    with serving(StubBackend(), token_file=write_secret(tmp_path / "server", OLD, NEW)) as url:
        for token in (OLD, NEW):
            own = write_secret(tmp_path / "own", token)
            with client_for(url, token_file=own) as client:
                assert_label(client)
