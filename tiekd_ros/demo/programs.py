"""The demo's programs, each a process: camera, depth node, companion and teacher."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

from tiekd_ros.cli.nodes import node_programs
from tiekd_ros.core import Closing
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.launch_options import CAMERA, COMPANION, DEPTH
from tiekd_ros.core.supervisor import Child, Program, free_port, stop_children
from tiekd_ros.demo.scene import DemoScene

NAMESPACE = "tiekd"
IMAGE_TOPIC = "/camera/image_raw"
LEAST_TRAIN, LEAST_HELD_OUT = 8, 2  # labelled frames that a round needs
_MIN_KNOWN_SHARE = 0.001  # recorded depth may be that of a LiDAR
_PIXELS = 38_000  # half of the default: a demo's students have to learn within two minutes


class DemoPrograms(Closing):
    """The running programs: started on entry, stopped on exit.

    Args:
        scene: the camera and the teacher.
        state: state folder of the nodes.
        iterations: training steps of a round at most.
        seconds: training time of a round at most.
    """

    def __init__(self, scene: DemoScene, state: Path, iterations: int, seconds: float) -> None:
        self._state = state
        self._logs = state / "logs"
        self._port = free_port()
        url = f"127.0.0.1:{self._port}"
        turn = scene.turn_s
        self._options = {
            "namespace": NAMESPACE,
            "image_topic": IMAGE_TOPIC,
            "teacher": url,
            "state_dir": str(state),
            "camera": str(scene.camera["source"]),
        }
        self._parameters: dict[str, dict[str, object]] = {
            CAMERA: scene.camera,
            DEPTH: {"threads": 1},
            COMPANION: {
                "frames.min_interval_s": min(0.5, turn / 60),
                "frames.block_s": min(20.0, max(0.5, turn / 15 if turn > 30 else turn / 5)),
                "distill.min_frames": LEAST_TRAIN,
                "distill.min_held_out": LEAST_HELD_OUT,
                "train.iterations": iterations,
                "train.seconds": seconds,
                "train.threads": 2,
                "student.pixels": _PIXELS,
                "labels.retry_s": 0.5,
                "checks.min_known_share": _MIN_KNOWN_SHARE,
                "teacher.timeout_s": 5.0,
            },
        }
        command = [sys.executable, "-m", "tiekd_ros.cli", "teacher", "serve"]
        command += ["--port", str(self._port), *scene.teacher]
        self._teacher = Program("teacher", command, self.log_of("teacher"))
        self._children: list[Child] = []

    def __enter__(self) -> DemoPrograms:
        self._logs.mkdir(parents=True, exist_ok=True)
        try:
            self._children.append(Child(self._teacher))
            self._wait_for_teacher()
            programs = node_programs(self._options, self._parameters, self._logs)
            self._children += [Child(program) for program in programs]
        except BaseException:
            stop_children(self._children)
            raise
        return self

    def close(self) -> None:
        """Stop all programs, the nodes first: a companion reports a teacher that has gone."""
        stop_children(self._children[1:])
        stop_children(self._children[:1])

    def check(self) -> None:
        """Raise TiekdError where a program has ended that should not have."""
        for child in self._children:
            if child.ended:
                log = child.program.log
                tail = "" if log is None else _last_lines(log)
                raise TiekdError(f"{child.program.name} {child.ended} (log: {log})\n{tail}")

    def log_of(self, name: str) -> Path:
        """Return the log file of a program."""
        return self._logs / f"{name}.log"

    def _wait_for_teacher(self, timeout_s: float = 60.0) -> None:
        """Wait until the teacher accepts connections.

        No gRPC client: Ctrl-C in the middle of making one leaves noise behind.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            self.check()
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1.0).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise TiekdError(
                        f"the teacher accepts no connection after {timeout_s:.0f} s; "
                        f"see {self.log_of('teacher')}"
                    ) from None
            time.sleep(0.2)


def _last_lines(path: Path, count: int = 5) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-count:])
    except OSError:
        return ""
