"""A snapshot of the running nodes as pictures in a folder."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.exceptions import NameValidationException
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.images import RgbImage, encode_depth_png, encode_png
from tiekd_ros.diagnosis import keys
from tiekd_ros.diagnosis.facts import CAMERA_INFO, COMPRESSED_IMAGE, IMAGE, NodeReport
from tiekd_ros.nodes.common import qos
from tiekd_ros.nodes.common.conversions import image_to_depth, image_to_rgb, stamp_ns
from tiekd_ros.nodes.common.qos import publishers_of
from tiekd_ros.nodes.depth.points import read_cloud
from tiekd_ros.nodes.depth.preview import read_range, with_scale
from tiekd_ros.nodes.probe.graph import ReportListener, topics_of
from tiekd_ros.nodes.probe.observer import BackgroundNode
from tiekd_ros.report.pictures import draw_points

PARTS = ("image", "depth", "camera_info", "preview", "points")
_KINDS = {
    IMAGE: Image,
    COMPRESSED_IMAGE: CompressedImage,
    CAMERA_INFO: CameraInfo,
    qos.type_name(PointCloud2): PointCloud2,
}
_OUTPUTS = {
    "depth": ("depth", Image),
    "camera_info": ("camera_info", CameraInfo),
    "preview": ("depth/preview", Image),
    "points": ("points", PointCloud2),
}
_KEPT = 12  # messages of each part, of which one stamp is in all
_GRACE_S = 5.0
"""How long to wait for the other parts once there is depth: what has not come by then will not."""
_REPORT_S = 15.0
"""How long to wait for the depth node's report afterwards: once a second, and on a busy machine
some seconds late."""
_POLL_S = 0.05


@dataclass(frozen=True)
class Snapshot:
    """Messages of one stamp, and the depth node's report."""

    messages: Mapping[str, Any]
    """By part; what is missing is in `missing`."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Why, by part, and for `diagnostics`."""
    diagnostics: Mapping[str, str] = field(default_factory=dict)
    topics: Mapping[str, str] = field(default_factory=dict)


