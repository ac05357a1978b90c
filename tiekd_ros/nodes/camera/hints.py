"""Why no image, or no camera_info, arrives: what the ROS graph has instead, and what would do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import takewhile

from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from tiekd_ros.nodes.camera.topic import CameraTopic
from tiekd_ros.nodes.common.qos import type_name

COMPRESSED = "/compressed"
_OWN_OUTPUTS = ("depth", "depth/preview", "confidence")
_AT_MOST = 3


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
    """Say why no image may have come on a topic, with the remedy."""
    if topic.publishers:
        return (
            f"{topic.publishers[0]} publishes it: see that the camera runs; large images get lost "
            "in small network buffers"
        )
    graph = dict(node.get_topic_names_and_types())
    present, other = "raw", "compressed"
    sibling = topic.topic + COMPRESSED
    if topic.type == _kind("compressed"):
        present, other = other, present
        sibling = topic.topic.removesuffix(COMPRESSED)
    if _kind(other) in graph.get(sibling, ()) and _is_published(node, sibling):
        return f"nobody publishes it, but {sibling} is there; set image_transport to {other}"
    own = {node.resolve_topic_name(name) for name in _OWN_OUTPUTS}
    for transport in (present, other):
        found = _near(topic.topic, _published(node, graph, _kind(transport), own))
        if found:
            change = "" if transport == present else f"set image_transport to {transport} and "
            remapping = _remapping(transport, found[0])
            return f"nobody publishes it; there are {_list(found)}; {change}remap {remapping}"
    return "nobody publishes it; start the camera, or compare ROS_DOMAIN_ID and the network"


def why_no_info(node: Node, topic: CameraTopic, image_topic: str) -> str:
    """Say why no camera_info may have come on a topic, with the remedy."""
    if topic.publishers:
        return f"{topic.publishers[0]} publishes it, but sends none; see its log"
    graph = dict(node.get_topic_names_and_types())
    own = {node.resolve_topic_name("camera_info")}
    found = _published(node, graph, type_name(CameraInfo), own)
    found = _near(image_topic.removesuffix(COMPRESSED), found)  # the image's sibling first
    if found:
        return f"nobody publishes it; there are {_list(found)}; remap image_info:={found[0]}"
    return "nobody publishes it; calibrate the camera and have its driver publish the result"


def why_info_stopped(topic: CameraTopic) -> str:
    """Say why camera_info may have stopped on a topic, with the remedy."""
    if topic.publishers:
        return f"{topic.publishers[0]} publishes it, but sends none any more; see its log"
    return "nobody publishes it any more; restart the camera's driver"


def _remapping(transport: str, topic: str) -> str:
    if transport == "raw":
        return f"image:={topic}"
    if topic.endswith(COMPRESSED):
        return f"image:={topic.removesuffix(COMPRESSED)}"
    return f"image{COMPRESSED}:={topic}"


def _kind(transport: str) -> str:
    return type_name(Image if transport == "raw" else CompressedImage)


def _published(
    node: Node, graph: Mapping[str, Iterable[str]], kind: str, own: set[str]
) -> list[str]:
    names = [name for name, kinds in sorted(graph.items()) if kind in kinds and name not in own]
    return [name for name in names if _is_published(node, name)]


def _near(topic: str, names: list[str]) -> list[str]:
    """Return the names, those first that share most of their namespace with a topic."""

    def shared(name: str) -> int:
        pairs = zip(topic.split("/"), name.split("/"), strict=False)
        return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))

    return sorted(names, key=shared, reverse=True)


def _is_published(node: Node, topic: str) -> bool:
    return bool(node.count_publishers(topic))


def _list(names: list[str]) -> str:
    more = len(names) - _AT_MOST
    return ", ".join(names[:_AT_MOST]) + (f" and {more} more" if more > 0 else "")
