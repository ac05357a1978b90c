"""One topic as it is: who is at its ends, how often something comes, and what came last."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message

from tiekd_ros.core.encodings import used_rows
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.nodes.common import conversions

_RELIABILITY = {
    ReliabilityPolicy.RELIABLE: "reliable",
    ReliabilityPolicy.BEST_EFFORT: "best_effort",
}
_DURABILITY = {
    DurabilityPolicy.VOLATILE: "volatile",
    DurabilityPolicy.TRANSIENT_LOCAL: "transient_local",
}
_OPTIONAL = ("clock",)
"""Topics that need not be there; for a publisher of the others it is worth to wait."""
_DIAGNOSTICS_KEPT = 10


class TopicListener:
    """Counts what comes on a topic, as bytes; only the last message is read, at the end.

    It asks for what all publishers offer, so that what is missing is missing for everybody.

    Args:
        node: to listen with.
        role: what the topic is for: image, camera_info, depth or clock.
        name: the topic's full name.
    """

    def __init__(self, node: Node, role: str, name: str) -> None:
        self.name, self._role, self._node = name, role, node
        self._times: list[float] = []
        self._last = b""
        self._last_s = 0.0  # by the system's clock
        self._type = ""
        self._kind: Any = None
        self.step()

    def step(self) -> None:
        """Subscribe once somebody publishes."""
        publishers = [] if self._type else self._node.get_publishers_info_by_topic(self.name)
        if not publishers:
            return
        self._type = publishers[0].topic_type
        self._kind = _message_class(self._type)
        if self._kind is not None:
            same = [p.qos_profile for p in publishers if p.topic_type == self._type]
            quality = _fitting(same)
            self._node.create_subscription(self._kind, self.name, self._take, quality, raw=True)

    @property
    def has_publisher(self) -> bool:
        """Whether somebody publishes it, or did."""
        return bool(self._type)

    @property
    def is_heard(self) -> bool:
        """Whether something came, or nothing can be expected to."""
        if not self._type:
            return self._role in _OPTIONAL
        return self._kind is None or bool(self._times)

    def measured(self) -> dict[str, Any]:
        """Return what came, fit for JSON: `rate_hz` is None for fewer than two messages."""
        count = len(self._times)
        span = self._times[-1] - self._times[0] if count > 1 else 0.0
        return {
            "name": self.name,
            "type": self._type,
            "count": count,
            "rate_hz": (count - 1) / span if span > 0 else None,
            "bytes": len(self._last),
            "last": self._read() if self._last else None,
        }

    def _take(self, data: bytes) -> None:
        self._times.append(time.monotonic())
        self._last, self._last_s = data, time.time()

    def _read(self) -> dict[str, Any] | None:
        read = _READERS.get((self._role, self._type))
        if read is None:
            return None
        message = deserialize_message(self._last, self._kind)
        stamp = conversions.stamp_ns(message.header)
        values = {"frame_id": message.header.frame_id, "stamped": stamp != 0, **read(message)}
        return {**values, "age_s": self._last_s - stamp * 1e-9}


class DiagnosticsListener:
    """Remembers the last diagnostics of each node."""

    def __init__(self, node: Node) -> None:
        self._last: dict[str, dict[str, Any]] = {}
        node.create_subscription(DiagnosticArray, "/diagnostics", self._take, _DIAGNOSTICS_KEPT)

    def of(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return the last diagnostics of these nodes, of those that sent any."""
        return {name: self._last[name] for name in names if name in self._last}

    @property
    def names(self) -> set[str]:
        """Whose diagnostics came."""
        return set(self._last)

    def of_kind(self, kind: str) -> list[str]:
        """Return the full names of the nodes that say that they are of this kind."""
        found = self._last.items()
        return sorted(name for name, last in found if last["values"].get("kind") == kind)

    def _take(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self._last[status.name] = {
                "level": int.from_bytes(status.level, "little"),
                "message": status.message,
                "values": {each.key: each.value for each in status.values},
            }


def endpoints(node: Node, topic: str) -> dict[str, list[dict[str, str]]]:
    """Return who publishes a topic and who subscribes to it (but this node), fit for JSON."""
    own = node.get_name()
    return {
        "publishers": [_endpoint(i) for i in node.get_publishers_info_by_topic(topic)],
        "subscribers": [
            _endpoint(i) for i in node.get_subscriptions_info_by_topic(topic) if i.node_name != own
        ],
    }


def _endpoint(info: Any) -> dict[str, str]:
    offer = info.qos_profile
    return {
        "node": f"{info.node_namespace.rstrip('/')}/{info.node_name}",
        "type": info.topic_type,
        "reliability": _RELIABILITY.get(offer.reliability, "unknown"),
        "durability": _DURABILITY.get(offer.durability, "unknown"),
    }


def _fitting(offers: Iterable[QoSProfile]) -> QoSProfile:
    reliable = {offer.reliability for offer in offers} == {ReliabilityPolicy.RELIABLE}
    return QoSProfile(
        depth=10,
        history=HistoryPolicy.KEEP_LAST,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
    )


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
    roi = message.roi
    return {
        "width": message.width,
        "height": message.height,
        "distortion_model": message.distortion_model,
        **{name: [_plain(v) for v in getattr(message, name)] for name in ("d", "k", "p")},
        "binning": [message.binning_x, message.binning_y],
        "roi": [roi.x_offset, roi.y_offset, roi.width, roi.height],
    }


def _read_depth(message: Any) -> dict[str, Any]:
    try:
        depth = _depth_of(message)
    except TiekdError as error:
        return {"fault": str(error)}
    known = depth[np.isfinite(depth) & (depth > 0)]
    return {
        "width": message.width,
        "height": message.height,
        "encoding": message.encoding,
        "fault": "",
        "known_share": known.size / max(depth.size, 1),
        "median_m": float(np.median(known)) if known.size else None,
    }


def _depth_of(message: Any) -> npt.NDArray[np.float32]:
    """Return metres; millimetres of 0 are no distance."""
    if message.encoding != "16UC1":
        return conversions.image_to_float(message)
    size = (message.encoding, message.width, message.height, message.step, message.data)
    rows = np.ascontiguousarray(used_rows(*size, bytes_per_pixel=2))
    return rows.view(">u2" if message.is_bigendian else "<u2").astype(np.float32) * 1e-3


def _plain(value: float) -> float | None:
    """JSON knows no NaN."""
    return float(value) if math.isfinite(value) else None


_READERS = {
    ("image", "sensor_msgs/msg/Image"): _read_image,
    ("image", "sensor_msgs/msg/CompressedImage"): _read_image,
    ("camera_info", "sensor_msgs/msg/CameraInfo"): _read_info,
    ("depth", "sensor_msgs/msg/Image"): _read_depth,
}
