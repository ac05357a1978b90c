"""Bags that tests write with rosbags, of pictures that `shown` makes, and their import."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from typer.testing import CliRunner

from helpers.teachers import picture
from tiekd_ros.bags.bag import Bag
from tiekd_ros.bags.images import BagCamera
from tiekd_ros.cli.__main__ import app
from tiekd_ros.core.images import encode_jpeg, encode_png
from tiekd_ros.core.state import StateFolder
from tiekd_ros.framelog.rows import StoredFrame, StoredFrames

STORAGES = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}
TYPES = get_typestore(Stores.ROS2_HUMBLE)
MODES = {
    "plain": CompressionMode.NONE,
    "by file": CompressionMode.FILE,
    "by message": CompressionMode.MESSAGE,
}
FIRST_NS = 1_700_000_000_000_000_000
STEP_NS = 1_000_000_000
WIDTH, HEIGHT = 64, 48
K = (60.0, 0.0, 31.5, 0.0, 61.0, 23.5, 0.0, 0.0, 1.0)
IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
INFO = "sensor_msgs/msg/CameraInfo"

_CODES = {"bgr8": cv2.COLOR_RGB2BGR, "mono8": cv2.COLOR_RGB2GRAY}


def stamp_of(number: int) -> int:
    return FIRST_NS + number * STEP_NS


def header(stamp_ns: int, frame_id: str = "head_camera", types: Any = TYPES) -> Any:
    sec, nanosec = divmod(stamp_ns, 10**9)
    time = types.types["builtin_interfaces/msg/Time"](sec=sec, nanosec=nanosec)
    more = {} if types is TYPES else {"seq": 0}
    return types.types["std_msgs/msg/Header"](stamp=time, frame_id=frame_id, **more)


def shown(number: int, width: int = WIDTH) -> np.ndarray:
    """Return picture `number`, sharp enough to be kept and unlike the others."""
    rng = np.random.default_rng(number)
    noise = rng.integers(0, 256, (HEIGHT // 4, width // 4, 3), dtype=np.uint8)
    large = noise.repeat(4, 0).repeat(4, 1)
    return cv2.addWeighted(picture(number, width, HEIGHT), 0.3, large, 0.7, 0)


def image_fields(pixels: np.ndarray, encoding: str = "rgb8") -> dict[str, Any]:
    """Return an Image's fields but its header; of a Bayer image, each pixel's own channel."""
    height, width = pixels.shape[:2]
    if encoding in _CODES:
        pixels = cv2.cvtColor(pixels, _CODES[encoding])
    elif encoding == "bayer_rggb8":
        mosaic = pixels[..., 1].copy()
        mosaic[0::2, 0::2] = pixels[0::2, 0::2, 0]
        mosaic[1::2, 1::2] = pixels[1::2, 1::2, 2]
        pixels = mosaic
    data = np.ascontiguousarray(pixels).reshape(-1).view(np.uint8)
    return {
        "height": height, "width": width, "encoding": encoding, "is_bigendian": 0,
        "step": data.size // height, "data": data,
    }  # fmt: skip


def image(number: int, encoding: str = "rgb8", **header_fields: Any) -> Any:
    """Return an Image message with picture `number`; jpeg and png give a CompressedImage."""
    head = header(**{"stamp_ns": stamp_of(number), **header_fields})
    if encoding in ("jpeg", "png"):
        data = (encode_jpeg if encoding == "jpeg" else encode_png)(shown(number))
        fields = {"format": encoding, "data": np.frombuffer(data, np.uint8)}
        return TYPES.types[COMPRESSED](header=head, **fields)
    return TYPES.types[IMAGE](header=head, **image_fields(shown(number), encoding))


def info(number: int, k: Sequence[float] = K, d: Sequence[float] = (0.0,) * 5) -> Any:
    region = TYPES.types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
    p = (*k[0:3], 0.0, *k[3:6], 0.0, *k[6:9], 0.0)
    arrays = {"d": d, "k": k, "r": np.eye(3).flatten(), "p": p}
    return TYPES.types[INFO](
        header=header(stamp_of(number)), height=HEIGHT, width=WIDTH,
        distortion_model="plumb_bob", binning_x=0, binning_y=0, roi=region,
        **{name: np.array(values, np.float64) for name, values in arrays.items()},
    )  # fmt: skip


def imu(number: int) -> Any:
    return TYPES.types["std_msgs/msg/String"](data=f"step {number}")


def write_bag(
    path: Path,
    topics: dict[str, Sequence[Any]],
    storage: str = "mcap",
    compression: CompressionMode = CompressionMode.NONE,
) -> Path:
    """Write messages, the n-th of each topic recorded a millisecond after `stamp_of(n)`."""
    writer = Writer(path, version=8, storage_plugin=STORAGES[storage])
    writer.set_compression(compression, CompressionFormat.ZSTD)
    with writer:
        connections = {
            topic: writer.add_connection(topic, messages[0].__msgtype__, typestore=TYPES)
            for topic, messages in topics.items()
        }
        for number in range(max(map(len, topics.values()))):
            for topic, messages in topics.items():
                if number < len(messages):
                    data = TYPES.serialize_cdr(messages[number], messages[number].__msgtype__)
                    writer.write(connections[topic], stamp_of(number) + 10**6, data)
    return path


def camera_topics(count: int = 5, encoding: str = "rgb8") -> dict[str, Sequence[Any]]:
    """Return a camera's images with their camera_info, and a topic of another kind."""
    name = "/cam/image_raw" + ("/compressed" if encoding in ("jpeg", "png") else "")
    return {
        "/imu": [imu(n) for n in range(count)],
        "/cam/camera_info": [info(n) for n in range(count)],
        name: [image(n, encoding) for n in range(count)],
    }


def write_ros1_bag(path: Path, count: int) -> Path:
    types = get_typestore(Stores.ROS1_NOETIC)
    with Ros1Writer(path) as writer:
        connection = writer.add_connection("/cam/image_raw", IMAGE, typestore=types)
        for number in range(count):
            message = types.types[IMAGE](
                header=header(stamp_of(number), types=types), **image_fields(shown(number))
            )
            writer.write(connection, stamp_of(number), types.serialize_ros1(message, IMAGE))
    return path


def read(path: Path, **topics: str) -> tuple[list[int], list[np.ndarray], list[str]]:
    """Return stamps, images and notes."""
    with Bag(path) as bag:
        images = list(BagCamera(bag, **topics))
        return [each.stamp_ns for each in images], [each.rgb() for each in images], bag.notes


def assert_whole(path: Path, count: int = 5) -> list[str]:
    """Check that all images are as they were written; return the notes."""
    stamps, images, notes = read(path)
    assert stamps == [stamp_of(n) for n in range(count)]
    for number, pixels in enumerate(images):
        np.testing.assert_array_equal(pixels, shown(number))
    return notes


KEEP_ALL = ("--min-interval", "0", "--guard-share", "0")


def run(state: StateFolder, *arguments: object) -> str:
    """Import into a state folder; return what was said."""
    words = ["frames", "import", *map(str, arguments), "--state", str(state.root)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def report(state: StateFolder, *arguments: object) -> dict:
    """Import one recording; return its JSON."""
    (one,) = json.loads(run(state, *arguments, "--json"))
    return one


def stored(state: StateFolder) -> list[StoredFrame]:
    """Return the frames of a state folder."""
    with StoredFrames(state.frames) as frames:
        return list(frames)
