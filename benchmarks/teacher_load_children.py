"""The child processes of `teacher_load.py`: a real `TeacherServer`, and the robots that ask it.

The first argument names the kind, the second is JSON.

`server`: `model` (see `open_model`), `device`, and `settings` of the server. It says
`{"ready": PORT}`, and answers `bare SECONDS BATCH` (images a second of the model alone, in a
loop) and `counts` (see `MarkingBackend`). It ends when its standard input does.

`robots`: each is the companion's own labeller and client, and a frame log in memory in which a
few frames always wait; the log keeps account of the label that comes back for each. When the
time is up no more frames are logged, and what waits is still labelled, as on a robot. It wants
`url`, `first` (number of the first robot), `robots` (how many), `seconds`, `window` (frames that
wait), `in_flight` (requests at a time of each robot). It says `{"ready": N}`, begins at a line or
the end of standard input, says `{"start": T}`, and at the end the account of each robot; times
are those of the monotonic clock.
"""

from __future__ import annotations

import itertools
import json
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import numpy.typing as npt
from harness import say
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

from tiekd_ros.core.images import DepthMap, RgbImage
from tiekd_ros.framelog import Label, Labeller, LabellerSettings, LoggedFrame
from tiekd_ros.teacher.backend import Backend
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.label_source import TeacherLabelSource
from tiekd_ros.teacher.protocol import DepthRequest
from tiekd_ros.teacher.server import TeacherServer
from tiekd_ros.teacher.settings import ServerSettings

_LONGEST_DRAIN_S = 120.0
_LOOK_S = 0.05  # how often the waits are looked at
_NO_REQUEST = DepthRequest(b"", CAMERA, 0, "camera")  # the image is decoded already


def serve(asked: dict[str, Any]) -> None:
    """Serve until standard input ends."""
    teacher = open_model(asked["model"], asked["device"])
    marked = marking(teacher)
    images = pictures()
    server = TeacherServer(marked, ServerSettings(**asked["settings"]))
    say(ready=server.start())
    for line in sys.stdin:
        command, *words = line.split()
        if command == "bare":
            say(rate=_bare(teacher, images, float(words[0]), int(words[1])))
        else:
            say(**marked.counts())
    server.stop()


def _bare(teacher: Backend, images: list[RgbImage], seconds: float, batch: int) -> float | None:
    """Return images a second; None where the teacher takes no batches."""
    if batch > 1 and not hasattr(teacher, "infer_batch"):
        return None
    label = _labeller_of(teacher, batch)
    endless = itertools.cycle(images)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        label([next(endless) for _ in range(batch)])
        done += batch
    return done / (time.perf_counter() - started)


def _labeller_of(teacher: Backend, batch: int) -> Callable[[list[RgbImage]], object]:
    if batch > 1:
        return lambda images: teacher.infer_batch(images, [_NO_REQUEST] * batch)
    return lambda images: teacher.infer(images[0], _NO_REQUEST)


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

    def put_label(
        self,
        frame_id: int,
        depth: DepthMap,
        teacher_name: str,
        teacher_version: str,
        confidence: npt.NDArray[np.floating[Any]] | None = None,
    ) -> None:
        with self._lock:
            self.marks[read_mark(depth)] += 1
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

    def __init__(self, number: int, images: list[bytes], asked: dict[str, Any]) -> None:
        in_flight = int(asked["in_flight"])
        self._number = number
        self.log = FrameLog(number, images, int(asked["window"]))
        self._client = TeacherClient(ClientSettings(url=asked["url"]))
        settings = LabellerSettings(in_flight=in_flight)
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
        """Stop, and say what came of it."""
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


def run_robots(asked: dict[str, Any]) -> None:
    """Run the robots for their time, let them finish, and say what came of each."""
    logging.getLogger("tiekd_ros").setLevel(logging.ERROR)  # a server that is away is on the plan
    images = jpegs()
    first = int(asked["first"])
    robots = [Robot(first + index, images, asked) for index in range(asked["robots"])]
    say(ready=len(robots))
    sys.stdin.readline()
    begun_cpu_s = time.process_time()
    start = time.monotonic()
    say(start=start)
    for robot in robots:
        robot.start()
    _look_until(robots, start + asked["seconds"])
    for robot in robots:
        robot.log.stop_logging()
    _look_until(robots, time.monotonic() + _LONGEST_DRAIN_S)
    found = [robot.finish() for robot in robots]
    say(cpu_s=time.process_time() - begun_cpu_s, robots=found)


def _look_until(robots: list[Robot], end: float) -> None:
    while time.monotonic() < end and not all(robot.log.is_done() for robot in robots):
        for robot in robots:
            robot.look()
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    {"server": serve, "robots": run_robots}[sys.argv[1]](json.loads(sys.argv[2]))
