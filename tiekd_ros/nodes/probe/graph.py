"""ROS's graph as it is known by now, what is known to be missing from it, and one topic's messages.

Fast DDS announces a program five times within half a second and then every 3 s: on a busy machine
one program is known at once and another seconds later. So that a graph has not changed for a while
says little; that all programs of this machine are in it, and all their nodes by name, says more.

The programs of this machine are known at once and without ROS, by the UDP ports that they hold.
Ports by the DDS specification (DDSI-RTPS 2.5, 9.6.2): each domain has a range of them, whose first
is shared by all participants that look beyond this machine, and of which each participant holds a
pair. With its transports LARGE_DATA, Fast DDS holds only one of the two: the pair where it is kept
to this machine, else the shared one.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.serialization import deserialize_message
from rclpy.utilities import get_rmw_implementation_identifier

from tiekd_ros.core.camera import CameraModel
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.diagnosis import keys
from tiekd_ros.diagnosis.facts import CAMERA_INFO, COMPRESSED_IMAGE, IMAGE, NodeReport, TopicFacts
from tiekd_ros.nodes.common import conversions, qos

# The programs of this machine.

_TABLES = (Path("/proc/net/udp"), Path("/proc/net/udp6"))
_OWN = Path("/proc/self/fd")
_PORT, _INODE = 1, 9
_BASE, _DOMAIN_GAIN, _FIRST_UNICAST, _PAIR = 7400, 250, 10, 2
_LAST_DOMAIN = 101
"""Above it lie the ports that the system lends to any program."""


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
    """Return whether ROS discovers no programs of other machines."""
    local = _range(environment) == "LOCALHOST" or environment.get("ROS_LOCALHOST_ONLY") == "1"
    away = ("ROS_STATIC_PEERS", "ROS_DISCOVERY_SERVER")
    return local and not any(environment.get(name) for name in away)


def is_off(environment: Mapping[str, str]) -> bool:
    """Return whether ROS discovers no programs at all."""
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


# Nodes and topics.

_QUIET_S = 1.0
"""So long a graph in which nothing is missing has to stay as it is."""
_QUIET_WITHOUT_S = 1.5
"""The same where a node that is expected is not in it."""
_OTHER_MACHINES_S = 4.0
"""Another machine's programs announce themselves every 3 s."""
_NAMELESS = "_NODE_NAME_UNKNOWN_"
_DISCOVERY = "ros_discovery_info"
"""Every program with ROS publishes it, and tells in it whose its topics are."""
_INPUTS = {
    "image": ((IMAGE, COMPRESSED_IMAGE), keys.IMAGE_TOPIC),
    "camera_info": ((CAMERA_INFO,), keys.CAMERA_INFO_TOPIC),
}
"""Types, and the diagnostics value that names the topic."""


