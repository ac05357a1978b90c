"""The stretches of `teacher_load.py`: load, restart and soak, on processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

_SETTLING_SHARE = 0.2  # of a stretch, before what is counted begins
_SPARE_FRAMES = 2  # that wait in a robot's log beyond those that it asks for
_END_S = 20.0
_WARM_UP_S = 120  # samples, one a second


class Load(NamedTuple):
    """What came of so many robots on one server."""

    robots: int
    rate: float  # labels a second
    bare: float  # images a second of the model alone, right before and after
    mean_batch: float
    p50_ms: float
    p99_ms: float
    worst_share: float  # the slowest robot's labels over the mean robot's
    frames: int
    labelled: int
    lost: int
    twice: int
    foreign: int  # labels with another frame's mark
    rejected: int  # frames given up, their label refused
    again: int  # images that the server labelled once more, after a request that broke off
    failed: int  # requests that the labellers had to repeat
    server_cpu_ms: float  # of all threads, a label
    robots_cpu_ms: float
    rss_mib: float
    last_error: str


class Recovery(NamedTuple):
    """A server killed and started again under load."""

    robots: int
    down_s: float
    after_s: list[float]  # from the server's return to each robot's next label
    periods_s: list[float]  # the longest wait that each robot had given itself meanwhile
    frames: int
    lost: int
    twice: int
    foreign: int
    rejected: int


class Soak(NamedTuple):
    """A server's memory over time."""

    minutes: float
    labels: int
    settled_mib: float  # median after the warm-up
    lowest: float  # over that median
    highest: float
    drift: float  # mean of the last third over the first third's after the warm-up, less 1
    samples_mib: list[float]  # one every ten seconds
    lost: int
    twice: int
    rejected: int


