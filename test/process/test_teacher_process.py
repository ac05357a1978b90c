"""The teacher server as a process: what it tells systemd and its log, and how it ends."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from helpers.attacks import png_of
from helpers.children import PATIENCE_S, child_environment, run_python, wait_until
from helpers.strangers import refusal
from helpers.teachers import depth_request
from tiekd_ros.core.images import encode_jpeg, encode_png
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.errors import TeacherUnreachableError
from tiekd_ros.teacher.protocol import infer_arguments
from tiekd_ros.worlds import IndoorWorld, WorldSettings


@contextmanager
def python(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A child that is killed at the end, with pipes of text."""
    child = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=child_environment(**environment),
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def damaged_images() -> list[bytes]:
    """Return images of which native libraries like to talk."""
    png = encode_png(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    too_wide = png_of(1_100_000, 1)
    return [too_wide, png[:100], png[:-30], png[:60] + b"x" + png[61:], b"\xff\xd8\xff" + bytes(50)]


def test_a_server_tells_systemd_labels_logs_the_refused_as_json_and_gives_way(tmp_path):
    path = tmp_path / "notify"
    serve = ["-m", "tiekd_ros.cli", "teacher", "serve", "--backend", "synthetic:3", "--port", "0"]
    options = ["--give-way", "--log-format", "json", "--log-level", "debug"]
    watched = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "300000"}
    image = IndoorWorld(WorldSettings(seed=3)).render(7, 64, 48, None).image
    request = dataclasses.replace(
        depth_request(image, stamp_ns=7), image=encode_jpeg(image), intrinsics=None
    )
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        python(*serve, *options, **watched) as child,
    ):
        manager.bind(str(path))
        manager.settimeout(PATIENCE_S)
        ready = manager.recv(4096).decode().splitlines()
        assert ready[:2] == ["READY=1", f"MAINPID={child.pid}"]
        assert ready[2].startswith("STATUS=teacher synthetic on port ")
        assert [manager.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        assert os.getpriority(os.PRIO_PROCESS, child.pid) >= 10
        url = f"127.0.0.1:{ready[2].rpartition(' ')[2]}"
        for damaged in damaged_images():
            assert refusal(url, damaged)[0] == "INVALID_ARGUMENT"
        with triton.InferenceServerClient(url) as client:
            assert client.is_server_live()
            depth = client.infer(**infer_arguments(request)).as_numpy("depth")
            with pytest.raises(InferenceServerException, match="NOT_FOUND"):
                client.get_model_metadata("resnet50")
        child.send_signal(signal.SIGTERM)
        wait_until(lambda: manager.recv(4096) == b"STOPPING=1")
        output, log = child.communicate(timeout=PATIENCE_S)
        assert (child.returncode, output) == (0, "")
    assert depth.shape == (48, 64)
    entries = [json.loads(line) for line in log.splitlines()]
    requests = {entry["method"]: entry for entry in entries if entry["message"] == "request"}
    assert requests["ServerLive"]["code"] == "OK"
    refused = requests["ModelMetadata"]
    assert (refused["level"], refused["code"]) == ("info", "NOT_FOUND")
    assert refused["peer"].startswith("ipv4:127.0.0.1")
    assert "resnet50" in refused["details"]
    messages = [entry["message"] for entry in entries]
    assert f"teacher synthetic:3 listens on {url}" in messages
    assert messages[-1].startswith("stopping")
    assert all("facts" not in entry for entry in entries)


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
import random, signal, threading, time
from tiekd_ros.teacher.process import shutdown_signal
def ask():
    time.sleep(random.random() / 500)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # not to the thread that waits
for timeout_s in [0] * 300 + [None] * 300:
    with shutdown_signal() as wait:
        asker = threading.Thread(target=ask)
        asker.start()
        while not wait(timeout_s):
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
    with python("-c", DRAINING, str(grace_s)) as child:
        yield child, f"127.0.0.1:{int(child.stdout.readline())}"


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


def test_a_server_killed_in_mid_answer_is_unreachable_at_once():
    with (
        draining() as (child, url),
        ThreadPoolExecutor(1) as callers,
        TeacherClient(ClientSettings(url=url, timeout_s=PATIENCE_S)) as client,
    ):
        asked = callers.submit(client.infer, depth_request())
        assert child.stdout.readline() == "asked\n"
        child.kill()
        with pytest.raises(TeacherUnreachableError):
            asked.result(PATIENCE_S / 2)


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


def test_a_signal_may_come_at_any_moment_of_the_wait_and_to_any_thread():
    done = run_python("-c", SIGNALLED)
    assert done.returncode == 0, done.stderr
