"""What Ray Serve costs beside the plain server: the same teacher, the same robots, one run.

    python benchmarks/teacher_ray.py --quick           about 4 minutes on 2 cores
    python benchmarks/teacher_ray.py --only waiting    one of the two teachers
    python benchmarks/teacher_ray.py                   about 7 minutes

Robots, marks, the account of each frame and the two teachers are those of `teacher_load.py`. The
plain server is one process. Ray Serve is `serve run` with one replica behind its gRPC proxy: a
cluster of this machine alone, with all that Ray starts for it. For each teacher the plain server
runs first, then Ray Serve, then the plain server once more, so that what else the machine does
weighs on both sides; plain is the mean of its two stretches, and both are in the JSON file.

Columns: images/s of all robots; p50 and p99 from asking for a label to having it; fill = images a
batch; CPU = processor time of all the server's processes a label.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from measuring import Goal, arguments, console, finish, number, print_table
from teacher_load_models import WAITING, write_network
from teacher_load_processes import Robots, Server
from teacher_load_runs import Labelled, labelled_by
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from tiekd_ros.core.errors import TiekdError

TINY = "tiny"
_IN_FLIGHT = 2  # a companion's default
_PROCESSES = 4
_START_S, _STOP_S = 240.0, 60.0
_MODEL = "depth_teacher"


class Serving(Protocol):
    """A server that runs."""

    url: str

    def cpu_s(self) -> float:
        """Return the processor time that it has used, of all its processes."""
        ...


class Stretch(NamedTuple):
    """So many robots on one server."""

    server: str
    robots: int
    labels: Labelled
    fill: float
    cpu_ms: float  # a label


class Pair(NamedTuple):
    """The same robots on both."""

    teacher: str
    robots: int
    plain: list[Stretch]
    ray: Stretch


class RayServer:
    """One `serve run` of `teacher_ray_app.py`, in a session of its own."""

    def __init__(self, model: str, max_batch: int, device: str) -> None:
        """Start it and wait until its gRPC proxy says that the model is ready."""
        # Short: the paths of Ray's sockets must not be longer than 107 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="ray_", dir="/tmp"))
        grpc_port, http_port = _free_ports()
        self.url = f"127.0.0.1:{grpc_port}"
        asked = {"model": model, "grpc_port": grpc_port, "http_port": http_port}
        asked |= {"max_batch": max_batch, "device": device}
        path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        given = {"RAY_TMPDIR": str(self._folder), "RAY_USAGE_STATS_ENABLED": "0"}
        given |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, path))}
        self._log = self._folder / "serve.log"
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    str(Path(sys.executable).with_name("serve")), "run", "teacher_ray_app:app",
                    *(f"{name}={value}" for name, value in asked.items()),
                ],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env={**os.environ, **given}, cwd=self._folder, start_new_session=True,
            )  # fmt: skip
        try:
            self._await_ready()
        except BaseException:
            self._end()
            raise

    def cpu_s(self) -> float:
        """Return the processor time of all processes that Ray started for it."""
        ticks = 0
        for process in _session(self._process.pid):
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
                ticks += int(stat[11]) + int(stat[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def __enter__(self) -> RayServer:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def _end(self) -> None:
        self._process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_S)
        for process in _session(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _await_ready(self) -> None:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with (
                contextlib.suppress(InferenceServerException),
                InferenceServerClient(self.url) as client,
            ):
                if client.is_model_ready(_MODEL, client_timeout=10.0):
                    return
            time.sleep(0.5)
        raise RuntimeError(f"Ray Serve does not answer:\n{self._log.read_text()[-4000:]}")


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; 1 where something did not run."""
    options = _parser().parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            pairs = [pair for name in options.only for pair in _pairs(name, folder, options)]
    except (TiekdError, RuntimeError, ImportError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    _print_pairs(pairs)
    finish("teacher_ray", options, {"pairs": pairs}, [*map(_goal, pairs), _account(pairs)])
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = arguments(__doc__ or "")
    names = (WAITING, TINY)
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="teachers [both]")
    parser.add_argument("--robots", type=int, nargs="+", default=(1, 8), metavar="N", help="[1 8]")
    parser.add_argument("--max-batch", type=int, default=8, help="of both servers [8]")
    parser.add_argument("--device", default="cpu", help="of the network: cpu or cuda [cpu]")
    return parser