class Graph:
    """The nodes and topics that are discovered by now."""

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
            expected: full name of a node without which to wait longer.
        """
        nodes = self.nodes()
        seen = (nodes, self._node.get_topic_names_and_types())
        now = time.monotonic()
        if seen != self._seen:
            self._seen, self._since = seen, now
        undiscovered = self.undiscovered()
        if undiscovered:
            return f"{undiscovered} more of this machine's programs with ROS"
        if self.has_nameless("/rosout"):
            return "the names of nodes"
        if expected in nodes or not expected:
            return "" if now - self._since >= _QUIET_S else "the graph to settle"
        quiet = now - self._since >= _QUIET_WITHOUT_S
        return "" if quiet and self.includes_other_machines() else expected

    def includes_other_machines(self) -> bool:
        """Return whether other machines' programs, where they count, had time to be discovered."""
        return self._alone or time.monotonic() - self._begin >= _OTHER_MACHINES_S

    def undiscovered(self) -> int:
        """Return how many programs of this machine are in this domain, and not in the graph."""
        if not self._counts:
            return 0
        known = self._node.get_publishers_info_by_topic(_DISCOVERY, no_mangle=True)
        others = len(known) - 1
        return max(0, programs_by_domain().get(self._domain, 0) - others)

    def other_domains(self) -> dict[int, int]:
        """Return how many programs this machine has in other domains."""
        return {n: count for n, count in programs_by_domain().items() if n != self._domain}

    def has_nameless(self, topic: str) -> bool:
        """Return whether the node of a publisher or subscriber of a topic is not known yet."""
        endpoints = [
            *self._node.get_publishers_info_by_topic(topic),
            *self._node.get_subscriptions_info_by_topic(topic),
        ]
        return any(each.node_name == _NAMELESS for each in endpoints)

    def nodes(self) -> list[str]:
        """Return the full names of all nodes but this one."""
        own = (self._node.get_name(), self._node.get_namespace())
        found = self._node.get_node_names_and_namespaces()
        return sorted(
            f"{space.rstrip('/')}/{name}" for name, space in found if (name, space) != own
        )

    def reporting_nodes(self, namespace: str) -> set[str]:
        """Return the full names of the nodes there that publish diagnostics."""
        found = self._node.get_publishers_info_by_topic("/diagnostics")
        return {qos.node_name(each) for each in found if each.node_namespace == namespace}

    def inputs_of(self, full_name: str, reports: ReportListener) -> dict[str, tuple[str, ...]]:
        """Return the camera's topics that a node subscribes to, by role.

        A subscription is discovered before its node is known; until then, the node's own report
        names them.
        """
        found = topics_of(self._node.get_subscriber_names_and_types_by_node, full_name)
        values = reports.values_of(full_name)
        return {
            role: tuple(sorted(topic for topic, types in found if set(types) & set(kinds)))
            or tuple(filter(None, [values.get(key)]))
            for role, (kinds, key) in _INPUTS.items()
        }

    def image_outputs_of(self, full_name: str) -> tuple[str, ...]:
        """Return the topics on which a node publishes images."""
        found = topics_of(self._node.get_publisher_names_and_types_by_node, full_name)
        return tuple(sorted(topic for topic, types in found if IMAGE in types))


def topics_of(
    ask: Callable[[str, str], list[tuple[str, list[str]]]], full_name: str
) -> list[tuple[str, list[str]]]:
    """Return the topics and types that `ask` of rclpy knows of a node; none if it is not there."""
    space, _, name = full_name.rpartition("/")
    try:
        return ask(name, space or "/") if name else []
    except RuntimeError:  # rclpy's NodeNameNonExistentError: it is not there, or has gone
        return []


