"""What the companion takes from the camera's stream and offers to the frame log."""

from __future__ import annotations

import time

from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image

from tiekd_ros.errors import BadImageError
from tiekd_ros.frames import Observation, Recorder
from tiekd_ros.nodes import conversions, qos
from tiekd_ros.nodes.camera_input import CameraInput
from tiekd_ros.nodes.confidence import ConfidenceListener
from tiekd_ros.nodes.reporting import ERROR, WARN

_OFFERS_AN_INTERVAL = 4
"""Images offered to the log in one minimum interval; converting every one would be waste."""
_SILENCE_S = 5.0


class FrameIntake:
    """Listens to image, camera_info and, if asked, confidence from creation until `close`.

    Args:
        node: who listens.
        reliability: as for `CameraInput`.
        recorder: receives the observations.
        min_interval_s: shortest time between two logged frames.
        confidence: whether to listen to the confidence too.
    """

    def __init__(
        self,
        node: Node,
        reliability: str,
        recorder: Recorder,
        min_interval_s: float,
        *,
        confidence: bool,
    ) -> None:
        self._node = node
        self._recorder = recorder
        self._least_ns = min_interval_s * 1e9 / _OFFERS_AN_INTERVAL
        self._info: CameraInfo | None = None
        self._confidence = ConfidenceListener()
        self._last_offer_ns: int | None = None
        self._last_image_s = time.monotonic()
        self._fault = ""
        self._camera = CameraInput(node, reliability, self._on_image, self._on_info)
        self._confidence_sub = None
        if confidence:
            self._confidence_sub = node.create_subscription(
                Image, "confidence", self._confidence.hear, qos.image_input("best_effort")
            )

    def check(self) -> list[tuple[bytes, str]]:
        """Look after the subscriptions; return what is wrong with the stream, as findings."""
        self._camera.check()
        findings = [(ERROR, self._fault)] if self._fault else []
        if time.monotonic() - self._last_image_s > _SILENCE_S:
            silence = "no image arrives; check the image topic's name, its QoS and the camera"
            findings.append((WARN, silence))
        return findings

    def close(self) -> None:
        """Stop listening."""
        self._camera.close()
        if self._confidence_sub is not None:
            self._node.destroy_subscription(self._confidence_sub)

    def _on_info(self, message: CameraInfo) -> None:
        self._info = message

    def _on_image(self, message: Image) -> None:
        self._last_image_s = time.monotonic()
        # A camera that leaves its stamps empty is logged by the time of arrival.
        stamp = conversions.stamp_ns(message.header) or self._node.get_clock().now().nanoseconds
        last = self._last_offer_ns
        if last is not None and abs(stamp - last) < self._least_ns:
            return
        self._last_offer_ns = stamp
        try:
            image = conversions.image_to_rgb(message)
        except BadImageError as error:
            self._fault = str(error)
            self._node.get_logger().warning(f"not logged: {error}", throttle_duration_sec=10.0)
            return
        self._fault = ""
        height, width = image.shape[:2]
        info = self._info
        self._recorder.offer(
            Observation(
                image,
                stamp,
                message.header.frame_id,
                conversions.intrinsics_of(info, width, height) if info is not None else None,
                self._confidence.at(stamp),
            )
        )
