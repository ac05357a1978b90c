"""Ray Serve beside the plain server: the same teacher, the same robots, one run.

    python benchmarks/teacher_ray.py --quick           about 4 minutes on 2 cores
    python benchmarks/teacher_ray.py --only waiting    one of the two teachers
    python benchmarks/teacher_ray.py                   about 7 minutes

Robots, marks, the account of each frame and the two teachers are those of `teacher_load.py`. The
plain server is one process. Ray Serve is `serve run` with one replica behind its gRPC proxy: a
cluster of this machine alone, with all that Ray starts for it. For each teacher the plain server
runs first, then Ray Serve, then the plain server once more, so that what else the machine does
weighs on both sides; a ratio is over the mean of the plain server's two stretches.

Columns: images/s of all robots; p50 and p99 from asking for a label to having it; fill = images a
batch; CPU = processor time of all the server's processes a label.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from depth_anything import write_checkpoint
from harness import Goal, Report, Row, cpu_seconds, number, parser, run
from teacher_load import account_goal, labelled_by
from teacher_load_models import WAITING
from teacher_load_robots import Robots, Server
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from tiekd_ros.core import Closing
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.launch_options import free_port
from tiekd_ros.core.supervisor import Child, Program

TINY = "tiny"
_START_S, _STOP_S = 240.0, 60.0
_MODEL = "depth_teacher"


class RayServer(Closing):
    """One `serve run` of `teacher_ray_app.py`, in a session of its own."""

    def __init__(self, model: str, *, max_batch: int, device: str) -> None:
        """Start it and wait until its gRPC proxy says that the model is ready."""
        # Short: the paths of Ray's sockets must not be longer than 107 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="ray_", dir="/tmp"))
        asked = {"model": model, "max_batch": max_batch, "device": device}
        asked |= {"grpc_port": free_port(), "http_port": free_port()}
        self.url = f"127.0.0.1:{asked['grpc_port']}"
        path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        given = {"RAY_TMPDIR": str(self._folder), "RAY_USAGE_STATS_ENABLED": "0"}
        given |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, path))}
        serve = str(Path(sys.executable).with_name("serve"))
        words = [f"{name}={value}" for name, value in asked.items()]
        command = [serve, "run", "teacher_ray_app:app", *words]
        self._log = self._folder / "serve.log"
        self._process = Child(Program("Ray Serve", command, self._log, given)).process
        try:
            self._await_ready()
        except BaseException:
            self.close()
            raise

    def cpu_s(self) -> float:
        """Return the processor time of all processes that Ray started for it."""
        seconds = 0.0
        for process in _session(self._process.pid):
            with contextlib.suppress(OSError):
                seconds += cpu_seconds(process)
        return seconds

    def close(self) -> None:
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
        raise TiekdError(f"Ray Serve does not answer:\n{self._log.read_text()[-4000:]}")


def main(argv: list[str] | None = None) -> int:
    options = _options(argv)
    report = Report("teacher_ray", options)
    with tempfile.TemporaryDirectory() as folder:
        turns = [turn for name in options.only for turn in _turns(name, folder, options)]
    stretches = [stretch for turn in turns for stretch in turn]
    report.table("stretches", "The plain server and Ray Serve, one replica, in turns", stretches)
    report.goals += [*(_goal(*turn) for turn in turns), account_goal("", stretches)]
    return report.finish()


def _options(argv: list[str] | None) -> argparse.Namespace:
    made = parser(__doc__ or "")
    names = (WAITING, TINY)
    made.add_argument("--only", nargs="+", choices=names, default=names, help="teachers [both]")
    made.add_argument("--robots", type=int, nargs="+", default=(1, 8), metavar="N", help="[1 8]")
    made.add_argument("--max-batch", type=int, default=8, help="of both servers [8]")
    made.add_argument("--device", default="cpu", help="of the network: cpu or cuda [cpu]")
    return made.parse_args(argv)


def _turns(name: str, folder: str, options: argparse.Namespace) -> list[tuple[Row, Row, Row]]:
    """Return, for each number of robots, stretches on the plain server, on Ray Serve, and again."""
    model = f"{WAITING}:20,5"
    if name == TINY:
        write_checkpoint(Path(folder), TINY)
        model = f"huggingface:{folder}"
    runs: list[list[Row]] = []
    for kind, serve in (("plain", Server), ("ray", RayServer), ("plain", Server)):
        with serve(model, device=options.device, max_batch=options.max_batch) as server:
            own = [_stretch(server, robots, options.quick) for robots in options.robots]
        runs.append([{"teacher": name, "server": kind, **row} for row in own])
    return list(zip(*runs, strict=True))


def _stretch(server: Server | RayServer, robots: int, quick: bool) -> Row:
    Robots(server.url, robots, 1.0).finish()  # every thread and connection has been used once
    labelled, batches = _counts(server.url)
    cpu_s = server.cpu_s()
    seconds = 5.0 if quick else 20.0
    found = labelled_by(Robots(server.url, robots, seconds).finish(), seconds)
    cpu_s = server.cpu_s() - cpu_s
    labelled_now, batches_now = _counts(server.url)
    return {
        "robots": robots,
        **found,
        "fill": (labelled_now - labelled) / max(1, batches_now - batches),
        "CPU ms server": 1e3 * cpu_s / max(1, found["labelled"]),
    }


def _counts(url: str) -> tuple[int, int]:
    """Return the images labelled and the batches so far, as the server counts them."""
    with InferenceServerClient(url) as client:
        (model,) = client.get_inference_statistics(client_timeout=20.0).model_stats
    return model.inference_count, model.execution_count


def _goal(before: Row, ray: Row, after: Row) -> Goal:
    first, rate, second = (turn["images/s"] for turn in (before, ray, after))
    robots = f"{ray['robots']} robot{'s' if ray['robots'] > 1 else ''}"
    return Goal(
        f"{ray['teacher']}, {robots}: Ray's throughput over the plain server's",
        "-",
        f"{2 * rate / (first + second):.2f} x",
        None,
        f"plain {number(first)} and {number(second)}, Ray {number(rate)} images/s",
    )


def _session(leader: int) -> list[int]:
    """Return the processes of the session that `leader` began."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if entry.name.isdigit() and os.getsid(int(entry.name)) == leader:
                found.append(int(entry.name))
    return found


if __name__ == "__main__":
    run(main)
