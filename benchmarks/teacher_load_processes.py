"""The parent's end of `teacher_load_children.py`: one server, and the robots that ask it."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from harness import JsonProcess, cpu_seconds, memory_mib

from tiekd_ros.core.errors import TiekdError

_SPARE_FRAMES = 2  # that wait in a robot's log beyond those that it asks for


class Server(JsonProcess):
    """A teacher server in a process of its own."""

    def __init__(
        self, model: str, *, device: str = "cpu", threads: int = 1, port: int = 0, **settings: Any
    ) -> None:
        """Start it and wait until it takes requests."""
        asked = {"model": model, "device": device, "settings": {"port": port, **settings}}
        super().__init__(
            "teacher_load_children.py", "server", json.dumps(asked), OMP_NUM_THREADS=str(threads)
        )
        self.port = int(self.read()["ready"])
        self.url = f"127.0.0.1:{self.port}"

    def bare(self, seconds: float, batch: int = 1) -> float | None:
        """Return images a second of the model alone; None where it takes no batches."""
        rate = self.ask(f"bare {seconds} {batch}")["rate"]
        return None if rate is None else float(rate)

    def counts(self) -> dict[str, Any]:
        """Return the answer of `MarkingBackend.counts`."""
        return self.ask("counts")

    def rss_mib(self) -> float:
        return memory_mib("VmRSS", self.process.pid)

    def cpu_s(self) -> float:
        return cpu_seconds(self.process.pid)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Done(NamedTuple):
    """The accounts of all robots."""

    start: float  # on the monotonic clock, when the last of them began
    cpu_s: float  # of all their processes
    robots: list[dict[str, Any]]


class Robots:
    """Robots at work, spread over several processes."""

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
        processes = min(robots, processes)
        shares = [robots // processes + (i < robots % processes) for i in range(processes)]
        asked = {"url": url, "seconds": seconds, "in_flight": in_flight}
        asked |= {"window": in_flight + _SPARE_FRAMES}
        self._robots = robots
        self.processes: list[JsonProcess] = []
        try:
            for index, share in enumerate(shares):
                own = json.dumps({**asked, "first": sum(shares[:index]), "robots": share})
                child = JsonProcess("teacher_load_children.py", "robots", own, OMP_NUM_THREADS="1")
                self.processes.append(child)
            for process in self.processes:
                process.read()  # it is ready
            for process in self.processes:
                process.tell("go")
            self._start = max(float(process.read()["start"]) for process in self.processes)
        except BaseException:
            self._kill()
            raise

    def finish(self) -> Done:
        """Wait until they are done, and return what came of it.

        Raises:
            TiekdError: a process broke, or the account of a robot is missing or there twice; none
                of the others goes on.
        """
        try:
            found = [process.read() for process in self.processes]
            for process in self.processes:
                process.process.communicate()
        except BaseException:
            self._kill()
            raise
        robots = [robot for part in found for robot in part["robots"]]
        numbers = [robot["number"] for robot in robots]
        if numbers != list(range(self._robots)):
            raise TiekdError(f"accounts came of the robots {numbers}, not of {self._robots}")
        return Done(self._start, sum(part["cpu_s"] for part in found), robots)

    def _kill(self) -> None:
        for process in self.processes:
            process.kill()
