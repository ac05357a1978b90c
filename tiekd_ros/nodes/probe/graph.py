"""ROS's graph as it is known by now, and what is known to be missing from it.

Fast DDS announces a program five times within half a second and then every 3 s: on a busy machine
one program is known at once and another seconds later. So that a graph has not changed for a while
says little; that all programs of this machine are in it, and all their nodes by name, says more.

It is known at once and without ROS, so it tells a program that the graph does not show yet from
one that is not there. Ports by the DDS specification (DDSI-RTPS 2.5, 9.6.2): each domain has a
range of them, whose first is shared by all participants that look beyond this machine, and of
which each participant holds a pair. With its transports LARGE_DATA, Fast DDS holds only one of the
two: the pair where it is kept to this machine, else the shared one.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rclpy.node import Node
from rclpy.utilities import get_rmw_implementation_identifier

from tiekd_ros.nodes.probe.topics import DiagnosticsListener

_TABLES = (Path("/proc/net/udp"), Path("/proc/net/udp6"))
_OWN = Path("/proc/self/fd")
_PORT, _INODE = 1, 9
_BASE, _DOMAIN_GAIN, _FIRST_UNICAST, _PAIR = 7400, 250, 10, 2
_LAST_DOMAIN = 101
"""Above it lie the ports that the system lends to anybody."""


def programs_by_domain(tables: Iterable[Path] = _TABLES) -> dict[int, int]:
    """Return how many DDS participants this machine has in each domain, at least, but our own.

    Nothing where the system does not tell. A container sees those of its own network only.
    """
    own = _own_sockets()
    ports = [port for table in tables for port, inode in _sockets(table) if inode not in own]
    shared, pairs = Counter[int](), Counter[int]()
    for port in ports:
        domain, offset = divmod(port - _BASE, _DOMAIN_GAIN)
        if not 0 <= domain <= _LAST_DOMAIN:
            continue
        if offset == 0:
            shared[domain] += 1
        # One such port alone is another program's, as VXLAN's 8472 is.
        elif offset >= _FIRST_UNICAST and offset % _PAIR == 0 and port + 1 in ports:
            pairs[domain] += 1
    return dict(shared | pairs)  # a participant may be in both


def is_kept_to_this_machine(environment: Mapping[str, str]) -> bool:
    """Return whether ROS looks for nobody on other machines."""
    local = _range(environment) == "LOCALHOST" or environment.get("ROS_LOCALHOST_ONLY") == "1"
    away = ("ROS_STATIC_PEERS", "ROS_DISCOVERY_SERVER")
    return local and not any(environment.get(name) for name in away)


def is_off(environment: Mapping[str, str]) -> bool:
    """Return whether ROS looks for nobody at all."""
    return _range(environment) == "OFF"


def _range(environment: Mapping[str, str]) -> str:
    return environment.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "").upper()


def _own_sockets() -> set[str]:
    found = set()
    for each in _OWN.iterdir() if _OWN.exists() else ():
        try:
            found.add(os.readlink(each).removeprefix("socket:[").removesuffix("]"))
        except OSError:  # closed meanwhile
            continue
    return found


def _sockets(table: Path) -> list[tuple[int, str]]:
    """Return the port and the inode of each."""
    try:
        lines = [line.split() for line in table.read_text().splitlines()[1:]]
    except OSError:
        return []
    return [(int(line[_PORT].rpartition(":")[2], 16), line[_INODE]) for line in lines]


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
