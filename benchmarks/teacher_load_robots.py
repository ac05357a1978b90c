"""The server and the robots of `teacher_load.py`, in processes of their own.

A robot is the companion's own labeller and client, and a frame log in memory in which a few
frames always wait; the log keeps account of the label that comes back for each. When the time is
up no more frames are logged, and what waits is still labelled, as on a robot. Times are those of
the monotonic clock.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Collection
from typing import Any, NamedTuple

from harness import Remote, cpu_seconds, memory_mib
from teacher_load_models import (
    CAMERA,
    HEIGHT,
    WIDTH,
    jpegs,
    marking,
    open_model,
    pictures,
    read_mark,
    stamp_of,
)

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.framelog import Label, Labeller, LabellerSettings, LoggedFrame
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.label_source import TeacherLabelSource
from tiekd_ros.teacher.protocol import DepthRequest
from tiekd_ros.teacher.server import TeacherServer
from tiekd_ros.teacher.settings import ServerSettings

_IN_FLIGHT = 2  # requests of a robot at a time: a companion's default
_WAITING_FRAMES = _IN_FLIGHT + 2  # in a robot's log
_LONGEST_DRAIN_S = 120.0
_LOOK_S = 0.05  # how often the waits are looked at
_NO_REQUEST = DepthRequest(b"", CAMERA, 0, "camera")  # the image is decoded already


class Teacher:
    """A `TeacherServer` whose teacher marks its labels, and that teacher alone."""

    def __init__(self, model: str, device: str, settings: dict[str, Any]) -> None:
        self._teacher = open_model(model, device)
        self._marked = marking(self._teacher)
        self._images = itertools.cycle(pictures())
        self._server = TeacherServer(self._marked, ServerSettings(**settings))
        self._port = self._server.start()

    def port(self) -> int:
        return self._port

    def counts(self) -> dict[str, Any]:
        return self._marked.counts()

    def bare(self, seconds: float, batch: int) -> float | None:
        """Return images a second of the teacher in a loop; None where it takes no batches."""
        if batch > 1 and not hasattr(self._teacher, "infer_batch"):
            return None
        done, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            images = list(itertools.islice(self._images, batch))
            if batch > 1:
                self._teacher.infer_batch(images, [_NO_REQUEST] * batch)
            else:
                self._teacher.infer(images[0], _NO_REQUEST)
            done += batch
        return done / (time.perf_counter() - started)

    def close(self) -> None:
        self._server.stop()


class Server(Remote):
    """A teacher server in a process of its own."""

    def __init__(
        self, model: str, *, device: str = "cpu", threads: int = 1, port: int = 0, **settings: Any
    ) -> None:
        """Start it and wait until it takes requests."""
        given = {"port": port, **settings}
        super().__init__(Teacher, model, device, given, OMP_NUM_THREADS=str(threads))
        self.port: int = self.call("port")
        self.url = f"127.0.0.1:{self.port}"

    def bare(self, seconds: float, batch: int = 1) -> float | None:
        """Return images a second of the model alone; None where it takes no batches."""
        return self.call("bare", seconds, batch)

    def counts(self) -> dict[str, Any]:
        """Return the answer of `MarkingBackend.counts`."""
        return self.call("counts")

    def rss_mib(self) -> float:
        return memory_mib("VmRSS", self.process.pid)

    def cpu_s(self) -> float:
        return cpu_seconds(self.process.pid)


class FrameLog:
    """The part of a `FrameStore` that a `Labeller` uses, in memory, with an account of labels."""

    def __init__(self, robot: int, images: list[bytes], window: int) -> None:
        self._robot = robot
        self._images = images
        self._lock = threading.Lock()
        self._waiting = set(range(1, window + 1))
        self._taken = window
        self._is_logging = True
        self.marks: Counter[int] = Counter()  # stamps that came back in labels
        self.rejected: Counter[str] = Counter()

    def unlabelled(self, count: int, skip: Collection[int] = ()) -> list[LoggedFrame]:
        with self._lock:
            free = sorted(self._waiting.difference(skip))
        return [self._frame(number) for number in free[:count]]

    def put_label(self, frame_id: int, label: Label) -> None:
        with self._lock:
            self.marks[read_mark(label.depth)] += 1
            self._settle(frame_id)

    def reject(self, frame_id: int, reason: str) -> None:
        with self._lock:
            self.rejected[reason] += 1
            self._settle(frame_id)

    def stop_logging(self) -> None:
        with self._lock:
            self._is_logging = False

    def is_done(self) -> bool:
        with self._lock:
            return not self._waiting

    def account(self) -> dict[str, Any]:
        """Return frames logged, and which of them have no label, several, or another's."""
        with self._lock:
            own = {stamp_of(self._robot, number) for number in range(1, self._taken + 1)}
            labelled = own & self.marks.keys()
            return {
                "frames": len(own),
                "labelled": len(labelled),
                "lost": len(own) - len(labelled) - self.rejected.total(),
                "twice": sum(self.marks[stamp] - 1 for stamp in labelled),
                "foreign": sum(self.marks[stamp] for stamp in self.marks.keys() - own),
                "rejected": dict(self.rejected),
            }

    def _settle(self, frame_id: int) -> None:
        self._waiting.discard(frame_id)
        if self._is_logging:
            self._taken += 1
            self._waiting.add(self._taken)

    def _frame(self, number: int) -> LoggedFrame:
        jpeg = self._images[number % len(self._images)]
        stamp_ns = stamp_of(self._robot, number)
        return LoggedFrame(number, stamp_ns, "camera", jpeg, WIDTH, HEIGHT, CAMERA)


