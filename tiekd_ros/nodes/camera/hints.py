"""Why no image, or no camera_info, arrives: what the ROS graph has instead, and what would do."""

from __future__ import annotations

from rclpy.node import Node

from tiekd_ros.diagnosis.camera import (
    COMPRESSED,
    NO_IMAGES_REMEDY,
    missing_image_remedy,
    missing_info_remedy,
)
from tiekd_ros.nodes.camera.topic import CameraTopic
from tiekd_ros.nodes.common.qos import published_topics

_OWN_OUTPUTS = ("depth", "depth/preview", "confidence")


def compressed_topic(node: Node) -> str:
    """Return the topic of compressed images, by image_transport's rule and what is remapped.

    That is `<image>/compressed`, unless `image/compressed` is remapped itself, or `image` to a
    topic that ends so already.
    """
    own = node.resolve_topic_name("image" + COMPRESSED)
    if own != node.resolve_topic_name("image" + COMPRESSED, only_expand=True):
        return own
    base = node.resolve_topic_name("image")
    return base if base.endswith(COMPRESSED) else base + COMPRESSED


def why_no_image(node: Node, topic: CameraTopic) -> str:
    """Return why no image may have come on a topic, with the remedy."""
    if topic.publishers:
        return f"{topic.publishers[0]} publishes it: {NO_IMAGES_REMEDY}"
    own = {node.resolve_topic_name(name) for name in _OWN_OUTPUTS}
    published = published_topics(node)
    return f"no node publishes it; {missing_image_remedy(topic.topic, topic.type, published, own)}"


def why_no_info(node: Node, topic: CameraTopic, image_topic: str) -> str:
    """Return why no camera_info may have come on a topic, with the remedy."""
    if topic.publishers:
        return f"{topic.publishers[0]} publishes it, but sends none; see its log"
    own = {node.resolve_topic_name("camera_info")}
    return f"no node publishes it; {missing_info_remedy(image_topic, published_topics(node), own)}"


def why_info_stopped(topic: CameraTopic) -> str:
    """Return why camera_info may have stopped on a topic, with the remedy."""
    if topic.publishers:
        return f"{topic.publishers[0]} publishes it, but sends none any more; see its log"
    return "no node publishes it any more; restart the camera's driver"
