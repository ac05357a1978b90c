"""What companion_node is made of, opened and closed in the right order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from rclpy.node import Node
from std_msgs.msg import String

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.state import StateFolder
from tiekd_ros.framelog import FrameStore, Labeller, Recorder
from tiekd_ros.nodes.common import qos
from tiekd_ros.nodes.common.parameter_groups import LearningSettings
from tiekd_ros.nodes.companion.latency_guard import LatencyWatch
from tiekd_ros.rounds.canary_monitor import CanaryMonitor
from tiekd_ros.rounds.plan import RoundPlan
from tiekd_ros.rounds.round_log import RoundRecord
from tiekd_ros.rounds.runner import RoundRunner
from tiekd_ros.student.live_depth import LiveStudentDepth
from tiekd_ros.student.registry import StudentRegistry
from tiekd_ros.teacher.client import TeacherClient
from tiekd_ros.teacher.label_source import TeacherLabelSource
from tiekd_ros.teacher.trust import LabelJudge


class StudentAnnouncer:
    """Publishes the registry's live version on `student` whenever it changes.

    Whoever changed it: a round, a rollback, or `tiekd students promote` in another process.
    """

    def __init__(self, node: Node, registry: StudentRegistry) -> None:
        self._node = node
        self._registry = registry
        self._publisher = node.create_publisher(String, "student", qos.LATCHED)
        self._lock = threading.Lock()  # the executor's thread checks, and those of rounds do
        self._announced: str | None = None
        self._fault = ""

    def check(self) -> None:
        """Look at the registry, and publish where there is something new to say."""
        with self._lock:
            self._check()

    def _check(self) -> None:
        try:
            live = self._registry.live()
        except TiekdError as error:
            if str(error) != self._fault:  # the same fault again and again is logged once
                self._fault = str(error)
                self._node.get_logger().error(self._fault)
            return
        self._fault = ""
        if live is not None and live != self._announced:
            self._announced = live
            self._publisher.publish(String(data=live))

    def close(self) -> None:
        """Stop announcing."""
        self._node.destroy_publisher(self._publisher)


@dataclass
class CompanionParts:
    """What exists between configure and cleanup; client to labeller only where there is a teacher.

    Use `open` to make them.
    """

    store: FrameStore
    recorder: Recorder
    client: TeacherClient | None
    judge: LabelJudge | None
    labeller: Labeller | None
    runner: RoundRunner
    canary: CanaryMonitor
    latency: LatencyWatch
    registry: StudentRegistry
    announcer: StudentAnnouncer
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
    ) -> CompanionParts:
        """Open the frame log and start the threads.

        Args:
            node: the companion; publishes and listens.
            held: gets what ends each part, in the right order, also where a later one fails. A
                round that is under way is taken up after the next start.
            folder: where everything is kept.
            settings: of the parts.
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
        client, judge, labeller = _open_labelling(held, store, registry, settings)
        recorder = Recorder(store, None if labeller is None else lambda _: labeller.notify())
        runner = RoundRunner(folder, store, plan(), on_round)
        held.callback(runner.stop)
        canary = CanaryMonitor(folder, store, plan(), on_canary)
        held.callback(canary.stop)
        latency = LatencyWatch(node, lambda: plan().resources, runner, canary)
        held.callback(latency.close)
        announcer = _open_announcer(held, node, registry)
        return cls(
            store, recorder, client, judge, labeller, runner, canary, latency, registry, announcer
        )

    def set_plan(self, plan: RoundPlan) -> None:
        """Use these settings from the next round on."""
        self.runner.set_plan(plan)
        self.canary.set_plan(plan)


def _open_labelling(
    held: ExitStack, store: FrameStore, registry: StudentRegistry, settings: LearningSettings
) -> tuple[TeacherClient, LabelJudge, Labeller] | tuple[None, None, None]:
    if not settings.teacher.url:
        return None, None, None
    client = TeacherClient(settings.teacher, require_credentials=False)
    held.callback(client.close)
    judge = LabelJudge(settings.trust, store.newest_labels(settings.trust.history))
    source = TeacherLabelSource(
        client,
        checks=settings.checks,
        judge=judge,
        upload=settings.upload,
        logged_quality=settings.frames.jpeg_quality,
        max_side=settings.labels.max_side,
        student_depth=LiveStudentDepth(registry) if settings.trust.needs_student else None,
    )
    labeller = Labeller(store, source.label, settings.labels)
    held.callback(_stop_labelling, labeller, client)
    labeller.pause()  # until the companion is active
    labeller.start()
    return client, judge, labeller


def _open_announcer(held: ExitStack, node: Node, registry: StudentRegistry) -> StudentAnnouncer:
    announcer = StudentAnnouncer(node, registry)
    held.callback(announcer.close)
    announcer.check()
    return announcer


def _stop_labelling(labeller: Labeller, client: TeacherClient) -> None:
    labeller.stop(timeout=0)  # ask no more, before the client is closed
    client.close()
    labeller.stop()