class Server:
    """One `teacher_load_server.py`."""

    def __init__(
        self, model: str, *, device: str = "cpu", threads: int = 1, port: int = 0, **settings: Any
    ) -> None:
        """Start it and wait until it takes requests."""
        asked = {"model": model, "device": device, "settings": {"port": port, **settings}}
        self._process = _start("teacher_load_server.py", asked, threads, stdin=subprocess.PIPE)
        self.port = int(_line(self._process)["ready"])
        self.url = f"127.0.0.1:{self.port}"

    def bare(self, seconds: float, batch: int = 1) -> float | None:
        """Return images a second of the model alone; None where it takes no batches."""
        rate = self._ask(f"bare {seconds} {batch}")["rate"]
        return None if rate is None else float(rate)

    def counts(self) -> dict[str, Any]:
        """Return what `MarkingBackend.counts` says."""
        return self._ask("counts")

    def rss_mib(self) -> float:
        """Return the memory that the process holds."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) / 1024

    def cpu_s(self) -> float:
        """Return the processor time that it has used, of all threads."""
        stat = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """End it as a power cut does."""
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is not None:
            return
        try:
            self._process.communicate(timeout=_END_S)  # closes its standard input
        except subprocess.TimeoutExpired:
            self.kill()

    def _ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return _line(self._process)


def run_load(server: Server, robots: int, *, seconds: float, bare_s: float, in_flight: int) -> Load:
    """Have so many robots labelled for so long; the model alone before and after."""
    before = server.bare(bare_s) or 0.0
    server.counts()
    cpu_s = server.cpu_s()
    done = _robots(server.url, robots, seconds, in_flight).finish()
    cpu_s = server.cpu_s() - cpu_s
    counts = server.counts()
    after = server.bare(bare_s) or 0.0
    found = done.robots
    labels = max(1, sum(len(robot["labels"]) for robot in found))
    begin, end = done.start + _SETTLING_SHARE * seconds, done.start + seconds
    trips = [[ms for at, ms in robot["labels"] if begin <= at < end] for robot in found]
    shares = [len(own) for own in trips]
    all_ms = [ms for own in trips for ms in own] or [float("nan")]
    sizes = {int(size): count for size, count in counts["batches"].items()}
    return Load(
        robots=robots,
        rate=sum(shares) / (end - begin),
        bare=(before + after) / 2,
        mean_batch=counts["labelled"] / max(1, sum(sizes.values())),
        p50_ms=float(np.percentile(all_ms, 50)),
        p99_ms=float(np.percentile(all_ms, 99)),
        worst_share=min(shares) / max(1e-9, float(np.mean(shares))),
        frames=_sum(found, "frames"),
        labelled=_sum(found, "labelled"),
        lost=_sum(found, "lost"),
        twice=_sum(found, "twice"),
        foreign=_sum(found, "foreign"),
        rejected=_rejected(found),
        again=counts["again"],
        failed=_sum(found, "failed"),
        server_cpu_ms=1e3 * cpu_s / labels,
        robots_cpu_ms=1e3 * done.cpu_s / labels,
        rss_mib=server.rss_mib(),
        last_error=next((robot["last_error"] for robot in found if robot["last_error"]), ""),
    )


def run_recovery(model: str, robots: int, *, down_s: float, in_flight: int) -> Recovery:
    """Kill the server under load and start it again on its port after `down_s`."""
    with Server(model) as first:
        port = first.port
        load = _robots(first.url, robots, 3.0 + 4 * down_s, in_flight)
        time.sleep(3.0)
        first.kill()
    killed = time.monotonic()
    time.sleep(down_s)
    with Server(model, port=port):
        back = time.monotonic()
        done = load.finish()
    found = done.robots
    return Recovery(
        robots=robots,
        down_s=back - killed,
        after_s=[_first_after(robot["labels"], back) - back for robot in found],
        periods_s=[_longest_wait(robot["waits"], killed, back) for robot in found],
        frames=_sum(found, "frames"),
        lost=_sum(found, "lost"),
        twice=_sum(found, "twice"),
        foreign=_sum(found, "foreign"),
        rejected=_rejected(found),
    )


def run_soak(server: Server, robots: int, *, minutes: float, in_flight: int) -> Soak:
    """Watch the server's memory under steady load, a sample each second.

    The first fifth is warm-up, and at least two minutes where there is twice that: until every
    thread has had its largest batch.
    """
    samples: list[float] = []
    load = _robots(server.url, robots, 60.0 * minutes, in_flight)
    with ThreadPoolExecutor(1) as waiting:
        done = waiting.submit(load.finish)
        while not done.done():
            server.counts()  # or its account of every frame would grow with the run
            samples.append(server.rss_mib())
            time.sleep(1.0)
        found = done.result().robots
    warm_up = max(len(samples) // 5, min(_WARM_UP_S, len(samples) // 2))
    settled = samples[warm_up:]
    third = max(1, len(settled) // 3)
    middle = float(np.median(settled))
    return Soak(
        minutes=minutes,
        labels=sum(len(robot["labels"]) for robot in found),
        settled_mib=middle,
        lowest=min(settled) / middle,
        highest=max(settled) / middle,
        drift=float(np.mean(settled[-third:]) / np.mean(settled[:third])) - 1,
        samples_mib=samples[::10],
        lost=_sum(found, "lost"),
        twice=_sum(found, "twice"),
        rejected=_rejected(found),
    )


class _Done(NamedTuple):
    start: float
    cpu_s: float
    robots: list[dict[str, Any]]


class _robots:  # noqa: N801 (read as a function: start them, then finish)
    """One `teacher_load_robots.py`, started and connected to nothing yet."""

    def __init__(self, url: str, robots: int, seconds: float, in_flight: int) -> None:
        window = in_flight + _SPARE_FRAMES
        asked = {"url": url, "robots": robots, "seconds": seconds}
        asked |= {"in_flight": in_flight, "window": window}
        self._process = _start("teacher_load_robots.py", asked, 1)
        self._start = float(_line(self._process)["start"])

    def finish(self) -> _Done:
        """Wait until they are done, and return what came of it."""
        found = _line(self._process)
        self._process.communicate()
        return _Done(self._start, found["cpu_s"], found["robots"])


def _start(
    script: str, asked: dict[str, Any], threads: int, stdin: int | None = subprocess.DEVNULL
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name(script)), json.dumps(asked)],
        stdin=stdin,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        text=True,
    )


def _line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args!r} ended with {process.wait()}; see its own words above")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _sum(found: Sequence[dict[str, Any]], name: str) -> int:
    return sum(int(robot[name]) for robot in found)


def _rejected(found: Sequence[dict[str, Any]]) -> int:
    return sum(sum(robot["rejected"].values()) for robot in found)


def _first_after(labels: Sequence[Sequence[float]], moment: float) -> float:
    return min((at for at, _ in labels if at > moment), default=float("inf"))


def _longest_wait(waits: Sequence[Sequence[float]], begin: float, end: float) -> float:
    return max((left for at, left in waits if begin <= at <= end), default=0.0)
