"""companion_node: logs frames, has them labelled, distils, promotes."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from contextlib import ExitStack
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.settings import Settings
from tiekd_ros.core.state import StateFolder
from tiekd_ros.diagnosis import keys
from tiekd_ros.diagnosis.thresholds import CompanionDiagnosticSettings
from tiekd_ros.nodes.common import qos
from tiekd_ros.nodes.common.managed import ACTIVE, ManagedNode
from tiekd_ros.nodes.common.parameter_groups import LearningSettings
from tiekd_ros.nodes.common.reporting import Report
from tiekd_ros.nodes.common.run import until_shutdown
from tiekd_ros.nodes.common.settings import CompanionSettings
from tiekd_ros.nodes.companion.frame_logger import FrameLogger
from tiekd_ros.nodes.companion.report import add_companion_report, round_status
from tiekd_ros.nodes.companion.resources import CompanionResources
from tiekd_ros.rounds.plan import RoundPlan
from tiekd_ros.rounds.round_log import CanaryState, RoundKind, RoundRecord
from tiekd_ros.rounds.triggers import (
    CALLED,
    DueRound,
    TriggerFacts,
    automatic_triggers,
    describe_next,
    due_round,
)


class CompanionNode(ManagedNode):
    """Keeps the student good; nothing here is on the way of a depth image."""

    settings: CompanionSettings
    rooms = ("rounds", "method", "framelog", "teacher", "nodes.companion")
    """Whose log records it passes on."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            "companion_node", CompanionSettings, CompanionDiagnosticSettings, **options
        )
        declare = self.parameters.declare
        self._learning = LearningSettings(
            **{
                name: declare(name, kind, read_only=True)
                for name, kind in LearningSettings.groups().items()
            }
        )
        self._plan = RoundPlan(
            **{name: declare(name, kind) for name, kind in RoundPlan.groups().items()}
        )
        self._resources: CompanionResources | None = None
        self._frame_logger: FrameLogger | None = None
        self._triggers = automatic_triggers(time.monotonic())
        self._charging = False

    def take_settings(self, group: str, settings: Settings) -> None:
        """Use a round's settings from the next round on; those of the canary at once."""
        if group in RoundPlan.groups():
            changed: dict[str, Any] = {group: settings}
            self._plan = dataclasses.replace(self._plan, **changed)
            if self._resources is not None:
                self._resources.set_plan(self._plan)

    # Lifecycle: open in configure, subscribe in activate.

    def configure(self, held: ExitStack) -> None:
        """Open the frame log, start the threads, offer the services."""
        folder = StateFolder.resolve(self.settings.state_dir)
        self._status_pub = self.create_publisher(DiagnosticStatus, "distill/status", qos.LATCHED)
        held.callback(self.destroy_publisher, self._status_pub)
        self._resources = CompanionResources.open(
            self,
            held,
            folder,
            self._learning,
            lambda: self._plan,
            self._on_round,
            self._on_canary,
        )
        held.callback(setattr, self, "_resources", None)
        for kind, name, answer in (
            (Trigger, "distill", self._on_distill),
            (Trigger, "rollback", self._on_rollback),
            (SetBool, "log_frames", self._on_log_frames),
        ):
            held.callback(self.destroy_service, self.create_service(kind, name, answer))
        self._resume_round(self._resources)
        self._resources.last_round = self._resources.runner.newest()

    def _resume_round(self, resources: CompanionResources) -> None:
        try:
            record = resources.runner.resume_interrupted()
        except TiekdError as error:
            self.get_logger().warning(f"an interrupted round is not taken up: {error}")
            return
        if record is not None:
            self.get_logger().info(f"took up the round that was interrupted, as {record.number}")

    def activate(self, held: ExitStack) -> None:
        """Listen to the camera, and ask the teacher."""
        assert self._resources is not None
        labeller = self._resources.labeller
        if labeller is not None:
            labeller.resume()
            held.callback(labeller.pause)
        frame_logger = FrameLogger(
            self,
            self.settings,
            self._resources.recorder,
            self._learning.frames.min_interval_s,
            confidence=self.settings.log_confidence,
        )
        held.callback(frame_logger.close)
        self._frame_logger = frame_logger
        charging = self.create_subscription(Bool, "charging", self._on_charging, 1)
        held.callback(self.destroy_subscription, charging)

    def _on_charging(self, message: Bool) -> None:
        self._charging = message.data

    def forget_time(self) -> None:
        """Drop what is known of the camera by stamps."""
        if self._frame_logger is not None:
            self._frame_logger.forget_time()

    # Rounds and versions.

    def _on_distill(self, request: Trigger.Request, answer: Trigger.Response) -> Trigger.Response:
        answer.success, answer.message = self._start_round(DueRound(RoundKind.TRAINING, CALLED))
        return answer

    def _start_round(self, due: DueRound) -> tuple[bool, str]:
        assert self._resources is not None  # as long as there are services
        if self.phase != ACTIVE:
            return False, f"the companion is {self.phase}; activate it"
        try:
            record = self._resources.runner.start(due.reason, due.kind)
        except TiekdError as error:
            return False, str(error)
        self._resources.drift.restart()
        for trigger in self._triggers:
            trigger.on_start(time.monotonic())
        frames = f"{record.train_frames} frames to train on, {record.held_out_frames} held out"
        if due.kind is RoundKind.CALIBRATION:
            frames = f"the base student is calibrated to {record.labels} labelled frames"
        started = f"round {record.number} started: {frames}; follow it on distill/status"
        self.get_logger().info(f"{started} (reason: {due.reason})")
        return True, started

    def _on_round(self, record: RoundRecord) -> None:
        """Publish the round's state; called from the runner's thread."""
        resources = self._resources
        if resources is None:
            return
        with until_shutdown(self):
            self._status_pub.publish(round_status(record))
            if record.stage == "done":
                self.get_logger().info(f"round {record.number} {record.state}: {record.reason}")
                resources.students.check()

    def _on_canary(self, record: RoundRecord) -> None:
        """Publish how a student's canary evaluation goes; called from the monitor's thread."""
        resources = self._resources
        if resources is None:
            return
        with until_shutdown(self):
            self._status_pub.publish(round_status(record))
            canary = record.canary
            if canary is not None and not canary.is_open:
                text = f"canary of student {record.version}, {canary.state}: {canary.reason}"
                if canary.state is CanaryState.ROLLED_BACK:  # rclpy: a call has one severity
                    self.get_logger().warning(text)
                else:
                    self.get_logger().info(text)
                resources.students.check()

    def _on_rollback(self, request: Trigger.Request, answer: Trigger.Response) -> Trigger.Response:
        assert self._resources is not None  # as long as there are services
        try:
            version = self._resources.registry.rollback()
        except TiekdError as error:
            answer.message = str(error)
            return answer
        self._resources.students.check()
        answer.success, answer.message = True, f"back to student {version}"
        return answer

    def _on_log_frames(
        self, request: SetBool.Request, answer: SetBool.Response
    ) -> SetBool.Response:
        assert self._resources is not None  # as long as there are services
        recorder = self._resources.recorder
        recorder.resume() if request.data else recorder.pause()
        answer.success = True
        answer.message = "logging frames" if request.data else "logging is paused"
        return answer

    def work(self) -> None:
        """Look at the registry, at the depth node's latency, at the canary and at the time."""
        resources = self._resources
        if resources is None:
            return
        resources.students.check()
        resources.latency.check()
        if self.phase != ACTIVE:
            return
        known = None if resources.client is None else resources.client.known_teacher
        resources.canary.teacher_name = "" if known is None else known.name
        resources.canary.check()
        if resources.canary.busy or resources.canary.distrusts_rounds:
            return  # a round that is due waits, and does not lose its turn
        self._start_due_round(resources)

    def report(self, report: Report) -> str:
        """Add what is known of the stream, the frame log, the teacher and the last round."""
        if self.phase == ACTIVE and self._frame_logger is not None:
            report.find_all(self._frame_logger.check())
            report.add(self._frame_logger.values())
        if self._resources is not None:
            add_companion_report(report, self._resources, self.thresholds)
            with contextlib.suppress(TiekdError):  # the frame log's, which is told already
                facts = self._trigger_facts(self._resources)
                report.add({keys.ROUND_NEXT: describe_next(self._triggers, facts)})
        return "logging frames"

    def _trigger_facts(self, resources: CompanionResources) -> TriggerFacts:
        return TriggerFacts(
            time.monotonic(),
            self._plan,
            resources.canary.live is not None,  # as `canary.check` has just seen
            lambda: resources.store.stats().new_labels,
            resources.store.labelled_span,
            resources.runner.last_calibration,
            lambda: resources.drift.found(resources.canary.live),
            resources.runner.refused_in_a_row,
            self._charging,
        )

    def _start_due_round(self, resources: CompanionResources) -> None:
        try:
            due = due_round(self._triggers, self._trigger_facts(resources))
        except TiekdError as error:
            self.get_logger().warning(str(error), throttle_duration_sec=60.0)
            return
        if due is not None and not resources.runner.busy:
            started, message = self._start_round(due)
            if not started:
                self.get_logger().warning(
                    f"no round though one is due ({due.reason}): {message}",
                    throttle_duration_sec=60.0,
                )
