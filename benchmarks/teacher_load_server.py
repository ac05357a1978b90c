"""The server process of `teacher_load.py`: a real `TeacherServer`, told what to do by lines.

Its first argument is JSON: `model` (see `open_model`), `device`, and `settings` of the server.
It says `{"ready": PORT}`, and answers `bare SECONDS BATCH` (images a second of the model alone,
in a loop) and `counts` (see `MarkingBackend`). It ends when its standard input does.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from teacher_load_models import CAMERA, marking, open_model, pictures

from tiekd_ros.core.images import RgbImage
from tiekd_ros.teacher.backend import Backend
from tiekd_ros.teacher.protocol import DepthRequest
from tiekd_ros.teacher.server import TeacherServer
from tiekd_ros.teacher.settings import ServerSettings

_NO_REQUEST = DepthRequest(b"", CAMERA, 0, "camera")  # the image is decoded already


def say(**values: Any) -> None:
    """Answer the parent."""
    print(json.dumps(values), flush=True)


def main() -> int:
    """Serve until standard input ends."""
    asked = json.loads(sys.argv[1])
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
    return 0


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


if __name__ == "__main__":
    raise SystemExit(main())
