"""depth_node: camera images in, metric depth out."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String

from tiekd_ros.errors import BadImageError, TiekdError
from tiekd_ros.mailbox import Mailbox
from tiekd_ros.nodes import conversions, qos
from tiekd_ros.nodes.camera_input import CameraInput
from tiekd_ros.nodes.depth_output import DepthOutput
from tiekd_ros.nodes.depth_report import DepthCounters, FrameClock, depth_report
from tiekd_ros.nodes.parameters import SettingsParameters
from tiekd_ros.nodes.reporting import diagnostics
from tiekd_ros.nodes.run import run_node, start_managed
from tiekd_ros.nodes.settings import DepthSettings
from tiekd_ros.settings import Settings
from tiekd_ros.state import StateFolder
from tiekd_ros.student import (
    LiveState,
    LiveStudent,
    Runtime,
    RuntimeFactory,
    StudentRegistry,
    choose_device,
)
from tiekd_ros.student.ranges import mark_out_of_range


@dataclass
class _Resources:
    """What exists between configure and cleanup."""

    factory: RuntimeFactory
    student: LiveStudent
    output: DepthOutput
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
            factory = RuntimeFactory(device, self.settings.runtime, self.settings.threads)
            folder = StateFolder.resolve(self.settings.state_dir).create()
        except TiekdError as error:
            self.get_logger().error(f"cannot configure: {error}")
            return TransitionCallbackReturn.FAILURE
        mailbox: Mailbox[tuple[Image, float]] = Mailbox()
        registry, begin = StudentRegistry(folder.students), self._counters.begin_swap
        student = LiveStudent(
            registry, factory, self._on_student_change, lambda: begin(mailbox.replaced)
        )
        student.load_pointer()
        self._log_student(student.state)
        thread = threading.Thread(target=self._work, name="frames", daemon=True)
        self._resources = _Resources(factory, student, DepthOutput(self), mailbox, thread)
        self._news = self.create_subscription(String, "student", self._on_student, qos.LATCHED)
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
        resources = self._resources
        self.release()
        self.destroy_subscription(self._news)
        if resources is not None:
            resources.output.close()
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
                self._process(resources, *item)
            except BadImageError as error:
                self._counters.refuse(str(error))
                self.get_logger().warning(str(error), throttle_duration_sec=10.0)
            except Exception as error:  # one bad frame must not end the stream
                text = f"a frame failed: {type(error).__name__}: {error}"
                self._counters.refuse(text)
                if self._active and self.context.ok():  # Ctrl-C shuts rclpy down at once
                    self.get_logger().error(text, throttle_duration_sec=10.0)

    def _process(self, resources: _Resources, message: Image, arrived: float) -> None:
        clock = FrameClock(arrived)
        image = conversions.image_to_rgb(message, copy=False)
        clock.decoded()
        self._counters.image_size = (image.shape[1], image.shape[0])
        runtime, output, settings = resources.student.runtime, resources.output, self.settings
        if runtime is None:
            self._counters.without_student += 1
            return
        size = _network_size(runtime) if settings.resolution == "network" else image.shape[:2]
        if not output.wanted:
            output.publish_info(self._info, message.header, size)
            self._counters.unheard += 1
            return
        depth, confidence, stages = runtime.predict(
            image, size, confidence=settings.min_confidence > 0 or output.confidence_wanted
        )
        mark_out_of_range(
            depth, runtime.card.bins, settings.min_range_m, settings.max_range_m, in_place=True
        )
        if confidence is not None and settings.min_confidence > 0:
            depth[~(confidence >= settings.min_confidence)] = np.nan  # NaN is not enough either
        clock.predicted(stages)
        output.publish(depth, confidence, message.header, self._info, settings.encoding)
        self._counters.publish(clock)

    # The student's version.

    def _on_student(self, message: String) -> None:
        if self._resources is not None and message.data:
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
            measured=resources.factory.measured,
            dropped=resources.mailbox.replaced,
            active=self._active,
            heard=resources.output.wanted,
        )
        self._diagnostics.publish(diagnostics(self, status))


def _network_size(runtime: Runtime) -> tuple[int, int]:
    size = runtime.card.input_size
    return size.height, size.width


def _start(node: DepthNode) -> bool:
    return not node.settings.autostart or start_managed(node)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the node (`ros2 run tiekd_ros depth_node`)."""
    return run_node(DepthNode, _start, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
