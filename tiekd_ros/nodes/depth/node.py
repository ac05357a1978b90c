"""depth_node: camera images in, metric depth out."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from std_msgs.msg import String

from tiekd_ros.core.devices import choose_device
from tiekd_ros.core.errors import BadImageError
from tiekd_ros.core.images import fit_mask
from tiekd_ros.core.mailbox import Mailbox
from tiekd_ros.core.settings import Settings
from tiekd_ros.core.state import StateFolder
from tiekd_ros.diagnosis.thresholds import DepthDiagnosticSettings
from tiekd_ros.nodes.camera.input import PATIENCE_S, CameraImage, CameraInput, NotYetCalibratedError
from tiekd_ros.nodes.common import qos
from tiekd_ros.nodes.common.managed import ACTIVE, ManagedNode
from tiekd_ros.nodes.common.reporting import Report
from tiekd_ros.nodes.common.run import release_memory, until_shutdown
from tiekd_ros.nodes.common.settings import DepthSettings
from tiekd_ros.nodes.depth.output import DepthOutput
from tiekd_ros.nodes.depth.report import (
    DepthCounters,
    FrameClock,
    add_depth_report,
    add_pixel_report,
)
from tiekd_ros.student.bins import mark_out_of_range, range_fault
from tiekd_ros.student.live import LiveState, LiveStudent
from tiekd_ros.student.registry import StudentRegistry
from tiekd_ros.student.runtimes.base import Runtime
from tiekd_ros.student.runtimes.choosing import RuntimeFactory


@dataclass
class _Resources:
    """What exists between configure and cleanup."""

    factory: RuntimeFactory
    student: LiveStudent
    output: DepthOutput
    mailbox: Mailbox[tuple[CameraImage, float]]
    thread: threading.Thread


class DepthNode(ManagedNode):
    """Runs the live student on the newest image.

    The executor's thread only puts images into a one-slot mailbox; a thread of its own
    converts, predicts and publishes, so a slow frame never makes a queue.
    """

    settings: DepthSettings

    def __init__(self, **options: Any) -> None:
        super().__init__("depth_node", DepthSettings, DepthDiagnosticSettings, **options)
        self._make_factory()  # a device or a runtime that is not there is told at once
        self._resources: _Resources | None = None
        self._camera: CameraInput | None = None
        self._findings: list[tuple[bytes, str]] = []  # of the camera
        self._counters = DepthCounters()

    def _make_factory(self) -> RuntimeFactory:
        device = choose_device(self.settings.device)
        return RuntimeFactory(device, self.settings.runtime, self.settings.threads)

    # Lifecycle: load in configure, subscribe in activate.

    def configure(self, held: ExitStack) -> None:
        """Load the live student and make the publishers."""
        held.callback(release_memory)  # when all the rest is gone
        self._counters = DepthCounters()  # as the mailbox's and the student's own begin anew
        factory = self._make_factory()
        folder = StateFolder.resolve(self.settings.state_dir).create()
        mailbox: Mailbox[tuple[CameraImage, float]] = Mailbox()
        registry, begin = StudentRegistry(folder.students), self._counters.begin_swap
        student = LiveStudent(
            registry, factory, self._on_student_change, lambda: begin(mailbox.replaced)
        )
        held.callback(student.close)
        student.load_pointer()
        self._log_student(student.state)
        self._log_range_fault(student.runtime)
        output = DepthOutput(self, self.settings)
        held.callback(output.close)
        thread = threading.Thread(target=self._work, name="frames", daemon=True)
        self._resources = _Resources(factory, student, output, mailbox, thread)
        held.callback(self._end_work)
        news = self.create_subscription(String, "student", self._on_student, qos.LATCHED)
        held.callback(self.destroy_subscription, news)
        thread.start()

    def _end_work(self) -> None:
        resources, self._resources = self._resources, None
        if resources is not None:
            resources.mailbox.close()
            if resources.thread.ident is not None:
                resources.thread.join(5.0)

    def activate(self, held: ExitStack) -> None:
        """Listen to the camera."""
        self._camera = CameraInput(self, self.settings, self._on_image)
        held.callback(self._camera.close)

    def forget_time(self) -> None:
        """Drop what is known of the camera by stamps."""
        if self._camera is not None:
            self._camera.forget_time()

    # The frame's way.

    def _on_image(self, message: CameraImage) -> None:
        self._counters.received.tick(time.monotonic())
        if self._resources is not None:
            self._resources.mailbox.put((message, time.monotonic()))

    def _work(self) -> None:
        resources = self._resources
        while resources is not None and not resources.mailbox.closed:
            item = resources.mailbox.take()
            if item is None or self.phase != ACTIVE:
                continue
            try:
                self._process(resources, *item)
            except NotYetCalibratedError:
                continue
            except BadImageError as error:
                self._counters.refuse(str(error))
                self.get_logger().warning(str(error), throttle_duration_sec=10.0)
            except Exception as error:  # one bad frame must not end the stream
                text = f"a frame failed: {type(error).__name__}: {error}"
                self._counters.refuse(text)
                if self.phase == ACTIVE and self.context.ok():  # Ctrl-C shuts rclpy down at once
                    self.get_logger().error(text, throttle_duration_sec=10.0)

    def _process(self, resources: _Resources, message: CameraImage, arrived: float) -> None:
        if self._camera is None:
            return
        clock = FrameClock(arrived)
        frame = self._camera.frame(message, copy=False, patience_s=PATIENCE_S)
        image = frame.image
        clock.decoded()
        self._counters.image_size = (image.shape[1], image.shape[0])
        runtime, output, settings = resources.student.runtime, resources.output, self.settings
        if runtime is None:
            self._counters.without_student += 1
            return
        size = image.shape[:2]
        if settings.resolution == "network":
            size = (runtime.card.input_size.height, runtime.card.input_size.width)
        if not output.wanted:
            output.publish_info(frame, size)
            self._counters.without_subscribers += 1
            return
        depth, confidence, stages = runtime.predict(
            image, size, confidence=settings.min_confidence > 0 or output.confidence_wanted
        )
        mark_out_of_range(
            depth, runtime.card.bins, settings.min_range_m, settings.max_range_m, in_place=True
        )
        if confidence is not None and settings.min_confidence > 0:
            depth[~(confidence >= settings.min_confidence)] = np.nan  # NaN is not enough either
        if frame.invalid_mask is not None:
            depth[fit_mask(frame.invalid_mask, *depth.shape)] = np.nan
        self._counters.pixels.add(depth, confidence, time.monotonic())
        clock.predicted(stages)
        output.publish_depth(depth, frame.header, settings.encoding)
        try:
            output.publish_rest(depth, confidence, frame, settings, runtime.card.bins)
        finally:  # depth is out, whatever became of the rest
            if self.phase == ACTIVE:  # else the publishers let it go
                self._counters.publish(clock)

    # The student's version.

    def _on_student(self, message: String) -> None:
        if self._resources is not None and message.data:
            self._resources.student.request(message.data)

    def _on_student_change(self, state: LiveState) -> None:
        if self._resources is not None:
            self._counters.end_swap(self._resources.mailbox.replaced)
        self._log_student(state)
        if self._resources is not None:
            self._log_range_fault(self._resources.student.runtime)
            with until_shutdown(self):
                self.publish_report()

    def _log_student(self, state: LiveState) -> None:
        if state.error:
            running = f"goes on with {state.version}" if state.version else "no depth meanwhile"
            self.get_logger().error(f"{state.error} ({running})")
        elif state.version is not None:
            took = (state.swap_ended - state.swap_started) * 1e3
            self.get_logger().info(f"student {state.version} is live (prepared in {took:.0f} ms)")
        else:
            self.get_logger().info(
                "no student has been accepted yet: depth stays silent until the first labels, or a "
                "distillation round, bring one "
                "(ros2 service call /tiekd/distill std_srvs/srv/Trigger)"
            )

    def take_settings(self, group: str, settings: Settings) -> None:
        """Say at once what a range that leaves no depth does.

        It is not refused: the next student may have another range, and one that was chosen for
        that has to be accepted before it is live.
        """
        if isinstance(settings, DepthSettings) and self._resources is not None:
            self._log_range_fault(self._resources.student.runtime)

    def _log_range_fault(self, runtime: Runtime | None) -> None:
        near, far = self.settings.min_range_m, self.settings.max_range_m
        fault = "" if runtime is None else range_fault(runtime.card.bins, near, far)
        if fault:
            self.get_logger().error(fault)

    def work(self) -> None:
        """Look after the subscriptions."""
        if self.phase == ACTIVE:
            self._findings = self._camera.check() if self._camera is not None else []

    def report(self, report: Report) -> str:
        """Add what is known of the stream and of the student."""
        resources = self._resources
        if resources is None:
            return ""
        camera = self._camera
        if camera is not None and self.phase == ACTIVE:
            report.find_all(self._findings)
        add_depth_report(
            report,
            self._counters,
            resources.student,
            None if camera is None else camera.model,
            self.thresholds,
            measured=resources.factory.measured,
            dropped=resources.mailbox.replaced,
            active=self.phase == ACTIVE,
            has_subscribers=resources.output.wanted,
        )
        runtime = resources.student.runtime
        bins = None if runtime is None else runtime.card.bins
        add_pixel_report(report, self._counters.pixels, self.settings, bins, self.thresholds)
        report.find_all(resources.output.findings())
        report.add(resources.output.values())
        if camera is not None:
            report.add(camera.values())
        flows = self._counters.published.value(time.monotonic()) > 0
        return "publishing depth" if flows else "waiting for images"