class ReportListener:
    """Remembers the last report of each node on /diagnostics."""

    _KEPT = 10

    def __init__(self, node: Node) -> None:
        self.last: dict[str, NodeReport] = {}
        """By the node's full name."""
        node.create_subscription(DiagnosticArray, "/diagnostics", self._take, self._KEPT)

    def values_of(self, name: str) -> Mapping[str, str]:
        """Return the values of a node's last report; empty where there is none."""
        return self.last[name].values if name in self.last else {}

    def has_error(self, name: str) -> bool:
        """Return whether a node's last report is of level ERROR or worse than that."""
        return name in self.last and self.last[name].level == _ERROR

    def of_kind(self, kind: str) -> list[str]:
        """Return the full names of the nodes that report to be of this kind."""
        return sorted(n for n, last in self.last.items() if last.values.get(keys.KIND) == kind)

    def _take(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self.last[status.name] = NodeReport(
                int.from_bytes(status.level, "little"),
                status.message,
                {each.key: each.value for each in status.values},
            )


_ERROR = 2

# The messages of one topic.

_OPTIONAL = ("clock",)
"""Topics that need not be there; for a publisher of the others it is worth to wait."""


class TopicListener:
    """Counts a topic's messages, as bytes; only the last one is read, at the end.

    It requests what all publishers offer, so that what it misses every subscriber misses.

    Args:
        node: to subscribe with.
        role: the topic's meaning: image, camera_info, depth or clock.
        name: the topic's full name.
    """

    def __init__(self, node: Node, role: str, name: str) -> None:
        self.name, self._role, self._node = name, role, node
        self._times: list[float] = []
        self._last = b""
        self._last_s = 0.0  # by the system's clock
        self._type = ""
        self._class: Any = None
        self.step()

    def step(self) -> None:
        """Subscribe once there is a publisher."""
        publishers = [] if self._type else qos.publishers_of(self._node, self.name)
        if not publishers:
            return
        self._type = publishers[0].type
        self._class = _message_class(self._type)
        if self._class is not None:
            same = [each for each in publishers if each.type == self._type]
            profile = qos.profile(qos.highest_offered(same)[0], depth=10)
            self._node.create_subscription(self._class, self.name, self._take, profile, raw=True)

    @property
    def has_publisher(self) -> bool:
        """Whether the topic has a publisher, or had one."""
        return bool(self._type)

    @property
    def is_settled(self) -> bool:
        """Whether a message came, or none can be expected to."""
        if not self._type:
            return self._role in _OPTIONAL
        return self._class is None or bool(self._times)

    @property
    def has_messages(self) -> bool:
        """Whether a message came."""
        return bool(self._times)

    def facts(self) -> TopicFacts:
        """Return the endpoints and what came."""
        count = len(self._times)
        span = self._times[-1] - self._times[0] if count > 1 else 0.0
        own = self._node.get_name()
        return TopicFacts(
            name=self.name,
            type=self._type,
            count=count,
            rate_hz=(count - 1) / span if span > 0 else None,
            bytes=len(self._last),
            last=self._read() if self._last else None,
            publishers=tuple(qos.publishers_of(self._node, self.name)),
            subscribers=tuple(
                qos.endpoint_of(info)
                for info in self._node.get_subscriptions_info_by_topic(self.name)
                if info.node_name != own
            ),
        )

    def _take(self, data: bytes) -> None:
        self._times.append(time.monotonic())
        self._last, self._last_s = data, time.time()

    def _read(self) -> dict[str, Any] | None:
        read = _READERS.get((self._role, self._type))
        if read is None:
            return None
        message = deserialize_message(self._last, self._class)
        stamp = conversions.stamp_ns(message.header)
        values = {"frame_id": message.header.frame_id, "stamped": stamp != 0, **read(message)}
        return {**values, "age_s": self._last_s - stamp * 1e-9}


def _message_class(name: str) -> Any:
    """Return the class of a type such as sensor_msgs/msg/Image; None where it is not installed."""
    package, _, kind = name.replace("/msg/", "/").partition("/")
    if not package or not kind:
        return None
    try:
        return getattr(importlib.import_module(f"{package}.msg"), kind)
    except (ImportError, AttributeError, ValueError):
        return None


def _read_image(message: Any) -> dict[str, Any]:
    try:
        height, width = conversions.image_to_rgb(message, copy=False).shape[:2]
        fault = ""
    except TiekdError as error:
        height, width = getattr(message, "height", 0), getattr(message, "width", 0)
        fault = str(error)
    encoding = message.encoding if hasattr(message, "encoding") else message.format
    return {"width": width, "height": height, "encoding": encoding, "fault": fault}


def _read_info(message: Any) -> dict[str, Any]:
    values = dataclasses.asdict(CameraModel.from_message(message))
    for name in ("d", "k", "r", "p"):  # JSON has no NaN
        values[name] = [float(v) if math.isfinite(v) else None for v in values[name]]
    return values


def _read_depth(message: Any) -> dict[str, Any]:
    try:
        depth = conversions.image_to_depth(message)
    except TiekdError as error:
        return {"fault": str(error)}
    valid = depth[np.isfinite(depth) & (depth > 0)]
    return {
        "width": message.width,
        "height": message.height,
        "encoding": message.encoding,
        "fault": "",
        "valid_share": valid.size / max(depth.size, 1),
        "median_m": float(np.median(valid)) if valid.size else None,
    }


_READERS = {
    ("image", IMAGE): _read_image,
    ("image", COMPRESSED_IMAGE): _read_image,
    ("camera_info", CAMERA_INFO): _read_info,
    ("depth", IMAGE): _read_depth,
}
