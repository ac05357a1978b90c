"""The topics that depth_node publishes, each computed only while it has subscribers."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSCompatibility, QoSProfile, qos_check_compatible
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header

from tiekd_ros.core.images import DepthMap
from tiekd_ros.diagnosis import keys
from tiekd_ros.nodes.camera.input import CameraFrame
from tiekd_ros.nodes.common import qos
from tiekd_ros.nodes.common.conversions import ImageCanvas, camera_info_message, depth_to_image
from tiekd_ros.nodes.common.qos import (
    Mismatch,
    PublisherEventCallbacks,
    UnsupportedEventTypeError,
    node_name,
    policy_name,
)
from tiekd_ros.nodes.common.reporting import WARN, Finding
from tiekd_ros.nodes.common.settings import DepthSettings
from tiekd_ros.nodes.depth.points import PointCanvas
from tiekd_ros.nodes.depth.preview import PreviewCanvas, describe_range, preview_range
from tiekd_ros.student.bins import DepthBins


class OutputTopic:
    """A lifecycle publisher that counts what it publishes and reports subscribers it cannot serve.

    Args:
        node: the publisher.
        kind: the message's class.
        name: of the topic.
        profile: the quality that is offered.
    """

    def __init__(self, node: LifecycleNode, kind: Any, name: str, profile: QoSProfile) -> None:
        self._node, self._profile = node, profile
        self._mismatch = Mismatch()
        self.published = 0
        """How many messages went out."""
        try:
            self._publisher = node.create_lifecycle_publisher(
                kind,
                name,
                profile,
                event_callbacks=PublisherEventCallbacks(incompatible_qos=self._on_mismatch),
            )
        except UnsupportedEventTypeError:  # this middleware does not tell
            self._publisher = node.create_lifecycle_publisher(kind, name, profile)

    @property
    def name(self) -> str:
        """The topic's name, with its namespace and remappings."""
        return str(self._publisher.topic_name)

    @property
    def has_subscribers(self) -> bool:
        """Whether the topic has any."""
        return bool(self._publisher.get_subscription_count() > 0)

    def publish(self, message: Any) -> None:
        """Publish and count a message."""
        self._publisher.publish(message)
        self.published += 1

    def findings(self) -> list[Finding]:
        """Return which subscribers cannot be served, as long as they are there, with the remedy."""
        policy = self._mismatch.policy
        if not policy:
            return []
        nodes = self._unserved()
        if not nodes and not self._mismatch.is_recent:  # that subscriber has gone
            return []
        who = " and ".join(nodes) or "a subscriber"
        return [(WARN, f"{who} gets nothing of {self.name}: {self._remedy(policy)}")]

    def close(self) -> None:
        """End the publisher."""
        self._node.destroy_lifecycle_publisher(self._publisher)

    def _on_mismatch(self, event: Any) -> None:
        policy = policy_name(event)
        self._mismatch.note(policy)
        self._node.get_logger().warning(
            f"a subscriber of {self.name} gets nothing: {self._remedy(policy)}"
        )

    def _remedy(self, policy: str) -> str:
        if policy == "RELIABILITY":
            return (
                "it asks for RELIABLE, offered is BEST_EFFORT; subscribe best effort, or set "
                "output_reliability: reliable"
            )
        if policy == "DURABILITY":
            return (
                "it asks for TRANSIENT_LOCAL, offered is VOLATILE, since old depth is useless; "
                "subscribe volatile"
            )
        return f"its {policy} does not fit what is offered; subscribe with the sensor data profile"

    def _unserved(self) -> list[str]:
        """Return the names of the nodes whose subscriptions do not fit."""
        found = set()
        for info in self._node.get_subscriptions_info_by_topic(self.name):
            fit, _ = qos_check_compatible(self._profile, info.qos_profile)
            if fit == QoSCompatibility.ERROR:
                found.add(node_name(info))
        return sorted(found)


_RECENT_S = 5.0


