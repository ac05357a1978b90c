"""camera_node: plays the synthetic world, images, a bag, a video or a webcam as a camera."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import rclpy
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.nodes.camera.sources import RATE, RECORDED, SourceImage, open_source
from tiekd_ros.nodes.common import conversions, qos
from tiekd_ros.nodes.common.parameters import SettingsParameters
from tiekd_ros.nodes.common.run import run_nodes, until_shutdown
from tiekd_ros.nodes.common.settings import CameraSettings

_SUBSCRIBERS_S = 2.0  # wait so long for the first subscribers, where images are played only once
_DELIVERY_S = 2.0  # and so long for the last image to arrive
_POLL_S = 0.05
_AFTER_FAULT_S = 0.1


class Pace:
    """When the next image is due; a slow machine skips time and does not catch up in a burst."""

    def __init__(self, period_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._period_s = period_s
        self._clock = clock
        self._due: float | None = None
        self._recorded_ns: int | None = None

    def by_rate(self) -> float:
        """Return the seconds until the next image is due."""
        return self._wait(self._period_s)

    def as_recorded(self, recorded_ns: int) -> float:
        """Return the seconds until the image of this stamp is due."""
        before, self._recorded_ns = self._recorded_ns, recorded_ns
        if before is None or recorded_ns < before:  # from the start again
            return self._wait(self._period_s)
        return self._wait((recorded_ns - before) / 1e9)

    def _wait(self, step_s: float) -> float:
        now = self._clock()
        self._due = now if self._due is None else self._due + step_s
        if now - self._due > self._period_s:
            self._due = now
        return max(0.0, self._due - now)


class CameraNode(Node):
    """Publishes image and camera_info from a thread of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__("camera_node", **options)
        self.settings = SettingsParameters(self, lambda group, new: None).declare(
            "", CameraSettings
        )
        self._source = open_source(self.settings)
        self._pace_kind = self._source.pace if self.settings.pace == "auto" else self.settings.pace
        for note in self._source.notes:
            self.get_logger().warning(note)
        # What is played once is not to be pushed out by what comes after it.
        quality = qos.RELIABLE if self.settings.loop else qos.output("reliable", depth=10)
        self._image_pub = self.create_publisher(Image, "image_raw", quality)
        self._info_pub = self.create_publisher(CameraInfo, "camera_info", quality)
        self._outputs = (self._image_pub, self._info_pub)
        self._stop = threading.Event()
        self._played = threading.Event()
        self._is_program = False
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)
        self._thread.start()

    def start(self) -> None:
        """Let the program end with the last image, where images are played only once."""
        self._is_program = True
        if self._played.is_set():
            rclpy.try_shutdown(context=self.context)

    def release(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        try:
            if not self.settings.loop:
                self._await_subscribers()
            with until_shutdown(self):
                self._play()
        finally:
            self._source.close()
        if self._stop.is_set():
            return
        self._played.set()
        if self._is_program:
            rclpy.try_shutdown(context=self.context)

    def _play(self) -> None:
        pace, count, in_turn = Pace(1.0 / self.settings.rate_hz), 0, 0
        while not self._stop.is_set():
            if self._pace_kind == RATE and self._stop.wait(pace.by_rate()):
                return
            try:
                item = self._source.read(self.get_clock().now().nanoseconds)
            except TiekdError as error:  # one bad image must not end the stream
                self.get_logger().error(str(error), throttle_duration_sec=10.0)
                self._stop.wait(_AFTER_FAULT_S)
                continue
            if item is None:
                if not self.settings.loop or in_turn == 0:
                    break
                self._source.rewind()
                in_turn = 0
                continue
            if self._pace_kind == RECORDED and item.recorded_ns is not None:
                self._stop.wait(pace.as_recorded(item.recorded_ns))
            self._publish(item)
            count, in_turn = count + 1, in_turn + 1
        else:
            return
        for publisher in self._outputs:
            publisher.wait_for_all_acked(Duration(seconds=_DELIVERY_S))
        self.get_logger().info(f"all {count} images played")

    def _await_subscribers(self) -> None:
        """Give subscribers a moment to find this node: the first image comes only once."""
        deadline = time.monotonic() + _SUBSCRIBERS_S
        while time.monotonic() < deadline and not self._stop.is_set():
            if all(each.get_subscription_count() for each in self._outputs):
                return
            self._stop.wait(_POLL_S)

    def _publish(self, item: SourceImage) -> None:
        header = Header(frame_id=item.frame_id or self.settings.frame_id)
        stamp_ns = item.taken_ns
        if self.settings.stamps == "recorded" and item.recorded_ns is not None:
            stamp_ns = item.recorded_ns
        now = self.get_clock().now()
        header.stamp = (now if stamp_ns is None else Time(nanoseconds=stamp_ns)).to_msg()
        if item.camera is not None:
            self._info_pub.publish(conversions.camera_info_message(item.camera, header))
        self._image_pub.publish(conversions.rgb_to_image(item.image, header))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the node (`ros2 run tiekd_ros camera_node`)."""
    return run_nodes([CameraNode], arguments)