class Robot:
    """One labeller, one client, one frame log."""

    def __init__(self, number: int, images: list[bytes], url: str) -> None:
        self._number = number
        self.log = FrameLog(number, images, _WAITING_FRAMES)
        self._client = TeacherClient(ClientSettings(url=url))
        settings = LabellerSettings(in_flight=_IN_FLIGHT)
        self._source = TeacherLabelSource(self._client, max_side=settings.max_side)
        self._labeller = Labeller(self.log, self._ask, settings)
        self._first_asked: dict[int, float] = {}  # by frame; a retry does not start anew
        self._labels: list[tuple[float, float]] = []  # when it came, and ms since first asked
        self._waits: list[tuple[float, float]] = []  # when looked at, and s left to wait

    def start(self) -> None:
        self._labeller.start()

    def look(self) -> None:
        """Note how long the labeller is going to wait before it asks again."""
        left_s = self._labeller.snapshot().retry_in_s
        if left_s > 0:
            self._waits.append((time.monotonic(), left_s))

    def finish(self) -> dict[str, Any]:
        """Stop, and return what came of it."""
        self._client.close()
        self._labeller.stop()
        snapshot = self._labeller.snapshot()
        return {
            "number": self._number,
            **self.log.account(),
            "labels": self._labels,
            "waits": self._waits,
            "failed": snapshot.failed,
            "last_error": snapshot.last_error,
        }

    def _ask(self, frame: LoggedFrame) -> Label:
        started = self._first_asked.setdefault(frame.id, time.monotonic())
        answer = self._source.label(frame)
        now = time.monotonic()
        del self._first_asked[frame.id]
        self._labels.append((now, 1e3 * (now - started)))
        return answer


class RobotGroup:
    """The robots of one process."""

    def __init__(self, url: str, numbers: range) -> None:
        logging.getLogger("tiekd_ros").setLevel(logging.ERROR)  # a server may be away on purpose
        images = jpegs()
        self._robots = [Robot(number, images, url) for number in numbers]

    def start(self) -> float:
        """Let them begin, and return when they did."""
        self._begun_cpu_s, start = time.process_time(), time.monotonic()
        for robot in self._robots:
            robot.start()
        return start

    def finish(self, end: float) -> dict[str, Any]:
        """Let them log frames until then, label what waits, and return what came of each."""
        self._look_until(end)
        for robot in self._robots:
            robot.log.stop_logging()
        self._look_until(time.monotonic() + _LONGEST_DRAIN_S)
        found = [robot.finish() for robot in self._robots]
        return {"cpu_s": time.process_time() - self._begun_cpu_s, "robots": found}

    def _look_until(self, end: float) -> None:
        while time.monotonic() < end and not all(robot.log.is_done() for robot in self._robots):
            for robot in self._robots:
                robot.look()
            time.sleep(_LOOK_S)


class Done(NamedTuple):
    """The accounts of all robots."""

    start: float  # on the monotonic clock, when the last of them began
    cpu_s: float  # of all their processes
    robots: list[dict[str, Any]]


class Robots:
    """Robots at work, spread over several processes."""

    def __init__(self, url: str, robots: int, seconds: float, *, processes: int = 4) -> None:
        """Start them; they begin together, when all are there.

        Args:
            url: of the server.
            robots: how many.
            seconds: for how long they log frames.
            processes: over how many they are spread, never more than there are robots: one
                Python process is too slow for the threads of 64.
        """
        processes = min(robots, processes)
        borders = [robots * n // processes for n in range(processes + 1)]
        self._robots = robots
        self.processes: list[Remote] = []
        try:
            for first, end in itertools.pairwise(borders):
                numbers = range(first, end)
                group = Remote(RobotGroup, url, numbers, wait=False, OMP_NUM_THREADS="1")
                self.processes.append(group)
            for group in self.processes:
                group.answer()  # it is there
            for group in self.processes:
                group.send("start")
            starts = [group.answer() for group in self.processes]
            for group, start in zip(self.processes, starts, strict=True):
                group.send("finish", start + seconds)
        except BaseException:
            self._kill()
            raise
        self._start: float = max(starts)

    def finish(self) -> Done:
        """Wait until they are done, and return what came of it.

        Raises:
            TiekdError: a process broke, or the account of a robot is missing or there twice; none
                of the others goes on.
        """
        try:
            found = [group.answer() for group in self.processes]
        finally:
            self._kill()
        robots = [robot for part in found for robot in part["robots"]]
        numbers = [robot["number"] for robot in robots]
        if numbers != list(range(self._robots)):
            raise TiekdError(f"accounts came of the robots {numbers}, not of {self._robots}")
        return Done(self._start, sum(part["cpu_s"] for part in found), robots)

    def _kill(self) -> None:
        for group in self.processes:
            group.kill()