class DepthOutput:
    """The publishers of `depth`, `camera_info`, `confidence`, `depth/preview` and `points`.

    Messages are written in place, so the thread of the frames alone publishes; the executor's
    asks `findings` and `values`.
    """

    def __init__(self, node: LifecycleNode, settings: DepthSettings) -> None:
        profile = qos.profile(settings.output_reliability, depth=settings.output_depth)
        with ExitStack() as made:  # where one cannot be made, none is left

            def topic(kind: Any, name: str) -> OutputTopic:
                one = OutputTopic(node, kind, name, profile)
                made.callback(one.close)
                return one

            self._depth = topic(Image, "depth")
            self._info = topic(CameraInfo, "camera_info")
            self._confidence = topic(Image, "confidence")
            self._preview = topic(Image, "depth/preview")
            self._points = topic(PointCloud2, "points")
            self._made = made.pop_all()
        self._topics = (self._depth, self._info, self._confidence, self._preview, self._points)
        self._depth_canvas, self._confidence_canvas = ImageCanvas(), ImageCanvas()
        self._preview_canvas, self._point_canvas = PreviewCanvas(), PointCanvas()
        self._preview_shows = "nothing yet"
        self._no_points: tuple[str, float] = ("", -np.inf)  # (reason, when), monotonic seconds

    @property
    def wanted(self) -> bool:
        """Whether a topic that needs the network has subscribers; `camera_info` needs none."""
        return any(
            t.has_subscribers for t in (self._depth, self._confidence, self._preview, self._points)
        )

    @property
    def confidence_wanted(self) -> bool:
        """Whether the confidence has subscribers."""
        return self._confidence.has_subscribers

    def publish_depth(self, depth: DepthMap, header: Header, encoding: str) -> None:
        """Publish the depth image.

        Args:
            depth: metres, (H, W).
            header: of the camera's image.
            encoding: of the message.
        """
        if self._depth.has_subscribers:
            self._depth.publish(depth_to_image(depth, header, encoding, self._depth_canvas))

    def publish_rest(
        self,
        depth: DepthMap,
        confidence: npt.NDArray[np.float32] | None,
        frame: CameraFrame,
        settings: DepthSettings,
        bins: DepthBins,
    ) -> None:
        """Publish what else came of one image, with the image's header.

        Args:
            depth: metres, (H, W).
            confidence: 0..1, (H, W), where it was computed.
            frame: what the student saw, any size; read only.
            settings: the preview's range and colours.
            bins: the student's.
        """
        header = frame.header
        self.publish_info(frame, depth.shape)
        if confidence is not None and self._confidence.has_subscribers:
            self._confidence.publish(self._confidence_canvas.paint(confidence, header))
        if self._preview.has_subscribers:
            self._publish_preview(depth, header, settings, bins)
        if self._points.has_subscribers:
            self._publish_points(depth, frame)

    def publish_info(self, frame: CameraFrame, size: tuple[int, ...]) -> None:
        """Publish the calibration of a depth image of `size` = (H, W), published or not."""
        if frame.model is not None and self._info.has_subscribers:
            height, width = size
            model = frame.model.resized(width, height)
            self._info.publish(camera_info_message(model, frame.header))

    def findings(self) -> list[Finding]:
        """Return what keeps subscribers from what they asked for."""
        found = [finding for topic in self._topics for finding in topic.findings()]
        reason, when = self._no_points
        if reason and time.monotonic() - when < _RECENT_S:
            found.append((WARN, reason))
        return found

    def values(self) -> dict[str, object]:
        """Return the counts of published messages, and the preview's range."""
        return {
            keys.CONFIDENCE_PUBLISHED: self._confidence.published,
            keys.PREVIEWS_PUBLISHED: self._preview.published,
            keys.CLOUDS_PUBLISHED: self._points.published,
            keys.PREVIEW_SHOWS: self._preview_shows,
        }

    def close(self) -> None:
        """End the publishers."""
        self._made.close()

    def _publish_preview(
        self, depth: DepthMap, header: Header, settings: DepthSettings, bins: DepthBins
    ) -> None:
        near, far = preview_range(settings, bins)
        colormap = settings.preview_colormap
        self._preview.publish(self._preview_canvas.paint(depth, header, (near, far), colormap))
        self._preview_shows = describe_range(near, far, colormap)

    def _publish_points(self, depth: DepthMap, frame: CameraFrame) -> None:
        reason = "there are no points without camera_info; remap image_info to the camera's"
        if frame.model is not None:
            height, width = depth.shape
            model = frame.model.resized(width, height)
            cloud = self._point_canvas.paint(depth, frame.image, frame.header, model)
            if cloud is not None:
                self._points.publish(cloud)
                self._no_points = ("", -np.inf)
                return
            reason = (
                "there are no points, for camera_info is uncalibrated or of another shape than "
                "the images; calibrate the camera"
            )
        self._no_points = (reason, time.monotonic())
