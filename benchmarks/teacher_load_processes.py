"""The processes of the teacher's load benchmarks: one server, and the robots that ask it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

_SPARE_FRAMES = 2  # that wait in a robot's log beyond those that it asks for
_END_S = 20.0


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
        _tell(self._process, command)
        return _line(self._process)


class Done(NamedTuple):
    """What came of the robots."""

    start: float  # on the monotonic clock, when the last of them began
    cpu_s: float  # of all their processes
    robots: list[dict[str, Any]]


class Robots:
    """Robots at work, spread over several processes: `teacher_load_robots.py`."""

    def __init__(
        self, url: str, robots: int, seconds: float, *, in_flight: int, processes: int
    ) -> None:
        """Start them; they begin together, when all are there.

        Args:
            url: of the server.
            robots: how many.
            seconds: for how long they log frames.
            in_flight: requests of one robot at a time.
            processes: over how many they are spread; never more than there are robots.
        """
        shares = _shares(robots, processes)
        asked = {"url": url, "seconds": seconds, "in_flight": in_flight}
        asked |= {"window": in_flight + _SPARE_FRAMES}
        self._robots = robots
        self._processes: list[subprocess.Popen[str]] = []
        try:
            for index, share in enumerate(shares):
                own = {**asked, "first": sum(shares[:index]), "robots": share}
                self._processes.append(
                    _start("teacher_load_robots.py", own, 1, stdin=subprocess.PIPE)
                )
            for process in self._processes:
                _line(process)  # it is ready
            for process in self._processes:
                _tell(process, "go")
            self._start = max(float(_line(process)["start"]) for process in self._processes)
        except BaseException:
            self._kill()
            raise

    def finish(self) -> Done:
        """Wait until they are done, and return what came of it.

        Raises:
            RuntimeError: a process broke, or the account of a robot is missing or there twice; none
                of the others goes on.
        """
        try:
            found = [_line(process) for process in self._processes]
            for process in self._processes:
                process.communicate()
        except BaseException:
            self._kill()
            raise
        robots = [robot for part in found for robot in part["robots"]]
        numbers = [robot["number"] for robot in robots]
        if numbers != list(range(self._robots)):
            raise RuntimeError(f"accounts came of the robots {numbers}, not of {self._robots}")
        return Done(self._start, sum(part["cpu_s"] for part in found), robots)

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.communicate()


def _shares(robots: int, processes: int) -> list[int]:
    processes = min(robots, processes)
    return [robots // processes + (index < robots % processes) for index in range(processes)]


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


def _tell(process: subprocess.Popen[str], words: str) -> None:
    assert process.stdin is not None
    process.stdin.write(words + "\n")
    process.stdin.flush()


def _line(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args!r} ended with {process.wait()}; see its own words above")
    answer: dict[str, Any] = json.loads(line)
    return answer
