"""What depth_node publishes, each as long as somebody listens to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from tiekd_ros.images import DepthMap
from tiekd_ros.nodes import qos
from tiekd_ros.nodes.conversions import ImageCanvas, camera_info_for, depth_to_image


class DepthOutput:
    """The publishers of `depth`, `camera_info` and `confidence`.

    To be used from one thread: messages are written in place.
    """

    def __init__(self, node: LifecycleNode) -> None:
        self._node = node
        create = node.create_lifecycle_publisher
        self._depth = create(Image, "depth", qos.RELIABLE)
        self._info = create(CameraInfo, "camera_info", qos.RELIABLE)
        self._confidence = create(Image, "confidence", qos.RELIABLE)
        self._depth_canvas, self._confidence_canvas = ImageCanvas(), ImageCanvas()

    @property
    def wanted(self) -> bool:
        """Whether anybody listens to what takes the network; `camera_info` does not."""
        return _heard(self._depth) or _heard(self._confidence)

    @property
    def confidence_wanted(self) -> bool:
        """Whether anybody listens to the confidence."""
        return _heard(self._confidence)

    def publish(
        self,
        depth: DepthMap,
        confidence: npt.NDArray[np.float32] | None,
        header: Header,
        info: CameraInfo | None,
        encoding: str,
    ) -> None:
        """Publish what came of one image, with the image's header.

        Args:
            depth: metres, (H, W).
            confidence: 0..1, (H, W), where it was computed.
            header: of the image.
            info: the camera's calibration, if it is known.
            encoding: of the depth image.
        """
        if _heard(self._depth):
            self._depth.publish(depth_to_image(depth, header, encoding, self._depth_canvas))
        self.publish_info(info, header, depth.shape)
        if confidence is not None and _heard(self._confidence):
            self._confidence.publish(self._confidence_canvas.paint(confidence, header))

    def publish_info(self, info: CameraInfo | None, header: Header, size: tuple[int, ...]) -> None:
        """Publish the calibration of a depth image, or of one that nobody asks for.

        Args:
            info: the camera's calibration, if it is known.
            header: of the camera's image.
            size: (H, W) of the depth image.
        """
        if info is not None and _heard(self._info):
            height, width = size
            self._info.publish(camera_info_for(info, header, width, height))

    def close(self) -> None:
        """Stop publishing."""
        for publisher in (self._depth, self._info, self._confidence):
            self._node.destroy_lifecycle_publisher(publisher)


def _heard(publisher: Any) -> bool:
    return bool(publisher.get_subscription_count() > 0)
