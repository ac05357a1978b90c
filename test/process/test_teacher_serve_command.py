"""`tiekd teacher serve` as a process: its options, its end, what systemd hears, what it logs."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import tritonclient.grpc as triton
from typer.testing import CliRunner

from helpers.children import PATIENCE_S, child_environment, run_python, wait_until
from helpers.strangers import refusal
from helpers.teachers import depth_request
from tiekd_ros.cli.main import app
from tiekd_ros.core.errors import InvalidSettingError, TiekdError
from tiekd_ros.core.images import encode_jpeg, encode_png
from tiekd_ros.core.settings import setting_info
from tiekd_ros.teacher.backends import backend_options
from tiekd_ros.teacher.errors import TeacherServerError
from tiekd_ros.teacher.protocol import infer_arguments
from tiekd_ros.teacher.settings import ServerSettings
from tiekd_ros.worlds import IndoorWorld, WorldSettings

SERVE = ["-m", "tiekd_ros.cli", "teacher", "serve"]


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, *SERVE, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=child_environment(COLUMNS="200", **environment),
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def url_of(child: subprocess.Popen[str]) -> str:
    return child.stdout.readline().rsplit(" ", 1)[1].strip()


def logged_url_of(child: subprocess.Popen[str]) -> tuple[str, list[str]]:
    """Read JSON logs up to the one that says where the server listens; returns that and them."""
    lines = []
    while True:
        lines.append(child.stderr.readline())
        text = json.loads(lines[-1])["message"]
        if " listens on " in text:
            return text.rsplit(" ", 1)[1], lines


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
        (["--backend", "oracle"], "unknown teacher backend 'oracle'"),
        (["--backend", "oracle:9"], "unknown teacher backend 'oracle'"),
        (["--backend", "synthetic", "--port", "70000"], "port must be between 0 and 65535"),
        (["--backend", "synthetic", "--max-batch", "0"], "max_batch must be between 1"),
        (["--backend", "synthetic", "--log-format", "xml"], "--log-format must be one of text"),
        (["--backend", "synthetic", "--log-level", "loud"], "--log-level must be one of debug"),
        (["--backend", "synthetic", "--tls-cert", "x.pem"], "tls_cert needs tls_key"),
        (["--backend", "synthetic", "--host", "0.0.0.0"], "say --insecure"),
        (["--backend", "synthetic:3", "--seed", "4"], "different things"),
        (["--backend", "synthetic:0", "--seed", "5"], "different things"),
        (["--backend", "recorded:/no/such/folder"], "/no/such/folder"),
        (["--backend", "huggingface"], "needs a checkpoint: give model="),
        (["--backend", f"huggingface:{__file__}"], "is a file; give the folder"),
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


def test_a_missing_token_file_is_one_line_and_code_1(tmp_path):
    done = run_python(*SERVE, "--backend", "synthetic", "--token-file", str(tmp_path / "gone"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: cannot read the token file")


def test_the_short_form_of_a_backend_is_understood_and_its_labels_are_right():
    world = IndoorWorld(WorldSettings(seed=3))
    view = world.render(7, 64, 48, None)
    request = dataclasses.replace(
        depth_request(view.image, stamp_ns=7), image=encode_jpeg(view.image), intrinsics=None
    )
    with process("--backend", "synthetic:3", "--port", "0") as child:
        with triton.InferenceServerClient(url_of(child)) as client:
            assert client.is_server_ready()
            depth = client.infer(**infer_arguments(request)).as_numpy("depth")
        child.send_signal(signal.SIGINT)
        assert child.wait(PATIENCE_S) == 0
    assert depth.shape == (48, 64)


def test_systemd_hears_of_the_start_of_life_and_of_the_end(tmp_path):
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(PATIENCE_S)
        watched = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "300000"}
        with process("--backend", "synthetic", "--port", "0", **watched) as child:
            ready = manager.recv(4096).decode().splitlines()
            assert ready[0] == "READY=1"
            assert ready[1] == f"MAINPID={child.pid}"
            assert ready[2].startswith("STATUS=teacher synthetic on port ")
            url_of(child)
            assert [manager.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            child.send_signal(signal.SIGTERM)
            wait_until(lambda: manager.recv(4096) == b"STOPPING=1")
            assert child.wait(PATIENCE_S) == 0


def test_a_watchdog_meant_for_another_process_is_not_fed(tmp_path, monkeypatch):
    from tiekd_ros.teacher.process import Systemd

    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    assert Systemd().watchdog_s == 1.0
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert Systemd().watchdog_s == 1.0
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    assert Systemd().watchdog_s is None


def test_a_manager_that_is_gone_or_abstract_does_no_harm(monkeypatch, tmp_path):
    from tiekd_ros.teacher.process import Systemd

    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    Systemd().ready("still")
    name = f"tiekd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name)
        manager.settimeout(PATIENCE_S)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        Systemd().alive()
        assert manager.recv(100) == b"WATCHDOG=1"


def damaged_images() -> list[bytes]:
    """Return images of which native libraries like to talk."""
    png = encode_png(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    header = b"IHDR" + struct.pack(">IIBBBBB", 1_100_000, 1, 8, 2, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    too_wide = png[:12] + header + checksum + png[33:]
    return [too_wide, png[:100], png[:-30], png[:60] + b"x" + png[61:], b"\xff\xd8\xff" + bytes(50)]


def test_logs_are_json_where_that_is_asked_for_and_name_the_refused():
    options = ["--backend", "synthetic", "--port", "0", "--log-format", "json"]
    with process(*options, "--log-level", "debug") as child:
        url, before = logged_url_of(child)
        for image in damaged_images():
            assert refusal(url, image)[0] == "INVALID_ARGUMENT"
        with triton.InferenceServerClient(url) as client:
            assert client.is_server_live()
            assert client.is_model_ready("depth_teacher")
            with pytest.raises(Exception, match="NOT_FOUND"):
                client.get_model_metadata("resnet50")
        child.send_signal(signal.SIGTERM)
        assert child.stdout.read() == ""
        entries = [json.loads(line) for line in (*before, *child.stderr)]
    requests = {entry["method"]: entry for entry in entries if entry["message"] == "request"}
    assert requests["ServerLive"]["code"] == "OK"
    refused = requests["ModelMetadata"]
    assert (refused["level"], refused["code"]) == ("info", "NOT_FOUND")
    assert refused["peer"].startswith("ipv4:127.0.0.1")
    assert "resnet50" in refused["details"]
    messages = [entry["message"] for entry in entries]
    assert "serving" in messages
    assert messages[-1].startswith("stopping")
    assert all("facts" not in entry for entry in entries)


def test_giving_way_lowers_the_priority_of_the_process():
    with process("--backend", "synthetic", "--port", "0", "--give-way") as child:
        url_of(child)
        assert os.getpriority(os.PRIO_PROCESS, child.pid) >= 10
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE_S) == 0


def test_a_setting_of_the_wrong_kind_is_refused():
    with pytest.raises(InvalidSettingError, match="max_waiting"):
        ServerSettings.from_mapping({"max_waiting": "many"})
