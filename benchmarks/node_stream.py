"""The observing process of `node.py`: receives depth as a user's program would, and times it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from node_stage import ECHO, NAMESPACE
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import String
from std_srvs.srv import Trigger

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.nodes.common import conversions, qos
from tiekd_ros.nodes.probe.observer import BackgroundNode

_DEEP = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
"""What this process misses would count against the node."""

_POLL_S = 0.5


class Latency(NamedTuple):
    """A stream in short; milliseconds from the image's stamp to its depth received."""

    p50: float
    p95: float
    p99: float
    shown: int  # images that the camera sent
    dropped: int  # of them without depth
    longest_gap: float  # between two depth images, ms


class Watcher(BackgroundNode):
    """Subscribes to the depth of node and echo, and to what the nodes say of themselves."""

    def __init__(self) -> None:
        super().__init__("bench_watcher", NAMESPACE)
        self._seen: dict[str, dict[int, int]] = {NAMESPACE: {}, ECHO: {}}
        self.values: dict[str, str] = {}  # depth_node's diagnostics
        self.round: dict[str, str] = {}  # distill/status
        self.steps_done = 0
        self._heard = threading.Condition()
        self._listen()
        self._student = self._node.create_publisher(String, "student", qos.LATCHED)
        self._distill = self._node.create_client(Trigger, "distill")

    def _listen(self) -> None:
        create = self._node.create_subscription
        for namespace, seen in self._seen.items():
            create(Image, f"{namespace}/depth", _noting(seen), _DEEP)
        create(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        create(DiagnosticStatus, "distill/status", self._on_status, qos.LATCHED)

    def echoes(self) -> bool:
        """Say whether the echo has answered."""
        return bool(self._seen[ECHO])

    def announce(self, version: str) -> None:
        """Tell depth_node which student to run."""
        self._student.publish(String(data=version))

    def distill(self) -> str:
        """Start a round and return the companion's answer.

        Raises:
            TiekdError: it does not start, or nobody answers.
        """
        answer = self._answer(self._distill, Trigger.Request(), 30.0)
        if not answer.success:
            raise TiekdError(f"no round started: {answer.message}")
        return str(answer.message)

    def wait_until(self, condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
        """Wait until a condition holds.

        Raises:
            TiekdError: it did not in time.
        """
        deadline = time.monotonic() + timeout_s
        with self._heard:
            while not self._heard.wait_for(condition, _POLL_S):  # it may look at more than this
                if time.monotonic() > deadline:
                    raise TiekdError(f"waited {timeout_s:.0f} s in vain for {what}: {self.values}")

    def latency(self, stretches: Sequence[Sequence[int]], namespace: str = NAMESPACE) -> Latency:
        """Return what became of the images with these stamps; each stretch was played in one go.

        Raises:
            TiekdError: no depth came.
        """
        seen = self._seen[namespace]
        late: list[float] = []
        gaps = [0.0]
        for stamps in stretches:
            late += self.delays(stamps, namespace)
            arrived = sorted(seen[stamp] for stamp in stamps if stamp in seen)
            gaps += [(after - before) * 1e-6 for before, after in pairwise(arrived)]
        shown = sum(map(len, stretches))
        if not late:
            raise TiekdError(f"no depth came for {shown} images: {self.values}")
        p50, p95, p99 = (float(p) for p in np.percentile(late, (50, 95, 99)))
        return Latency(p50, p95, p99, shown, shown - len(late), max(gaps))

    def delays(self, shown: Sequence[int], namespace: str = NAMESPACE) -> list[float]:
        """Return the milliseconds from stamp to reception of each image that had an answer."""
        seen = self._seen[namespace]
        return [(seen[stamp] - stamp) * 1e-6 for stamp in shown if stamp in seen]

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == f"{NAMESPACE}/depth_node":
                with self._heard:
                    self.values = {v.key: v.value for v in status.values}
                    self._heard.notify_all()

    def _on_status(self, message: DiagnosticStatus) -> None:
        with self._heard:
            self.round = {v.key: v.value for v in message.values}
            if self.round.get("stage") == "training":
                self.steps_done = max(self.steps_done, int(self.round["step"]))
            self._heard.notify_all()


def _noting(seen: dict[int, int]) -> Callable[[Image], None]:
    def note(message: Image) -> None:
        seen[conversions.stamp_ns(message.header)] = time.time_ns()

    return note
