"""ROS's graph as it is known by now, and what is known to be missing from it.

Fast DDS announces a program five times within half a second and then every 3 s: on a busy machine
one program is known at once and another seconds later. So that a graph has not changed for a while
says little; that all programs of this machine are in it, and all their nodes by name, says more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.utilities import get_rmw_implementation_identifier

from tiekd_ros.nodes.probe_participants import is_kept_to_this_machine, is_off, programs_by_domain
from tiekd_ros.nodes.probe_topics import DiagnosticsListener

_QUIET_S = 1.0
"""So long a graph in which nothing is missed has to stay as it is."""
_QUIET_WITHOUT_S = 1.5
"""The same where a node that is expected is not in it."""
_FROM_AFAR_S = 4.0
"""Another machine's programs announce themselves every 3 s."""
_NAMELESS = "_NODE_NAME_UNKNOWN_"
_DISCOVERY = "ros_discovery_info"
"""Every program with ROS publishes it, and tells in it whose its topics are."""
_CAMERA = {
    "image": ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"),
    "camera_info": ("sensor_msgs/msg/CameraInfo",),
}


class Graph:
    """What ROS knows of nodes and topics.

    Args:
        node: to look with.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._domain = node.context.get_domain_id()
        self._seen: Any = None
        self._begin = self._since = time.monotonic()
        # Of other middlewares it is not known whether they count themselves.
        is_fast = "fastrtps" in get_rmw_implementation_identifier()
        self._counts = is_fast and not is_off(os.environ)
        self._alone = is_off(os.environ) or (is_fast and is_kept_to_this_machine(os.environ))

    def missing(self, expected: str = "") -> str:
        """Return what has to be waited for until the graph can be taken for whole; '' = nothing.

        Args:
            expected: full name of a node without which it is to be waited longer.
        """
        nodes = self.nodes()
        seen = (nodes, self._node.get_topic_names_and_types())
        now = time.monotonic()
        if seen != self._seen:
            self._seen, self._since = seen, now
        unheard = self.unheard()
        if unheard:
            return f"{unheard} more of this machine's programs with ROS"
        if self.has_nameless("/rosout"):
            return "the names of nodes"
        if expected in nodes or not expected:
            return "" if now - self._since >= _QUIET_S else "the graph to settle"
        quiet = now - self._since >= _QUIET_WITHOUT_S
        return "" if quiet and self.reaches_afar() else expected

    def reaches_afar(self) -> bool:
        """Return whether other machines' programs, where they count, had the time to be heard."""
        return self._alone or time.monotonic() - self._begin >= _FROM_AFAR_S

    def unheard(self) -> int:
        """Return how many programs of this machine are in this domain, and not in the graph."""
        if not self._counts:
            return 0
        known = self._node.get_publishers_info_by_topic(_DISCOVERY, no_mangle=True)
        others = len(known) - 1
        return max(0, programs_by_domain().get(self._domain, 0) - others)

    def elsewhere(self) -> dict[int, int]:
        """Return how many programs this machine has in other domains."""
        return {n: count for n, count in programs_by_domain().items() if n != self._domain}

    def has_nameless(self, topic: str) -> bool:
        """Return whether it is not known of all ends of a topic whose they are."""
        ends = [
            *self._node.get_publishers_info_by_topic(topic),
            *self._node.get_subscriptions_info_by_topic(topic),
        ]
        return any(each.node_name == _NAMELESS for each in ends)

    def nodes(self) -> list[str]:
        """Return the full names of all nodes but this one."""
        own = (self._node.get_name(), self._node.get_namespace())
        found = self._node.get_node_names_and_namespaces()
        return sorted(
            f"{space.rstrip('/')}/{name}" for name, space in found if (name, space) != own
        )

    def published(self) -> list[dict[str, Any]]:
        """Return the topics that somebody publishes."""
        return [
            {"name": name, "types": list(kinds)}
            for name, kinds in sorted(self._node.get_topic_names_and_types())
            if self._node.count_publishers(name)
        ]

    def speakers_in(self, namespace: str) -> set[str]:
        """Return the full names of the nodes there that publish diagnostics."""
        found = self._node.get_publishers_info_by_topic("/diagnostics")
        return {
            f"{each.node_namespace.rstrip('/')}/{each.node_name}"
            for each in found
            if each.node_namespace == namespace
        }

    def heard_by(self, full_name: str, diagnostics: DiagnosticsListener) -> dict[str, list[str]]:
        """Return the topics of the camera that a node subscribes to.

        Which node a subscription belongs to is told apart from the subscription; until then, the
        node's own diagnostics say it.
        """
        found = _of_node(self._node.get_subscriber_names_and_types_by_node, full_name)
        told = diagnostics.of([full_name]).get(full_name, {}).get("values", {})
        return {
            role: sorted(topic for topic, types in found if set(types) & set(kinds))
            or [topic for topic in (told.get(f"{role} topic"),) if topic]
            for role, kinds in _CAMERA.items()
        }

    def images_by(self, full_name: str) -> list[str]:
        """Return the topics on which a node publishes images."""
        found = _of_node(self._node.get_publisher_names_and_types_by_node, full_name)
        return sorted(topic for topic, types in found if "sensor_msgs/msg/Image" in types)


def _of_node(
    ask: Callable[[str, str], list[tuple[str, list[str]]]], full_name: str
) -> list[tuple[str, list[str]]]:
    space, _, name = full_name.rpartition("/")
    try:
        return ask(name, space or "/")
    except RuntimeError:  # rclpy's NodeNameNonExistentError: it is not there, or has gone
        return []
