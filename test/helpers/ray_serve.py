"""Ray Serve as users run it, `serve run` in a process, and recorded frames for its teacher."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers.children import child_environment
from helpers.depth_data import write_rgbd
from helpers.teachers import depth_request, picture, ramp
from tiekd_ros.core.images import DepthMap
from tiekd_ros.core.launch_options import free_port
from tiekd_ros.teacher.client import TeacherClient

START_S = 180.0  # 11 s on a quiet machine
STOP_S = 60.0


@dataclass
class RayServe:
    """A running `serve run`; `url` is its gRPC ingress."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def stop(self) -> int:
        """Press Ctrl-C and return the exit status; what then still runs is killed."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(STOP_S)
        finally:
            _kill_session(self.process.pid)


@contextmanager
def serve_run(*arguments: str, port: int, **environment: str) -> Iterator[RayServe]:
    """Run `serve run ARGUMENTS`; yields once its gRPC ingress says that the model is ready.

    Args:
        arguments: of the command.
        port: that of the gRPC ingress, which the arguments say as well.
        environment: variables of the process, and so of Ray's.
    """
    # Short: the paths of Ray's sockets must not be longer than 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="ray_", dir="/tmp"))
    log = folder / "serve.log"
    given = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(folder), **environment}
    serve = Path(sys.executable).with_name("serve")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(serve), "run", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=child_environment(**given),
            cwd=folder,  # which the command puts first on Python's path
            start_new_session=True,
        )
    try:
        running = RayServe(f"127.0.0.1:{port}", process, log)
        _await_ready(running, given.get("TIEKD_TEACHER_TOKENS", "").partition("\n")[0])
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
        _kill_session(process.pid)
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Return different free ports."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return sorted(ports)


def _await_ready(running: RayServe, token: str) -> None:
    from tritonclient.grpc import InferenceServerClient
    from tritonclient.utils import InferenceServerException

    headers = {"authorization": f"Bearer {token}"} if token else None
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and running.process.poll() is None:
        with (
            contextlib.suppress(InferenceServerException),
            InferenceServerClient(running.url) as client,
        ):
            if client.is_model_ready("depth_teacher", headers=headers, client_timeout=10.0):
                return
        time.sleep(0.5)
    raise AssertionError(f"Ray Serve does not answer:\n{running.log.read_text()[-4000:]}")


def _kill_session(leader: int) -> None:
    """Kill what is left of the session that `leader` began: processes that Ray started for it."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if os.getsid(int(entry.name)) == leader:
                os.kill(int(entry.name), signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


FRAMES = 6
_RELATIVE, _MILLIMETRE = 2.0**-11, 0.001  # of FP16 on the wire, of the folder's files


def write_recording(folder: Path) -> Path:
    """Write `FRAMES` pictures; the depth of number n is (1 + n) times `ramp`."""
    depths = [ramp() * (1 + index) for index in range(FRAMES)]
    return write_rgbd(folder, [picture(index) for index in range(FRAMES)], depths)


def assert_labels(client: TeacherClient) -> None:
    """Ask for many labels at once; each has to be that of its own picture."""

    def label(number: int) -> DepthMap:
        return client.infer(depth_request(picture(number % FRAMES))).depth

    with ThreadPoolExecutor(8) as pool:
        for number, depth in enumerate(pool.map(label, range(4 * FRAMES))):
            known = ramp() * (1 + number % FRAMES)
            np.testing.assert_allclose(depth, known, rtol=_RELATIVE, atol=_MILLIMETRE)
