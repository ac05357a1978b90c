"""companion_node: logs frames, has them labelled, distils, promotes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from std_srvs.srv import SetBool, Trigger

from tiekd_ros.distillation.plan import RoundPlan
from tiekd_ros.distillation.round_log import RoundRecord
from tiekd_ros.errors import TiekdError
from tiekd_ros.nodes import qos
from tiekd_ros.nodes.companion_parts import CompanionParts, LearningSettings
from tiekd_ros.nodes.companion_report import companion_report, round_status
from tiekd_ros.nodes.intake import FrameIntake
from tiekd_ros.nodes.parameters import SettingsParameters
from tiekd_ros.nodes.reporting import ERROR, Report, diagnostics
from tiekd_ros.nodes.run import run_node, start_managed, until_shutdown
from tiekd_ros.nodes.settings import CompanionSettings
from tiekd_ros.settings import Settings
from tiekd_ros.state import StateFolder

_TRY_AGAIN_S = 10.0


class CompanionNode(LifecycleNode):
    """Keeps the student good; nothing here is on the way of a depth image."""

    def __init__(self, **options: Any) -> None:
        super().__init__("companion_node", **options)
        parameters = SettingsParameters(self, self._apply)
        self.settings = parameters.declare("", CompanionSettings)
        self._learning = LearningSettings(
            **{
                name: parameters.declare(name, kind, read_only=True)
                for name, kind in LearningSettings.groups().items()
            }
        )
        self._plan = RoundPlan(
            **{name: parameters.declare(name, kind) for name, kind in RoundPlan.groups().items()}
        )
        self._resources: CompanionParts | None = None
        self._intake: FrameIntake | None = None
        self._obstacle = ""  # what keeps the node from being configured
        self._tried = time.monotonic()
        self._last_round = time.monotonic()
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._timer = self.create_timer(1.0, self._tick)

    def _apply(self, group: str, settings: Settings) -> None:
        if hasattr(self._plan, group):
            changed: dict[str, Any] = {group: settings}
            self._plan = dataclasses.replace(self._plan, **changed)
            if self._resources is not None:
                self._resources.runner.set_plan(self._plan)

    # Lifecycle: open in configure, listen in activate, close in cleanup.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Open the frame log, start the threads, offer the services."""
        try:
            self._open()
        except TiekdError as error:
            self._obstacle = str(error)
            self.get_logger().error(f"cannot configure: {error}", throttle_duration_sec=60.0)
            return TransitionCallbackReturn.FAILURE
        self._obstacle = ""
        self._status_pub = self.create_publisher(DiagnosticStatus, "distill/status", qos.LATCHED)
        self._offered = [
            self.create_service(Trigger, "distill", self._on_distill),
            self.create_service(Trigger, "rollback", self._on_rollback),
            self.create_service(SetBool, "log_frames", self._on_log_frames),
        ]
        self._resume_round()
        return TransitionCallbackReturn.SUCCESS

    def _open(self) -> None:
        self._resources = CompanionParts.open(
            self,
            StateFolder.resolve(self.settings.state_dir),
            self._learning,
            lambda: self._plan,
            self._on_round,
        )

    def _resume_round(self) -> None:
        assert self._resources is not None
        try:
            record = self._resources.runner.resume()
        except TiekdError as error:
            self.get_logger().warning(f"an interrupted round is not taken up: {error}")
            return
        if record is not None:
            self.get_logger().info(f"took up the round that was interrupted, as {record.number}")

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Listen to the camera."""
        assert self._resources is not None
        self._intake = FrameIntake(
            self,
            self.settings.input_reliability,
            self._resources.recorder,
            self._learning.frames.min_interval_s,
            confidence=self.settings.log_confidence,
        )
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop listening to the camera."""
        if self._intake is not None:
            self._intake.close()
            self._intake = None
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop the threads, close the frame log."""
        self.release()
        for service in self._offered:
            self.destroy_service(service)
        self.destroy_publisher(self._status_pub)
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free what is held, from any state."""
        self.release()
        return TransitionCallbackReturn.SUCCESS

    def release(self) -> None:
        """Stop what runs; safe to call twice. A running round is taken up after the next start."""
        resources, self._resources = self._resources, None
        if resources is not None:
            resources.close()

    # Rounds and versions.

    def _on_distill(self, request: Trigger.Request, answer: Trigger.Response) -> Trigger.Response:
        answer.success, answer.message = self._start_round()
        return answer

    def _start_round(self) -> tuple[bool, str]:
        if self._resources is None:
            return False, "the companion is not configured"
        try:
            record = self._resources.runner.start()
        except TiekdError as error:
            return False, str(error)
        self._last_round = time.monotonic()
        return True, (
            f"round {record.number} started: {record.train_frames} frames to train on, "
            f"{record.held_out_frames} held out; follow it on distill/status"
        )

    def _on_round(self, record: RoundRecord) -> None:
        """Publish the round's state; called from the runner's thread."""
        resources = self._resources
        if resources is None:
            return
        with until_shutdown(self):
            self._status_pub.publish(round_status(record))
            if record.stage == "done":
                self.get_logger().info(f"round {record.number} {record.state}: {record.reason}")
                resources.announcer.check()

    def _on_rollback(self, request: Trigger.Request, answer: Trigger.Response) -> Trigger.Response:
        if self._resources is None:
            answer.message = "the companion is not configured"
            return answer
        try:
            version = self._resources.registry.rollback()
        except TiekdError as error:
            answer.message = str(error)
            return answer
        self._resources.announcer.check()
        answer.success, answer.message = True, f"back to student {version}"
        return answer

    def _on_log_frames(
        self, request: SetBool.Request, answer: SetBool.Response
    ) -> SetBool.Response:
        if self._resources is None:
            answer.message = "the companion is not configured"
            return answer
        recorder = self._resources.recorder
        recorder.resume() if request.data else recorder.pause()
        answer.success = True
        answer.message = "logging frames" if request.data else "logging is paused"
        return answer

    def _tick(self) -> None:
        resources = self._resources
        if resources is None:
            self._try_again()
            return
        resources.announcer.check()
        resources.latency.check()
        findings = self._intake.check() if self._intake is not None else []
        period = self._plan.distill.period_s
        if period > 0 and time.monotonic() - self._last_round >= period:
            self._start_by_period(resources)
        status = companion_report(self.get_fully_qualified_name(), resources, findings)
        self._diagnostics.publish(diagnostics(self, status))

    def _try_again(self) -> None:
        """Say why there is no frame log; look now and then whether it can be opened meanwhile."""
        if not self._obstacle:
            return
        report = Report(self.get_fully_qualified_name(), hardware_id="companion")
        report.find(ERROR, self._obstacle)
        self._diagnostics.publish(diagnostics(self, report.status()))
        if self.settings.autostart and time.monotonic() - self._tried >= _TRY_AGAIN_S:
            self._tried = time.monotonic()
            start_managed(self)

    def _start_by_period(self, resources: CompanionParts) -> None:
        self._last_round = time.monotonic()
        try:
            enough = resources.store.stats().new_labels >= self._plan.distill.min_new_labels
        except TiekdError as error:
            self.get_logger().warning(str(error))
            return
        if enough and not resources.runner.busy:
            _, message = self._start_round()
            self.get_logger().info(f"by period: {message}")


def _start(node: CompanionNode) -> bool:
    """Start if asked to; a frame log that cannot be opened yet is tried again, and reported."""
    if node.settings.autostart:
        start_managed(node)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the node (`ros2 run tiekd_ros companion_node`)."""
    return run_node(CompanionNode, _start, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
