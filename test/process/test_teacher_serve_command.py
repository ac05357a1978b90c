"""The teacher server as a process: its options, its end, systemd, its logs."""

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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException
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


DRAINING = """
import sys
from helpers.teachers import StubBackend, ramp
from tiekd_ros.teacher.process import serve
from tiekd_ros.teacher.settings import ServerSettings
def answer(image, request):
    if settings.grace_s < 1:
        import torch
        torch.ones(500, 500).mm(torch.ones(500, 500))
        print("asked", flush=True)
        while True:  # as a network does: Python's own end aborts beside it
            torch.ones(500, 500).mm(torch.ones(500, 500))
    print("asked", flush=True)
    sys.stdin.readline()
    return ramp()
settings = ServerSettings(grace_s=float(sys.argv[1]))
serve(StubBackend(answer), settings, lambda port: print(port, flush=True))
"""

SIGNALLED = """
import os, random, signal, threading, time
from tiekd_ros.teacher.process import shutdown_signal
def ask():
    time.sleep(random.random() / 500)
    os.kill(os.getpid(), signal.SIGTERM)
for _ in range(300):
    with shutdown_signal() as asked:
        asker = threading.Thread(target=ask)
        asker.start()
        while not asked.wait(0):
            pass
        asker.join()
"""


def decoded(client: triton.InferenceServerClient) -> int:
    (model,) = client.get_inference_statistics().model_stats
    return model.inference_stats.compute_input.count


def takes_calls(url: str) -> bool:
    with triton.InferenceServerClient(url) as stranger:
        try:
            return stranger.is_server_live(client_timeout=PATIENCE_S)
        except InferenceServerException:
            return False


@contextmanager
def draining(grace_s: float = 600.0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server whose backend waits for a line of its standard input before each answer."""
    child = subprocess.Popen(
        [sys.executable, "-c", DRAINING, str(grace_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=child_environment(),
        text=True,
    )
    try:
        yield child, f"127.0.0.1:{int(child.stdout.readline())}"
    finally:
        child.kill()
        child.communicate()


def test_sigterm_finishes_what_runs_and_what_waits_and_takes_nothing_new():
    with draining() as (child, url):
        with (
            triton.InferenceServerClient(url) as client,
            ThreadPoolExecutor(3) as callers,
        ):
            arguments = infer_arguments(depth_request())
            asked = [callers.submit(client.infer, **arguments) for _ in range(3)]
            assert child.stdout.readline() == "asked\n"
            wait_until(lambda: decoded(client) == 3)
            child.send_signal(signal.SIGTERM)
            wait_until(lambda: not takes_calls(url))
            assert not any(each.done() for each in asked)
            child.stdin.write("\n\n\n")
            child.stdin.flush()
            answers = [each.result(PATIENCE_S).as_numpy("depth") for each in asked]
        assert [answer.shape for answer in answers] == [(48, 64)] * 3
        assert child.wait(PATIENCE_S) == 0


def test_what_outlasts_the_grace_is_cut_off_and_counted_and_the_process_ends_with_0():
    pytest.importorskip("torch")
    with (
        draining(grace_s=0.3) as (child, url),
        ThreadPoolExecutor(2) as callers,
        triton.InferenceServerClient(url) as client,
    ):
        asked = [callers.submit(client.infer, **infer_arguments(depth_request())) for _ in "ab"]
        assert child.stdout.readline() == "asked\n"
        wait_until(lambda: decoded(client) == 2)
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE_S) == 0
        for each in asked:
            with pytest.raises(InferenceServerException):
                each.result(PATIENCE_S)
        assert "2 requests cut off after a grace of 0.3 s" in child.stderr.read()


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_server_whatever_still_runs(second):
    with (
        draining() as (child, url),
        ThreadPoolExecutor(1) as callers,
        triton.InferenceServerClient(url) as client,
    ):
        asked = callers.submit(client.infer, **infer_arguments(depth_request()))
        assert child.stdout.readline() == "asked\n"
        child.send_signal(signal.SIGINT)
        wait_until(lambda: not takes_calls(url))
        assert child.poll() is None
        child.send_signal(second)
        assert child.wait(PATIENCE_S) == -second
        with pytest.raises(InferenceServerException):
            asked.result(PATIENCE_S)


def test_a_signal_may_come_at_any_moment_of_the_wait_for_it():
    done = run_python("-c", SIGNALLED)
    assert done.returncode == 0, done.stderr
