"""Pauses workers while they slow the depth node down, by that node's latency on /diagnostics."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.node import Node

from tiekd_ros.diagnosis import keys
from tiekd_ros.nodes.common.reporting import WARN, Report
from tiekd_ros.rounds.limits import GuardState, LatencyGuard, ResourceSettings
from tiekd_ros.rounds.worker_process import WorkerSupervisor

_KIND = "depth_node"  # whatever its name


class LatencyWatch:
    """Listens to the depth node of a node's own namespace; pauses and resumes workers.

    Args:
        node: the companion; its callbacks and these run in one thread.
        settings: returns the budget, which may change at any time.
        workers: of rounds and of canary evaluations.
    """

    def __init__(
        self,
        node: Node,
        settings: Callable[[], ResourceSettings],
        *workers: WorkerSupervisor,
    ) -> None:
        self._node = node
        self._workers = workers
        self._guard = LatencyGuard(settings)
        self._told = self._guard.state
        self._subscription = node.create_subscription(
            DiagnosticArray, "/diagnostics", self._on_diagnostics, 10
        )

    def check(self) -> None:
        """Tell the workers what to do now; call it about once a second."""
        must_pause = self._guard.should_pause(time.monotonic(), training=self._busy())
        for worker in self._workers:
            if must_pause:
                worker.pause()  # each time: another round may have begun
            elif self._told is GuardState.PAUSED:
                worker.resume()
        self._log_change()

    def report(self, report: Report) -> None:
        """Add to the companion's diagnostics how things stand."""
        report.add({keys.LATENCY_GUARD: self._guard.describe()})
        if self._guard.state is GuardState.NOT_THE_CAUSE:
            report.find(
                WARN,
                f"the depth node is slow though training was paused, so training goes on "
                f"({self._guard.describe()}); see what else runs, or raise "
                "resources.latency_budget_ms",
            )

    def close(self) -> None:
        """Stop listening."""
        self._node.destroy_subscription(self._subscription)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {v.key: v.value for v in status.values}
            if values.get(keys.KIND) == _KIND and self._is_near(status):
                p95_ms = _number(values.get(keys.LATENCY_P95, ""))
                self._guard.add_reading(p95_ms, time.monotonic(), training=self._busy())
                self.check()

    def _busy(self) -> bool:
        return any(worker.busy for worker in self._workers)

    def _is_near(self, status: DiagnosticStatus) -> bool:
        namespace = status.name.rpartition("/")[0]
        return namespace == self._node.get_namespace().rstrip("/")

    def _log_change(self) -> None:
        before, self._told = self._told, self._guard.state
        if before != self._told and self._busy():
            self._node.get_logger().info(f"latency guard: {self._guard.describe()}")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
