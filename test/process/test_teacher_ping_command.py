"""`tiekd teacher ping` against real servers: what it says, and how it ends."""

from __future__ import annotations

import json

import pytest
from tritonclient.grpc import service_pb2

from helpers.certificates import make_certificates
from helpers.children import Finished, run_python
from helpers.teachers import RELATIVE, StubBackend, foreign_server, secret, serving
from tiekd_ros.core.launch_options import free_port
from tiekd_ros.teacher.service import TeacherService
from tiekd_ros.teacher.settings import ServiceSettings

TOKEN = "a-token-of-the-robots"


@pytest.fixture(autouse=True)
def no_token_in_the_environment(monkeypatch):
    for name in ("TIEKD_TEACHER_TOKEN", "TIEKD_TEACHER_TOKENS"):
        monkeypatch.delenv(name, raising=False)


def ping(url: str, *options: str) -> Finished:
    return run_python("-m", "tiekd_ros.cli", "teacher", "ping", url, "--timeout", "20", *options)


def test_a_ready_teacher_is_named_and_ends_with_0():
    with serving(StubBackend()) as url:
        done = ping(url)
        answer = json.loads(ping(url, "--json").stdout)
    identity = StubBackend().identity
    assert done.returncode == 0, done.stderr
    assert f"{url} is ready" in done.stdout
    assert f"{identity.name} version {identity.version}, metric" in done.stdout
    assert (answer["ready"], answer["metric"], answer["name"]) == (True, True, identity.name)
    assert 0 < answer["round_trip_ms"] < 20e3


def test_a_teacher_that_is_not_ready_or_not_metric_is_called_what_it_is():
    class Stuck(TeacherService):
        def ModelReady(self, request, context):  # noqa: N802 (the protocol says so)
            return service_pb2.ModelReadyResponse(ready=False)

    with foreign_server(Stuck(StubBackend(identity=RELATIVE), ServiceSettings())) as url:
        done = ping(url)
    assert (done.returncode, "NOT ready" in done.stdout, "NOT metric" in done.stdout) == (
        1, True, True,
    )  # fmt: skip


def test_a_wrong_address_ends_with_1_and_says_so():
    url = f"127.0.0.1:{free_port()}"
    for given, words in (
        (url, f"no answer from the teacher at {url}"),
        ("http://127.0.0.1:8001", "url must be host:port without a scheme"),
    ):
        done = ping(given)
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_tls_and_token_are_given_as_to_a_robot(tmp_path):
    made = make_certificates(tmp_path / "made")
    tokens = secret(tmp_path / "tokens", "the-one-from-before", TOKEN)
    own = secret(tmp_path / "own", TOKEN)
    secured = ["--ca", str(made.ca)]  # which turns TLS on
    settings = {"tls_cert": str(made.cert), "tls_key": str(made.key), "token_file": tokens}
    with serving(StubBackend(), **settings) as url:
        good = ping(url, *secured, "--token-file", own)
        assert (good.returncode, "is ready" in good.stdout) == (0, True), good.stderr
        for options, text in (
            ([], "no answer"),
            (secured, "UNAUTHENTICATED"),
            ([*secured, "--token-file", tokens], "holds 2 tokens"),
            (["--tls", "--ca", str(made.stranger_ca)], "no TLS connection"),
        ):
            done = ping(url, *options)
            assert (done.returncode, text in done.stderr) == (1, True), (options, done.stderr)
            assert TOKEN not in done.stdout + done.stderr
