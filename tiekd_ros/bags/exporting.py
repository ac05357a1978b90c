"""From logged frames to a rosbag2."""

from __future__ import annotations

import re
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer, WriterError

from tiekd_ros import __version__
from tiekd_ros.bags import CDR, BagError
from tiekd_ros.bags.bag import typestore
from tiekd_ros.bags.images import CAMERA_INFO, COMPRESSED, IMAGE
from tiekd_ros.core.camera import CameraModel
from tiekd_ros.core.errors import BadDepthError, BadImageError, InvalidSettingError
from tiekd_ros.core.images import decode_depth_png, decode_image
from tiekd_ros.framelog.rows import StoredFrame, StoredFrames

FORMATS = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}

# The newest whose metadata.yaml Humble's `ros2 bag` reads too (9 writes QoS profiles as lists).
_VERSION: Final = 8
_WORD = r"[A-Za-z_](?!\w*__)\w*"  # two _ in a row are no part of a ROS name
_NAMESPACE = re.compile(rf"/?({_WORD}(/{_WORD})*/?)?", re.ASCII)
_NS_PER_S = 1_000_000_000
_STAMPS_NS = range(2**31 * _NS_PER_S)


@dataclass(frozen=True)
class ExportOptions:
    """Format and topics of an exported bag."""

    format: str = "mcap"
    """'mcap' or 'sqlite3'."""
    compressed: bool = False
    """Write the stored JPEGs instead of raw images."""
    namespace: str = "/camera"
    """Namespace of the topics; '/' = the root."""

    def __post_init__(self) -> None:
        """Refuse a namespace that ROS would refuse as part of a topic's name."""
        if not _NAMESPACE.fullmatch(self.namespace):
            raise InvalidSettingError(
                f"--namespace: {self.namespace!r} is no ROS namespace: words of letters, digits "
                "and _ that do not begin with a digit, with single / between them (/robot1/camera)"
            )


@dataclass
class ExportReport:
    """Result of an export."""

    bag: str
    messages: dict[str, int] = field(default_factory=dict)
    """By topic."""
    unreadable: int = 0
    """Frames that are damaged in the log, and were left out."""
    teachers: list[str] = field(default_factory=list)
    """Names of the teachers of the depth."""


def export_bag(
    frames: StoredFrames, output: Path, options: ExportOptions, advance: Callable[[], None]
) -> ExportReport:
    """Write frames as a rosbag2: `image_raw`, `camera_info`, and below `teacher/` the depth.

    The depth is 32FC1 in metres, NaN = unknown, at its own size, and has a `camera_info` of its
    own. Stamps are the frames'; a message's recording time is its stamp. The bag is there whole
    or not at all.

    Raises:
        BagError: `output` exists, cannot be written, or there is nothing to write.
    """
    output = output.expanduser().absolute()
    if output.exists():
        raise BagError(f"{output} exists already; give another name, or remove it first")
    if not len(frames):
        raise BagError(
            "there is no frame to export: the log is empty, or has none that were asked for"
        )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    except OSError as error:
        raise BagError(f"cannot write {output}: {error.strerror}") from error
    try:
        unfinished = scratch / output.name
        with Writer(unfinished, version=_VERSION, storage_plugin=FORMATS[options.format]) as writer:
            report = _Export(writer, options, ExportReport(str(output))).run(frames, advance)
        unfinished.rename(output)
    except (OSError, sqlite3.Error, WriterError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BagError(f"cannot write {output}: {reason}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return report


class _Export:
    """Writes frames to an open bag."""

    def __init__(self, writer: Writer, options: ExportOptions, report: ExportReport) -> None:
        self._writer = writer
        self._options = options
        self._report = report
        self._types = typestore(CDR)
        self._connections: dict[str, Connection] = {}
        self._counts: Counter[str] = Counter()

    def run(self, frames: StoredFrames, advance: Callable[[], None]) -> ExportReport:
        """Write all frames, and what made the bag."""
        teachers: set[str] = set()
        for frame in frames:
            try:
                self._frame(frame)
                teachers |= {frame.teacher} - {""}
            except (BadImageError, BadDepthError):
                self._report.unreadable += 1
            advance()
        self._report.messages = dict(self._counts)
        self._report.teachers = sorted(teachers)
        self._writer.set_custom_data("written_by", f"tiekd_ros {__version__}")
        if teachers:
            self._writer.set_custom_data("teacher", ", ".join(self._report.teachers))
        return self._report

    def _frame(self, frame: StoredFrame) -> None:
        if frame.stamp_ns not in _STAMPS_NS:
            raise BadImageError(f"stamp {frame.stamp_ns} ns does not fit into a ROS time")
        # Decoded before anything is written: a damaged frame leaves nothing in the bag.
        pixels = decode_image(frame.jpeg)
        depth = decode_depth_png(frame.depth_png) if frame.depth_png is not None else None
        header = self._header(frame)
        if self._options.compressed:
            fields = {"format": "jpeg", "data": np.frombuffer(frame.jpeg, np.uint8)}
            self._write("image_raw/compressed", COMPRESSED, frame, header=header, **fields)
        else:
            self._image("image_raw", frame, header, pixels, "rgb8")
        self._info("camera_info", frame, header, frame.width, frame.height)
        if depth is not None:
            self._image("teacher/depth", frame, header, depth, "32FC1")
            self._info("teacher/camera_info", frame, header, depth.shape[1], depth.shape[0])

    def _header(self, frame: StoredFrame) -> Any:
        sec, nanosec = divmod(frame.stamp_ns, _NS_PER_S)
        stamp = self._types.types["builtin_interfaces/msg/Time"](sec=sec, nanosec=nanosec)
        return self._types.types["std_msgs/msg/Header"](stamp=stamp, frame_id=frame.frame_id)

    def _image(
        self, name: str, frame: StoredFrame, header: Any, pixels: npt.NDArray[Any], encoding: str
    ) -> None:
        pixels = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("<"), copy=False))
        self._write(
            name,
            IMAGE,
            frame,
            header=header,
            height=pixels.shape[0],
            width=pixels.shape[1],
            encoding=encoding,
            is_bigendian=0,
            step=pixels.strides[0],
            data=pixels.reshape(-1).view(np.uint8),
        )

    def _info(self, name: str, frame: StoredFrame, header: Any, width: int, height: int) -> None:
        """Write the calibration of the view at this size, where it is known."""
        if frame.intrinsics is None:
            return
        scaled = frame.intrinsics.scaled(width / frame.width, height / frame.height)
        model = CameraModel.pinhole(scaled, width, height)
        region = self._types.types["sensor_msgs/msg/RegionOfInterest"](
            x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
        )
        self._write(
            name,
            CAMERA_INFO,
            frame,
            header=header,
            height=height,
            width=width,
            distortion_model=model.distortion_model,
            d=np.array(model.d),
            k=np.array(model.k),
            r=np.array(model.r),
            p=np.array(model.p),
            binning_x=0,
            binning_y=0,
            roi=region,
        )

    def _write(self, name: str, kind: str, frame: StoredFrame, **fields: Any) -> None:
        topic = f"/{self._options.namespace.strip('/')}/{name}".replace("//", "/")
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, kind, typestore=self._types
            )
        message = self._types.types[kind](**fields)
        data = self._types.serialize_cdr(message, kind, little_endian=True)
        self._writer.write(self._connections[topic], frame.stamp_ns, data)
        self._counts[topic] += 1
