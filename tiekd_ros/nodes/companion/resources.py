"""The resources of companion_node between configure and cleanup, and the topics that they use."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.node import Node
from std_msgs.msg import String

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.state import StateFolder
from tiekd_ros.diagnosis import keys
from tiekd_ros.framelog import FrameStore, Labeller, Recorder
from tiekd_ros.nodes.common import qos
from tiekd_ros.nodes.common.parameter_groups import LearningSettings
from tiekd_ros.nodes.common.reporting import WARN, Report
from tiekd_ros.rounds.canary_monitor import CanaryMonitor
from tiekd_ros.rounds.drift import DriftDetector
from tiekd_ros.rounds.limits import GuardState, LatencyGuard, ResourceSettings
from tiekd_ros.rounds.plan import RoundPlan
from tiekd_ros.rounds.round_log import RoundRecord
from tiekd_ros.rounds.runner import RoundRunner
from tiekd_ros.rounds.worker_process import WorkerSupervisor
from tiekd_ros.student.live_depth import LiveStudentDepth
from tiekd_ros.student.registry import StudentRegistry
from tiekd_ros.teacher.client import TeacherClient
from tiekd_ros.teacher.label_source import TeacherLabelSource
from tiekd_ros.teacher.trust import LabelJudge

_DEPTH_NODE = "depth_node"  # its kind, whatever its name


@dataclass
class CompanionResources:
    """What exists between configure and cleanup, made by `open`.

    `client`, `judge` and `labeller` only where a teacher is configured.
    """

    store: FrameStore
    recorder: Recorder
    client: TeacherClient | None
    judge: LabelJudge | None
    labeller: Labeller | None
    runner: RoundRunner
    canary: CanaryMonitor
    latency: LatencyMonitor
    drift: DriftDetector
    registry: StudentRegistry
    students: StudentPublisher
    last_round: RoundRecord | None = None
    """What an earlier process's last round came to."""

    @classmethod
    def open(
        cls,
        node: Node,
        held: ExitStack,
        folder: StateFolder,
        settings: LearningSettings,
        plan: Callable[[], RoundPlan],
        on_round: Callable[[RoundRecord], None],
        on_canary: Callable[[RoundRecord], None],
    ) -> CompanionResources:
        """Open the frame log and start the threads.

        Args:
            node: the companion; publishes and subscribes.
            held: gets what ends each resource, in the right order, also where a later one fails.
                A round that is under way is taken up after the next start.
            folder: where everything is kept.
            settings: of the frame log, the teacher and its labels.
            plan: returns that of the next round.
            on_round: called from a thread with each change of a round.
            on_canary: called from a thread with each change of the canary of a round's student.

        Raises:
            TiekdError: the folder or the frame log cannot be used, or another companion uses it.
                A token or certificate that cannot be used is no obstacle: frames are logged, and
                it is read again.
        """
        held.enter_context(folder.create().claimed("companion"))
        registry = StudentRegistry(folder.students)
        store = FrameStore(folder.frames, settings.frames)
        held.callback(store.close)
        drift = DriftDetector(registry.held_out_abs_rel)
        client, judge, labeller = _open_labelling(held, store, registry, settings, drift)
        recorder = Recorder(store, None if labeller is None else lambda _: labeller.notify())
        runner = RoundRunner(folder, store, plan(), on_round)
        held.callback(runner.stop)
        canary = CanaryMonitor(folder, store, plan(), on_canary)
        held.callback(canary.stop)
        latency = LatencyMonitor(node, lambda: plan().resources, runner, canary)
        held.callback(latency.close)
        students = StudentPublisher(node, registry)
        held.callback(students.close)
        students.check()
        return cls(
            store,
            recorder,
            client,
            judge,
            labeller,
            runner,
            canary,
            latency,
            drift,
            registry,
            students,
        )

    def set_plan(self, plan: RoundPlan) -> None:
        """Use these settings from the next round on."""
        self.runner.set_plan(plan)
        self.canary.set_plan(plan)


def _open_labelling(
    held: ExitStack,
    store: FrameStore,
    registry: StudentRegistry,
    settings: LearningSettings,
    drift: DriftDetector,
) -> tuple[TeacherClient, LabelJudge, Labeller] | tuple[None, None, None]:
    if not settings.teacher.url:
        return None, None, None
    client = TeacherClient(settings.teacher, require_credentials=False)
    held.callback(client.close)
    judge = LabelJudge(
        settings.trust, store.newest_labels(settings.trust.history), on_compared=drift.add
    )
    source = TeacherLabelSource(
        client,
        checks=settings.checks,
        judge=judge,
        upload=settings.upload,
        logged_quality=settings.frames.jpeg_quality,
        max_side=settings.labels.max_side,
        student_depth=LiveStudentDepth(registry) if settings.trust.student else None,
    )
    labeller = Labeller(store, source.label, settings.labels)
    held.callback(_stop_labelling, labeller, client)
    labeller.pause()  # until the companion is active
    labeller.start()
    return client, judge, labeller


def _stop_labelling(labeller: Labeller, client: TeacherClient) -> None:
    labeller.stop(timeout=0)  # ask no more, before the client is closed
    client.close()
    labeller.stop()


class StudentPublisher:
    """Publishes the registry's live version on `student` whenever it changes.

    A round, a rollback, or `tiekd students promote` in another process may have changed it. The
    executor's thread calls `check`, and those of rounds do.
    """

    def __init__(self, node: Node, registry: StudentRegistry) -> None:
        self._node = node
        self._registry = registry
        self._publisher = node.create_publisher(String, "student", qos.LATCHED)
        self._lock = threading.Lock()  # guards the fields below
        self._published: str | None = None
        self._fault = ""

    def check(self) -> None:
        """Publish the live version if it has changed."""
        with self._lock:
            try:
                live = self._registry.live()
            except TiekdError as error:
                if str(error) != self._fault:  # the same fault again and again is logged once
                    self._fault = str(error)
                    self._node.get_logger().error(self._fault)
                return
            self._fault = ""
            if live is not None and live != self._published:
                self._published = live
                self._publisher.publish(String(data=live))

    def close(self) -> None:
        """End the publisher."""
        self._node.destroy_publisher(self._publisher)


class LatencyMonitor:
    """Pauses workers while the depth node of the node's own namespace is slow by its diagnostics.

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
        before, self._told = self._told, self._guard.state
        if before != self._told and self._busy():
            self._node.get_logger().info(f"latency guard: {self._guard.describe()}")

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
        """End the subscription."""
        self._node.destroy_subscription(self._subscription)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {v.key: v.value for v in status.values}
            if values.get(keys.KIND) == _DEPTH_NODE and self._is_near(status):
                p95_ms = _number(values.get(keys.LATENCY_P95, ""))
                self._guard.add_reading(p95_ms, time.monotonic(), training=self._busy())
                self.check()

    def _busy(self) -> bool:
        return any(worker.busy for worker in self._workers)

    def _is_near(self, status: DiagnosticStatus) -> bool:
        namespace = status.name.rpartition("/")[0]
        return namespace == self._node.get_namespace().rstrip("/")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
