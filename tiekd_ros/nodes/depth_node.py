"""depth_node: camera images in, metric depth out."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String

from tiekd_ros.errors import BadImageError, TiekdError
from tiekd_ros.mailbox import Mailbox
from tiekd_ros.nodes import conversions, qos
from tiekd_ros.nodes.camera_input import CameraInput
from tiekd_ros.nodes.depth_report import DepthCounters, depth_report
from tiekd_ros.nodes.parameters import SettingsParameters
from tiekd_ros.nodes.reporting import diagnostics
from tiekd_ros.nodes.run import run_node, start_managed
from tiekd_ros.nodes.settings import DepthSettings
from tiekd_ros.settings import Settings
from tiekd_ros.state import StateFolder
from tiekd_ros.student import LiveState, LiveStudent, StudentRegistry, choose_device
from tiekd_ros.student.ranges import mark_out_of_range


@dataclass
class _Resources:
    """What exists between configure and cleanup."""

    student: LiveStudent
    mailbox: Mailbox[tuple[Image, float]]
    thread: threading.Thread


class DepthNode(LifecycleNode):
    """Runs the live student on the newest image.

    The executor's thread only puts images into a one-slot mailbox; a thread of its own
    converts, predicts and publishes, so a slow frame never makes a queue.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__("depth_node", **options)
        parameters = SettingsParameters(self, self._apply)
        self.settings = parameters.declare("", DepthSettings)
        self._resources: _Resources | None = None
        self._active = False
        self._info: CameraInfo | None = None
        self._counters = DepthCounters()
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._timer = self.create_timer(1.0, self._tick)

    def _apply(self, group: str, settings: Settings) -> None:
        if isinstance(settings, DepthSettings):
            self.settings = settings

    # Lifecycle: load in configure, listen in activate, free in cleanup.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the live student and make the publishers."""
        try:
            device = choose_device(self.settings.device)
            folder = StateFolder.resolve(self.settings.state_dir).create()
        except TiekdError as error:
            self.get_logger().error(f"cannot configure: {error}")
            return TransitionCallbackReturn.FAILURE
        torch.set_num_threads(self.settings.threads or max(1, (os.cpu_count() or 2) // 2))
        student = LiveStudent(StudentRegistry(folder.students), device, self._on_student_change)
        student.load_pointer()
        self._log_student(student.state)
        self._depth_pub = self.create_lifecycle_publisher(Image, "depth", qos.RELIABLE)
        self._info_pub = self.create_lifecycle_publisher(CameraInfo, "camera_info", qos.RELIABLE)
        self._confidence_pub = self.create_lifecycle_publisher(Image, "confidence", qos.RELIABLE)
        mailbox: Mailbox[tuple[Image, float]] = Mailbox()
        thread = threading.Thread(target=self._work, name="frames", daemon=True)
        self._resources = _Resources(student, mailbox, thread)
        self._subscriptions_of_mine = [
            self.create_subscription(String, "student", self._on_student, qos.LATCHED)
        ]
        thread.start()
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Listen to the camera."""
        reliability = self.settings.input_reliability
        self._camera = CameraInput(self, reliability, self._on_image, self._on_info)
        self._active = True
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop listening to the camera."""
        self._active = False
        self._camera.close()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the student."""
        self.release()
        for subscription in self._subscriptions_of_mine:
            self.destroy_subscription(subscription)
        for publisher in (self._depth_pub, self._info_pub, self._confidence_pub):
            self.destroy_publisher(publisher)
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free what is held, from any state."""
        self.release()
        return TransitionCallbackReturn.SUCCESS

    def release(self) -> None:
        """End the threads; safe to call twice."""
        resources, self._resources = self._resources, None
        self._active = False
        if resources is not None:
            resources.mailbox.close()
            resources.thread.join(5.0)
            resources.student.close()

    # The frame's way.

    def _on_image(self, message: Image) -> None:
        self._counters.received.tick(time.monotonic())
        if self._resources is not None:
            self._resources.mailbox.put((message, time.monotonic()))

    def _on_info(self, message: CameraInfo) -> None:
        self._info = message

    def _work(self) -> None:
        resources = self._resources
        while resources is not None and not resources.mailbox.closed:
            item = resources.mailbox.take()
            if item is None or not self._active:
                continue
            try:
                self._process(resources.student, *item)
            except BadImageError as error:
                self._counters.refuse(str(error))
                self.get_logger().warning(str(error), throttle_duration_sec=10.0)
            except Exception as error:  # one bad frame must not end the stream
                text = f"a frame failed: {type(error).__name__}: {error}"
                self._counters.refuse(text)
                if self._active and self.context.ok():  # Ctrl-C shuts rclpy down at once
                    self.get_logger().error(text, throttle_duration_sec=10.0)

    def _process(self, student: LiveStudent, message: Image, arrived: float) -> None:
        image = conversions.image_to_rgb(message)
        self._counters.image_size = (image.shape[1], image.shape[0])
        runtime = student.runtime
        if runtime is None:
            self._counters.without_student += 1
            return
        settings = self.settings
        size = None
        if settings.resolution == "network":
            size = (runtime.card.input_size.height, runtime.card.input_size.width)
        depth, confidence = runtime.predict(image, size)
        depth = mark_out_of_range(
            depth, runtime.card.bins, settings.min_range_m, settings.max_range_m
        )
        if settings.min_confidence > 0:
            depth[~(confidence >= settings.min_confidence)] = np.nan  # NaN is not enough either
        header = message.header
        height, width = depth.shape
        self._depth_pub.publish(conversions.depth_to_image(depth, header, settings.encoding))
        if self._info is not None:
            self._info_pub.publish(conversions.camera_info_for(self._info, header, width, height))
        if self._confidence_pub.get_subscription_count() > 0:
            self._confidence_pub.publish(conversions.float_to_image(confidence, header))
        now = time.monotonic()
        self._counters.published.tick(now)
        self._counters.latency_ms.add((now - arrived) * 1e3)

    # The student's version.

    def _on_student(self, message: String) -> None:
        if self._resources is not None and message.data:
            self._counters.note_swap(self._resources.mailbox.replaced)
            self._resources.student.request(message.data)

    def _on_student_change(self, state: LiveState) -> None:
        if self._resources is not None:
            self._counters.end_swap(self._resources.mailbox.replaced)
            self._report()
        self._log_student(state)

    def _log_student(self, state: LiveState) -> None:
        if state.error:
            running = f"goes on with {state.version}" if state.version else "no depth meanwhile"
            self.get_logger().error(f"{state.error} ({running})")
        elif state.version is not None:
            took = (state.swap_ended - state.swap_started) * 1e3
            self.get_logger().info(f"student {state.version} is live (prepared in {took:.0f} ms)")
        else:
            self.get_logger().info(
                "no student has been accepted yet: depth stays silent until a distillation round "
                "brings one (ros2 service call /tiekd/distill std_srvs/srv/Trigger)"
            )

    def _tick(self) -> None:
        if self._active:
            self._camera.check()
        self._report()

    def _report(self) -> None:
        resources = self._resources
        if resources is None:
            return
        status = depth_report(
            self.get_fully_qualified_name(),
            self._counters,
            resources.student,
            self._info,
            dropped=resources.mailbox.replaced,
            active=self._active,
        )
        self._diagnostics.publish(diagnostics(self, status))


def _start(node: DepthNode) -> bool:
    return not node.settings.autostart or start_managed(node)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the node (`ros2 run tiekd_ros depth_node`)."""
    return run_node(DepthNode, _start, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