class SnapshotTaker(BackgroundNode):
    """Subscribes to the depth node's topics, and to its camera's image, until all have one stamp.

    Args:
        namespace: of the nodes.
        image_topic: the camera's; empty = what the depth node listens to.

    Raises:
        TiekdError: one of them is no valid name.
    """

    def __init__(self, namespace: str, image_topic: str = "") -> None:
        try:
            super().__init__("tiekd_snapshot", namespace)
            self._topics = self._names(image_topic)
        except (NameValidationException, RuntimeError) as error:  # RCLError is a RuntimeError
            raise TiekdError(f"no name for ROS: {' '.join(str(error).split())}") from error
        self._subscribed: set[str] = set()
        self._messages: dict[str, OrderedDict[int, Any]] = {p: OrderedDict() for p in PARTS}
        self._counts = dict.fromkeys(PARTS, 0)
        self._reports = ReportListener(self._node)
        self._lock = threading.Lock()  # guards the messages and their counts

    def _names(self, image_topic: str) -> dict[str, str]:
        """Return the full names of the topics, by part."""
        resolve = self._node.resolve_topic_name
        try:
            names = {part: resolve(topic) for part, (topic, _) in _OUTPUTS.items()}
            if image_topic:
                names["image"] = resolve(f"/{image_topic.lstrip('/')}")
        except Exception:
            self.close()
            raise
        return names

    def take(self, timeout_s: float, progress: Callable[[Mapping[str, int]], None]) -> Snapshot:
        """Wait until every part has a message of one stamp, or no longer is likely to.

        Args:
            timeout_s: how long at most.
            progress: called now and then with how many messages of each part came.

        Raises:
            TiekdError: no depth came; says why, as far as the ROS graph and the node's
                diagnostics tell.
        """
        start = time.monotonic()
        first_depth: float | None = None
        while (now := time.monotonic()) - start < timeout_s:
            self._subscribe()
            with self._lock:
                counts, whole = dict(self._counts), self._newest()
            progress(counts)
            if whole is not None:
                break
            if counts["depth"]:
                first_depth = first_depth or now
                if now - first_depth > _GRACE_S:
                    break
            time.sleep(_POLL_S)
        self._await_report()
        return self._result(timeout_s)

    def _await_report(self) -> None:
        """Wait for a report that the depth node makes after the images."""
        self._reports.last.clear()
        end = time.monotonic() + _REPORT_S
        while self._depth_node() and not self._is_reported() and time.monotonic() < end:
            time.sleep(_POLL_S)

    def _is_reported(self) -> bool:
        """Return whether a report has come, with the preview's range if there was a preview."""
        report = self._report()
        if report is None:
            return False
        shows = report.values.get(keys.PREVIEW_SHOWS, "")
        return not self._counts["preview"] or read_range(shows) is not None

    def _result(self, timeout_s: float) -> Snapshot:
        report = self._report()
        with self._lock:
            newest = self._newest()
            stamp = self._fullest() if newest is None else newest
            found = {
                part: kept[stamp]
                for part, kept in self._messages.items()
                if stamp is not None and stamp in kept
            }
        if "depth" not in found:
            raise TiekdError(f"no depth within {timeout_s:g} s: {self._why_no_depth()}")
        missing = {part: self._why_missing(part) for part in PARTS if part not in found}
        if report is None:
            missing["diagnostics"] = (
                f"nothing came from {self._depth_node() or 'the depth node'} on /diagnostics "
                f"within {_REPORT_S:g} s, so the student and the preview's range are not known; "
                "see its log, or try again"
            )
        return Snapshot(
            found,
            missing,
            {} if report is None else report.values,
            {part: topic for part, topic in self._topics.items() if part in found},
        )

    # Messages of one stamp.

    def _newest(self) -> int | None:
        """Return the newest stamp that all parts have; to be called with the lock held."""
        common = set.intersection(*(set(self._messages[part]) for part in PARTS))
        return max(common, default=None)

    def _fullest(self) -> int | None:
        """Return the stamp of depth that most parts have, the newest of several; likewise."""
        stamps = self._messages["depth"]
        shared = {s: sum(s in m for m in self._messages.values()) for s in stamps}
        return max(stamps, key=lambda s: (shared[s], s), default=None)

    # Subscriptions, made as publishers are discovered.

    def _subscribe(self) -> None:
        if "image" not in self._topics and (topic := self._camera_topic()):
            self._topics["image"] = topic
        for part, topic in self._topics.items():
            publishers = publishers_of(self._node, topic)
            kind = _KINDS.get(publishers[0].type) if publishers else None
            if part in self._subscribed or kind is None:
                continue
            if part != "image" and kind is not _OUTPUTS[part][1]:
                continue
            self._subscribed.add(part)
            # Reliable loses no large message, but gets nothing from a best-effort publisher.
            profile = qos.profile(qos.highest_offered(publishers)[0], depth=_KEPT)
            self._node.create_subscription(kind, topic, partial(self._keep, part), profile)

    def _keep(self, part: str, message: Any) -> None:
        with self._lock:
            kept = self._messages[part]
            kept[stamp_ns(message.header)] = message
            self._counts[part] += 1
            while len(kept) > _KEPT:
                kept.popitem(last=False)

    def _depth_node(self) -> str:
        """Return the full name of the node that publishes depth; empty where there is none."""
        return next((p.node for p in publishers_of(self._node, self._topics["depth"])), "")

    def _camera_topic(self) -> str:
        """Return the topic of images that the depth node subscribes to; empty if not known yet."""
        topics = topics_of(self._node.get_subscriber_names_and_types_by_node, self._depth_node())
        return next((name for name, kinds in topics if {IMAGE, COMPRESSED_IMAGE} & {*kinds}), "")

    # Reasons for what is missing.

    def _why_no_depth(self) -> str:
        topic, node = self._topics["depth"], self._depth_node()
        if not node:
            graph = self._node.get_topic_names_and_types()
            images = [name for name, kinds in graph if IMAGE in kinds]
            others = [name for name in images if name.endswith("/depth")]
            hint = f"; there is {others[0]}: --namespace {others[0][:-6]}" if others else ""
            return (
                f"no node publishes {topic}; start the nodes (ros2 launch tiekd_ros "
                f"depth.launch.py, or tiekd up), or compare ROS_DOMAIN_ID{hint}"
            )
        report = self._report()
        if report is None:
            return f"{node} publishes {topic} and reports nothing on /diagnostics; see its log"
        return f"{node} reports: {report.message}"

    def _why_missing(self, part: str) -> str:
        topic = self._topics.get(part)
        if topic is None:
            return "the depth node's image topic is not known; give --image-topic"
        if part not in self._subscribed:
            return f"no node publishes {topic}"
        if self._counts[part]:
            return f"{self._counts[part]} messages on {topic}, none with the stamp of a depth image"
        report = self._report()
        reported = "" if report is None else f"; the depth node reports: {report.message}"
        return f"nothing came on {topic}{reported}"

    def _report(self) -> NodeReport | None:
        return self._reports.last.get(self._depth_node())