def _pairs(name: str, folder: str, options: argparse.Namespace) -> list[Pair]:
    model = f"{WAITING}:20,5"
    if name == TINY:
        write_network(Path(folder), TINY)
        model = f"huggingface:{folder}"
    runs: list[list[Stretch]] = []
    for kind in ("plain", "ray", "plain"):
        with _serving(kind, model, options) as server:
            runs.append([_stretch(kind, server, n, options.quick) for n in options.robots])
    before, ray, after = runs
    return [
        Pair(name, robots, [before[index], after[index]], ray[index])
        for index, robots in enumerate(options.robots)
    ]


@contextlib.contextmanager
def _serving(kind: str, model: str, options: argparse.Namespace) -> Iterator[Serving]:
    if kind == "ray":
        with RayServer(model, options.max_batch, options.device) as ray:
            yield ray
    else:
        with Server(model, device=options.device, max_batch=options.max_batch) as server:
            yield server


def _stretch(kind: str, server: Serving, robots: int, quick: bool) -> Stretch:
    _robots(server, robots, 1.0).finish()  # every thread and connection has been used once
    labelled, batches = _counts(server.url)
    cpu_s = server.cpu_s()
    seconds = 5.0 if quick else 20.0
    found = labelled_by(_robots(server, robots, seconds).finish(), seconds)
    cpu_s = server.cpu_s() - cpu_s
    labels, runs = (
        now - then for now, then in zip(_counts(server.url), (labelled, batches), strict=True)
    )
    return Stretch(kind, robots, found, labels / max(1, runs), 1e3 * cpu_s / max(1, found.labelled))


def _robots(server: Serving, robots: int, seconds: float) -> Robots:
    return Robots(server.url, robots, seconds, in_flight=_IN_FLIGHT, processes=_PROCESSES)


def _counts(url: str) -> tuple[int, int]:
    """Return the images labelled and the batches so far, as the server counts them."""
    with InferenceServerClient(url) as client:
        (model,) = client.get_inference_statistics(client_timeout=20.0).model_stats
    return model.inference_count, model.execution_count


def _print_pairs(pairs: Sequence[Pair]) -> None:
    columns = ("teacher", "robots", "images/s plain", "Ray", "Ray/plain", "p50 ms plain", "Ray",
               "p99 ms plain", "Ray", "fill plain", "Ray", "CPU ms plain", "Ray")  # fmt: skip
    rows = []
    for pair in pairs:
        rate, p50, p99, fill, cpu = np.mean([_numbers(own) for own in pair.plain], axis=0).tolist()
        ray = _numbers(pair.ray)
        rows.append((pair.teacher, pair.robots, rate, ray[0], ray[0] / rate, p50, ray[1], p99,
                     ray[2], fill, ray[3], cpu, ray[4]))  # fmt: skip
    print_table("The plain server and Ray Serve, one replica", columns, rows)
    for stretch in (own for pair in pairs for own in (*pair.plain, pair.ray)):
        if stretch.labels.last_error:
            console().print(f"{stretch.server}, last error: {stretch.labels.last_error}")


def _numbers(own: Stretch) -> tuple[float, float, float, float, float]:
    return own.labels.rate, own.labels.p50_ms, own.labels.p99_ms, own.fill, own.cpu_ms


def _goal(pair: Pair) -> Goal:
    plain = [own.labels.rate for own in pair.plain]
    ratio = pair.ray.labels.rate / float(np.mean(plain))
    robots = f"{pair.robots} robot{'s' if pair.robots > 1 else ''}"
    note = f"plain {number(plain[0])} and {number(plain[1])}, Ray {number(pair.ray.labels.rate)}"
    return Goal(
        f"{pair.teacher}, {robots}: Ray's throughput over the plain server's", "-",
        f"{ratio:.2f} x", None, f"{note} images/s",
    )  # fmt: skip


def _account(pairs: Sequence[Pair]) -> Goal:
    labels = [own.labels for pair in pairs for own in (*pair.plain, pair.ray)]
    lost, twice, foreign, rejected = (
        sum(getattr(own, name) for own in labels)
        for name in ("lost", "twice", "foreign", "rejected")
    )
    return Goal(
        "frames without their own label, with two, with another's, rejected",
        "0, 0, 0, 0",
        f"{lost}, {twice}, {foreign}, {rejected} of {sum(own.frames for own in labels)}",
        lost == twice == foreign == rejected == 0,
    )


def _session(leader: int) -> list[int]:
    """Return the processes of the session that `leader` began."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if entry.name.isdigit() and os.getsid(int(entry.name)) == leader:
                found.append(int(entry.name))
    return found


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


if __name__ == "__main__":
    raise SystemExit(main())
