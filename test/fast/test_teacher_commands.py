"""`tiekd teacher serve`'s options, what systemd is told, and `tiekd teacher ping`."""

from __future__ import annotations

import dataclasses
import json
import os
import socket

import pytest
from tritonclient.grpc import service_pb2
from typer.testing import CliRunner

from helpers.certificates import make_certificates
from helpers.children import PATIENCE_S
from helpers.teachers import METRIC, RELATIVE, StubBackend, foreign_server, secret, serving
from tiekd_ros.cli.__main__ import app
from tiekd_ros.core.errors import InvalidSettingError, TiekdError
from tiekd_ros.core.launch_options import free_port
from tiekd_ros.core.settings import setting_info
from tiekd_ros.teacher.backends import backend_options
from tiekd_ros.teacher.errors import TeacherServerError
from tiekd_ros.teacher.process import Systemd
from tiekd_ros.teacher.service import TeacherService
from tiekd_ros.teacher.settings import ServerSettings, ServiceSettings


def run(*arguments: str) -> None:
    CliRunner().invoke(app, ["teacher", "serve", *arguments], catch_exceptions=False)


def test_every_setting_of_server_and_backends_is_an_option():
    help_text = CliRunner().invoke(
        app, ["teacher", "serve", "--help"], env={"COLUMNS": "500", "NO_COLOR": "1"}
    )
    assert help_text.exit_code == 0, help_text.output
    for field in (*dataclasses.fields(ServerSettings), *backend_options().values()):
        option = "--" + field.name.removesuffix("_s").replace("_", "-")
        assert option in help_text.output, option
        assert len(setting_info(field).description) > 8
    assert "between 1 and 1024 MiB" in help_text.output
    assert help_text.output.index("--model ") < help_text.output.index("--seed ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "oracle:9"], "unknown teacher backend 'oracle'"),
        (["--backend", "synthetic", "--port", "70000"], "port must be between 0 and 65535"),
        (["--backend", "synthetic", "--max-batch", "0"], "max_batch must be between 1"),
        (["--backend", "synthetic", "--log-format", "xml"], "--log-format must be one of text"),
        (["--backend", "synthetic", "--log-level", "loud"], "--log-level must be one of debug"),
        (["--backend", "synthetic", "--tls-cert", "x.pem"], "tls_cert needs tls_key"),
        (["--backend", "synthetic", "--host", "0.0.0.0"], "say --insecure"),
        (["--backend", "synthetic:3", "--seed", "4"], "different things"),
        (["--backend", "recorded:/no/such/folder"], "/no/such/folder"),
        (["--backend", "onnx:x.onnx", "--dtype", "float16"], r"--dtype\) says nothing to .* onnx"),
        (["--backend", "ensemble:onnx:a,onnx:b", "--frames", "/tmp"], r"--frames\) says nothing"),
    ],
)
def test_a_mistake_is_told_before_anything_is_served(arguments, message):
    with pytest.raises(TiekdError, match=message):
        run(*arguments)


def test_a_door_that_cannot_be_closed_is_told_before_a_model_is_loaded(tmp_path):
    nothing = ["--backend", f"onnx:{tmp_path}/nothing.onnx"]
    with pytest.raises(InvalidSettingError, match="cannot read the token file"):
        run(*nothing, "--token-file", str(tmp_path / "gone"))
    with pytest.raises(InvalidSettingError, match="say --insecure"):
        run(*nothing, "--host", "0.0.0.0")
    with pytest.raises(InvalidSettingError, match="gone"):
        run(*nothing, "--tls-cert", str(tmp_path / "gone"), "--tls-key", str(tmp_path / "gone"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        for option in ("--port", "--metrics-port"):
            with pytest.raises(TeacherServerError, match=f"127.0.0.1:{port}.*another program"):
                run(*nothing, option, port)
    with pytest.raises(InvalidSettingError, match="there is no file"):
        run(*nothing, "--port", "0")


def test_systemd_is_told_where_it_listens_and_a_watchdog_of_another_process_is_not_fed(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    assert Systemd().watchdog_s == 1.0
    for pid, watchdog_s in ((os.getpid(), 1.0), (os.getpid() + 1, None)):
        monkeypatch.setenv("WATCHDOG_PID", str(pid))
        assert Systemd().watchdog_s == watchdog_s
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    Systemd().ready("still")  # does no harm
    name = f"tiekd-test-{os.getpid()}"  # in Linux's abstract namespace
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name)
        manager.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        Systemd().alive()
        assert manager.recv(100) == b"WATCHDOG=1"


# `ping` against real servers.

TOKEN = "a-token-of-the-robots"


@pytest.fixture
def no_token_in_the_environment(monkeypatch):
    for name in ("TIEKD_TEACHER_TOKEN", "TIEKD_TEACHER_TOKENS"):
        monkeypatch.delenv(name, raising=False)


def ping(url: str, *options: str):
    arguments = ["teacher", "ping", url, "--timeout", "20", *options]
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "500"})


def test_a_ready_teacher_is_named_and_one_that_is_not_ready_or_not_metric_is_called_that():
    class Stuck(TeacherService):
        def ModelReady(self, request, context):  # noqa: N802 (the protocol says so)
            return service_pb2.ModelReadyResponse(ready=False)

    with serving(StubBackend()) as url:
        done = ping(url)
        answer = json.loads(ping(url, "--json").output)
    assert done.exit_code == 0, done.output
    assert f"{url} is ready" in done.output
    assert f"{METRIC.name} version {METRIC.version}, metric" in done.output
    assert (answer["ready"], answer["metric"], answer["name"]) == (True, True, METRIC.name)
    assert 0 < answer["round_trip_ms"] < 20e3
    with foreign_server(Stuck(StubBackend(identity=RELATIVE), ServiceSettings())) as url:
        done = ping(url)
    assert done.exit_code == 1
    assert "NOT ready" in done.output
    assert "NOT metric" in done.output


@pytest.mark.usefixtures("no_token_in_the_environment")
def test_tls_and_token_are_given_as_to_a_robot(tmp_path):
    made = make_certificates(tmp_path / "made")
    tokens = secret(tmp_path / "tokens", "the-one-from-before", TOKEN)
    own = secret(tmp_path / "own", TOKEN)
    secured = ["--ca", str(made.ca)]  # which turns TLS on
    settings = {"tls_cert": str(made.cert), "tls_key": str(made.key), "token_file": tokens}
    with serving(StubBackend(), **settings) as url:
        assert "is ready" in ping(url, *secured, "--token-file", own).output
        for address, options, text in (
            (url, [], "no answer"),
            (url, secured, "UNAUTHENTICATED"),
            (url, [*secured, "--token-file", tokens], "holds 2 tokens"),
            (url, ["--tls", "--ca", str(made.stranger_ca)], "no TLS connection"),
            (f"127.0.0.1:{free_port()}", [], "no answer from the teacher at"),
            ("http://127.0.0.1:8001", [], "url must be host:port without a scheme"),
        ):
            done = ping(address, *options)
            assert isinstance(done.exception, TiekdError)
            assert text in str(done.exception)
            assert TOKEN not in str(done.exception) + done.output
