"""companion_node: logs frames, has them labelled, distils, promotes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from tiekd_ros.distillation.plan import RoundPlan
from tiekd_ros.distillation.round_log import RoundRecord
from tiekd_ros.distillation.rounds import RoundRunner
from tiekd_ros.errors import BadImageError, TiekdError
from tiekd_ros.frames import (
    FrameLogSettings,
    FrameStore,
    Labeller,
    LabellerSettings,
    Observation,
    Recorder,
)
from tiekd_ros.nodes import conversions, qos
from tiekd_ros.nodes.companion_report import companion_report, round_status
from tiekd_ros.nodes.parameters import SettingsParameters
from tiekd_ros.nodes.reporting import diagnostics
from tiekd_ros.nodes.run import run_node
from tiekd_ros.nodes.settings import CommonSettings
from tiekd_ros.nodes.teaching import TeacherDesk
from tiekd_ros.settings import Settings
from tiekd_ros.state import StateFolder
from tiekd_ros.student import StudentRegistry
from tiekd_ros.teacher.client import ClientSettings, TeacherClient

_OFFERS_AN_INTERVAL = 4
"""Images offered to the log in one minimum interval; converting every one would be waste."""


@dataclass
class _Resources:
    """What exists between configure and cleanup."""

    store: FrameStore
    recorder: Recorder
    client: TeacherClient | None
    labeller: Labeller | None
    runner: RoundRunner
    registry: StudentRegistry


class CompanionNode(LifecycleNode):
    """Keeps the student good; nothing here is on the way of a depth image."""

    def __init__(self, **options: Any) -> None:
        super().__init__("companion_node", **options)
        parameters = SettingsParameters(self, self._apply)
        self.settings = parameters.declare("", CommonSettings)
        self._log = parameters.declare("frames", FrameLogSettings)
        self._labelling = parameters.declare("labels", LabellerSettings)
        self._teacher = parameters.declare("teacher", ClientSettings)
        self._plan = RoundPlan(
            **{name: parameters.declare(name, kind) for name, kind in RoundPlan.groups().items()}
        )
        self._resources: _Resources | None = None
        self._info: CameraInfo | None = None
        self._confidence: tuple[int, float] | None = None  # (stamp in ns, mean)
        self._last_offer_ns = 0
        self._last_round = time.monotonic()
        self._fault = ""
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
            self.get_logger().error(f"cannot configure: {error}")
            return TransitionCallbackReturn.FAILURE
        self._student_pub = self.create_publisher(String, "student", qos.LATCHED)
        self._status_pub = self.create_publisher(DiagnosticStatus, "distill/status", qos.LATCHED)
        self._services = [
            self.create_service(Trigger, "distill", self._on_distill),
            self.create_service(Trigger, "rollback", self._on_rollback),
            self.create_service(SetBool, "log_frames", self._on_log_frames),
        ]
        self._announce_student()
        self._resume_round()
        return TransitionCallbackReturn.SUCCESS

    def _open(self) -> None:
        folder = StateFolder.resolve(self.settings.state_dir).create()
        store = FrameStore(folder.frames, self._log)
        client, labeller = None, None
        if self._teacher.url:
            client = TeacherClient(self._teacher)
            labeller = Labeller(store, TeacherDesk(client), self._labelling)
            labeller.start()
        on_kept = (lambda frame_id: labeller.notify()) if labeller is not None else None
        recorder = Recorder(store, on_kept)
        recorder.start()
        runner = RoundRunner(folder, store, self._plan, self._on_round)
        registry = StudentRegistry(folder.students)
        self._resources = _Resources(store, recorder, client, labeller, runner, registry)

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
        profile = qos.image_input(self.settings.input_reliability)
        self._camera = [
            self.create_subscription(Image, "image", self._on_image, profile),
            self.create_subscription(CameraInfo, "image_info", self._on_info, profile),
            self.create_subscription(
                Image, "confidence", self._on_confidence, qos.image_input("best_effort")
            ),
        ]
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop listening to the camera."""
        for subscription in self._camera:
            self.destroy_subscription(subscription)
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop the threads, close the frame log."""
        self.release()
        for service in self._services:
            self.destroy_service(service)
        self.destroy_publisher(self._student_pub)
        self.destroy_publisher(self._status_pub)
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free what is held, from any state."""
        self.release()
        return TransitionCallbackReturn.SUCCESS

    def release(self) -> None:
        """Stop what runs; safe to call twice. A running round is taken up after the next start."""
        resources, self._resources = self._resources, None
        if resources is None:
            return
        resources.runner.stop()
        resources.recorder.stop()
        if resources.client is not None:
            resources.client.close()
        if resources.labeller is not None:
            resources.labeller.stop()
        resources.store.close()

    # What to log.

    def _on_image(self, message: Image) -> None:
        stamp = conversions.stamp_ns(message.header)
        since = abs(stamp - self._last_offer_ns)
        if self._resources is None or since * _OFFERS_AN_INTERVAL < self._log.min_interval_s * 1e9:
            return
        self._last_offer_ns = stamp
        try:
            image = conversions.image_to_rgb(message)
        except BadImageError as error:
            self._fault = str(error)
            self.get_logger().warning(f"not logged: {error}", throttle_duration_sec=10.0)
            return
        self._fault = ""
        height, width = image.shape[:2]
        info = self._info
        self._resources.recorder.offer(
            Observation(
                image,
                stamp,
                message.header.frame_id,
                conversions.intrinsics_of(info, width, height) if info is not None else None,
                self._confidence_at(stamp),
            )
        )

    def _on_info(self, message: CameraInfo) -> None:
        self._info = message

    def _on_confidence(self, message: Image) -> None:
        stamp = conversions.stamp_ns(message.header)
        if self._confidence is not None and abs(stamp - self._confidence[0]) < 500_000_000:
            return
        try:
            mean = float(np.mean(conversions.image_to_float(message)[::4, ::4]))
        except BadImageError:
            return
        self._confidence = (stamp, mean)

    def _confidence_at(self, stamp: int) -> float | None:
        if self._confidence is None or abs(stamp - self._confidence[0]) > 1_000_000_000:
            return None
        return self._confidence[1]

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
        if self._resources is None:
            return
        self._status_pub.publish(round_status(record))
        if record.stage == "done":
            self.get_logger().info(f"round {record.number} {record.state}: {record.reason}")
            self._announce_student()

    def _on_rollback(self, request: Trigger.Request, answer: Trigger.Response) -> Trigger.Response:
        if self._resources is None:
            answer.message = "the companion is not configured"
            return answer
        try:
            version = self._resources.registry.rollback()
        except TiekdError as error:
            answer.message = str(error)
            return answer
        self._announce_student()
        answer.success, answer.message = True, f"back to student {version}"
        return answer

    def _announce_student(self) -> None:
        assert self._resources is not None
        try:
            live = self._resources.registry.live()
        except TiekdError as error:
            self.get_logger().error(str(error))
            return
        if live is not None:
            self._student_pub.publish(String(data=live))

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
            return
        period = self._plan.distill.period_s
        if period > 0 and time.monotonic() - self._last_round >= period:
            self._start_by_period(resources)
        status = companion_report(
            self.get_fully_qualified_name(),
            resources.store,
            resources.recorder,
            resources.labeller,
            resources.runner,
            self._fault,
        )
        self._diagnostics.publish(diagnostics(self, status))

    def _start_by_period(self, resources: _Resources) -> None:
        self._last_round = time.monotonic()
        try:
            enough = resources.store.stats().new_labels >= self._plan.distill.min_new_labels
        except TiekdError as error:
            self.get_logger().warning(str(error))
            return
        if enough and not resources.runner.busy:
            _, message = self._start_round()
            self.get_logger().info(f"by period: {message}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the node (`ros2 run tiekd_ros companion_node`)."""
    return run_node(CompanionNode, lambda node: node.settings.autostart, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
