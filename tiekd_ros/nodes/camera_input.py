"""The camera's image and camera_info, subscribed in the quality of service that fits."""

from __future__ import annotations

from collections.abc import Callable

from rclpy.node import Node
from rclpy.qos import ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image

from tiekd_ros.nodes import qos


class CameraInput:
    """Subscriptions to `image` and `image_info`.

    A best-effort subscription receives from every camera, but large images get lost on a busy
    machine; a reliable one loses none, but hears nothing of a best-effort camera. With `auto`
    the subscription is reliable as long as every publisher of the image is.

    Args:
        node: who subscribes.
        reliability: `auto`, `best_effort` or `reliable`.
        on_image: called with each image.
        on_info: called with each camera_info.
    """

    def __init__(
        self,
        node: Node,
        reliability: str,
        on_image: Callable[[Image], None],
        on_info: Callable[[CameraInfo], None],
    ) -> None:
        self._node = node
        self._callbacks = ((Image, "image", on_image), (CameraInfo, "image_info", on_info))
        self._auto = reliability == "auto"
        self._reliability = self._fitting() if self._auto else reliability
        self._subscribe()

    def check(self) -> None:
        """Look whether the camera's publishers ask for another quality; call now and then."""
        if self._auto and self._fitting() != self._reliability:
            self.close()
            self._reliability = self._fitting()
            self._subscribe()

    def close(self) -> None:
        """Stop listening."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)

    def _subscribe(self) -> None:
        profile = qos.image_input(self._reliability)
        self._subscriptions = [
            self._node.create_subscription(kind, name, callback, profile)
            for kind, name, callback in self._callbacks
        ]

    def _fitting(self) -> str:
        publishers = self._node.get_publishers_info_by_topic("image")
        offers = {info.qos_profile.reliability for info in publishers}
        return "reliable" if offers == {ReliabilityPolicy.RELIABLE} else "best_effort"