_MM_PER_M = 1000.0


def write_snapshot(snapshot: Snapshot, folder: Path) -> list[Path]:
    """Write `image.png`, `depth_mm.png`, `preview.png`, `points.png` and `snapshot.json`.

    `depth_mm.png` has 16 bits: millimetres, 0 = no depth below 65.535 m. `points.png` shows the
    cloud from beside the camera and from above; `preview.png` has the depths of its colours below.
    What is missing in the snapshot is not written.

    Returns:
        The files.

    Raises:
        TiekdError: the folder cannot be written to.
        BadImageError: a message cannot be read.
    """
    files = {
        f"{name}.png": write(snapshot)
        for part, (name, write) in _PICTURES.items()
        if part in snapshot.messages
    }
    files["snapshot.json"] = (json.dumps(_facts(snapshot), indent=1) + "\n").encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
    except OSError as error:
        raise TiekdError(f"cannot write to {folder}: {error.strerror or error}") from error
    return [folder / name for name in files]


def _depth(snapshot: Snapshot) -> bytes:
    return encode_depth_png(image_to_depth(snapshot.messages["depth"]), _MM_PER_M)


def _preview(snapshot: Snapshot) -> bytes:
    picture = image_to_rgb(snapshot.messages["preview"])
    shown = read_range(snapshot.diagnostics.get(keys.PREVIEW_SHOWS, ""))
    return encode_png(picture if shown is None else with_scale(picture, *shown))


def _points(snapshot: Snapshot) -> bytes:
    cloud = read_cloud(snapshot.messages["points"])
    rgb: RgbImage = np.full(cloud.xyz.shape, 90, np.uint8) if cloud.rgb is None else cloud.rgb
    return encode_png(draw_points(cloud.xyz, rgb))


_PICTURES: dict[str, tuple[str, Callable[[Snapshot], bytes]]] = {
    "image": ("image", lambda s: encode_png(image_to_rgb(s.messages["image"]))),
    "depth": ("depth_mm", _depth),
    "preview": ("preview", _preview),
    "points": ("points", _points),
}


def _facts(snapshot: Snapshot) -> dict[str, object]:
    """Return values that the pictures do not have, fit for JSON."""
    message = snapshot.messages["depth"]
    depth = image_to_depth(message)
    known = depth[np.isfinite(depth)]
    facts: dict[str, object] = {
        "stamp_ns": stamp_ns(message.header),
        "frame_id": message.header.frame_id,
        "topics": dict(snapshot.topics),
        "missing": dict(snapshot.missing),
        "size": [message.width, message.height],
        "encoding": message.encoding,
        "share_with_depth": round(known.size / max(depth.size, 1), 4),
        "depth_m": {
            name: round(float(np.percentile(known, percent)), 3) if known.size else None
            for name, percent in (("p1", 1), ("median", 50), ("p99", 99))
        },
        "student": snapshot.diagnostics.get(keys.STUDENT),
        "preview_shows": snapshot.diagnostics.get(keys.PREVIEW_SHOWS),
    }
    if "camera_info" in snapshot.messages:
        facts["k"] = [float(v) for v in snapshot.messages["camera_info"].k]
    return facts
