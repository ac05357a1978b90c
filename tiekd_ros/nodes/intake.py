"""What the companion takes from the camera's stream and offers to the frame log."""

from __future__ import annotations

import time

from rclpy.node import Node
from sensor_msgs.msg import Image

from tiekd_ros.errors import BadImageError
from tiekd_ros.frames import Observation, Recorder
from tiekd_ros.nodes import conversions, qos
from tiekd_ros.nodes.camera_input import CameraImage, CameraInput
from tiekd_ros.nodes.confidence import ConfidenceListener
from tiekd_ros.nodes.reporting import ERROR
from tiekd_ros.nodes.settings import CommonSettings

_OFFERS_AN_INTERVAL = 4
"""Images offered to the log in one minimum interval; converting every one would be waste."""


class FrameIntake:
    """Listens to image, camera_info and, if asked, confidence from creation until `close`.

    Args:
        node: who listens.
        settings: as for `CameraInput`.
        recorder: receives the observations.
        min_interval_s: shortest time between two logged frames.
        confidence: whether to listen to the confidence too.
    """

    def __init__(
        self,
        node: Node,
        settings: CommonSettings,
        recorder: Recorder,
        min_interval_s: float,
        *,
        confidence: bool,
    ) -> None:
        self._node = node
        self._recorder = recorder
        self._least_ns = min_interval_s * 1e9 / _OFFERS_AN_INTERVAL
        self._confidence = ConfidenceListener()
        self._last_offer_ns: int | None = None
        self._fault = ""
        self._camera = CameraInput(node, settings, self._on_image)
        self._confidence_sub = None
        if confidence:
            self._confidence_sub = node.create_subscription(
                Image, "confidence", self._confidence.hear, qos.image_input("best_effort")
            )

    def check(self) -> list[tuple[bytes, str]]:
        """Look after the subscriptions; return what is wrong with the stream, as findings."""
        findings = [(ERROR, self._fault)] if self._fault else []
        return findings + self._camera.check()

    def values(self) -> dict[str, object]:
        """Return what is listened to, and what came, for the diagnostics."""
        return self._camera.values()

    def close(self) -> None:
        """Stop listening."""
        self._camera.close()
        if self._confidence_sub is not None:
            self._node.destroy_subscription(self._confidence_sub)

    def _on_image(self, message: CameraImage) -> None:
        # A camera that leaves its stamps empty is logged by the time of arrival; with use_sim_time
        # and no /clock yet, that is 0 too.
        stamp = conversions.stamp_ns(message.header) or self._node.get_clock().now().nanoseconds
        stamp = stamp or time.time_ns()
        last = self._last_offer_ns
        # A stamp that went back, by a bag that starts again, is far from the last one too.
        if last is not None and abs(stamp - last) < self._least_ns:
            return
        try:
            image, info, _ = self._camera.view(message)
        except BadImageError as error:
            self._fault = str(error)
            self._node.get_logger().warning(f"not logged: {error}", throttle_duration_sec=10.0)
            return
        self._fault, self._last_offer_ns = "", stamp
        height, width = image.shape[:2]
        self._recorder.offer(
            Observation(
                image,
                stamp,
                message.header.frame_id,
                conversions.intrinsics_of(info, width, height) if info is not None else None,
                self._confidence.at(stamp),
            )
        )
