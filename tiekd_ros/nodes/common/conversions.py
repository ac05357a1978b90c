"""ROS messages to arrays and back.

Images become uint8 RGB (H, W, 3); depth is float32 metres (H, W), NaN = unknown.
"""

from __future__ import annotations

import array
from typing import Any

import numpy as np
import numpy.typing as npt
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from tiekd_ros.core.camera import CameraModel
from tiekd_ros.core.encodings import (
    RAW_ENCODINGS,
    compressed_to_rgb,
    is_depth,
    raw_to_rgb,
    used_rows,
)
from tiekd_ros.core.errors import BadImageError
from tiekd_ros.core.images import DepthMap, RgbImage

_ENCODINGS = {
    np.dtype(np.float32): "32FC1",
    np.dtype(np.uint16): "16UC1",
    np.dtype(np.uint8): "rgb8",
}


def image_to_rgb(message: Image | CompressedImage, *, copy: bool = True) -> RgbImage:
    """Convert a camera's image, honouring `step`, `is_bigendian` and a compressed `format`.

    Without `copy` the array may be a view of the message, to be read only and only while the
    message is not changed.

    Raises:
        BadImageError: zero size, an unsupported encoding or format, a size that the encoding
            cannot have, fewer bytes than the header says, or a file that cannot be decoded.
    """
    if isinstance(message, CompressedImage):
        return compressed_to_rgb(message.format, message.data)
    known = message.encoding in RAW_ENCODINGS or is_depth(message.encoding)
    if not known and message.width and message.height:
        return _by_cv_bridge(message)
    return raw_to_rgb(
        encoding=message.encoding,
        width=message.width,
        height=message.height,
        step=message.step,
        is_bigendian=bool(message.is_bigendian),
        data=message.data,
        copy=copy,
    )


def _by_cv_bridge(message: Image) -> RgbImage:
    try:
        from cv_bridge import CvBridge
    except ImportError:
        raise BadImageError(
            f"encoding {message.encoding!r} is not supported without cv_bridge; supported are "
            f"{', '.join(RAW_ENCODINGS)}. Install ros-$ROS_DISTRO-cv-bridge, or change the "
            "camera's encoding"
        ) from None
    try:
        rgb: RgbImage = CvBridge().imgmsg_to_cv2(message, desired_encoding="rgb8")
        return rgb
    except Exception as error:  # a short buffer comes as numpy's own error, for instance
        raise BadImageError(f"cv_bridge cannot convert {message.encoding!r}: {error}") from error


def rgb_to_image(image: RgbImage, header: Header) -> Image:
    """Make an `rgb8` message of an RGB image."""
    return ImageCanvas().paint(image, header)


class ImageCanvas:
    """An Image message whose pixels are written in place, image after image.

    A fresh megabyte costs more than filling it, since the system hands it out page by page.
    Publishing copies a message, so the same one serves for the next image.
    """

    def __init__(self) -> None:
        self._message = Image()
        self._pixels: npt.NDArray[Any] = np.empty((0, 0), np.float32)

    def paint(self, values: npt.NDArray[Any], header: Header) -> Image:
        """Return the message, with these values: float32 or uint16 (H, W), or RGB (H, W, 3)."""
        if (self._pixels.shape, self._pixels.dtype) != (values.shape, values.dtype):
            self._resize(values.shape, values.dtype)
        np.copyto(self._pixels, values)
        self._message.header = header
        return self._message

    def _resize(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        message = self._message
        message.height, message.width = shape[:2]
        message.encoding = _ENCODINGS[dtype]
        message.step = message.width * dtype.itemsize * (shape[2] if len(shape) == 3 else 1)
        # The only type that rclpy takes over without looking at each byte.
        message.data = array.array("B", bytes(message.height * message.step))
        # What the message holds now, which need not be what it was given.
        self._pixels = np.frombuffer(message.data, dtype).reshape(shape)


def depth_to_image(
    depth: DepthMap, header: Header, encoding: str = "32FC1", canvas: ImageCanvas | None = None
) -> Image:
    """Make a depth message: `32FC1` metres as given, or `16UC1` millimetres (REP-118).

    In `16UC1`, 0 stands for everything that is no finite depth below 65.535 m.

    Args:
        depth: metres, (H, W).
        header: of the message.
        encoding: `32FC1` or `16UC1`.
        canvas: where to write; the message is valid until the canvas is used again.
    """
    canvas = canvas or ImageCanvas()
    if encoding == "32FC1":
        return canvas.paint(depth.astype(np.float32, copy=False), header)
    millimetres = depth.astype(np.float32) * np.float32(1000)  # steps of 1/256 mm at 65 m
    np.rint(millimetres, out=millimetres)
    millimetres[~((millimetres >= 0) & (millimetres <= 65535))] = 0  # NaN too
    return canvas.paint(millimetres.astype(np.uint16), header)


def image_to_depth(message: Image) -> DepthMap:
    """Read a depth message (REP-118): `32FC1` metres, or `16UC1` millimetres with 0 = unknown.

    Returns:
        Metres, (H, W); NaN = unknown, -Inf = nearer than the range, +Inf = beyond it.

    Raises:
        BadImageError: another encoding, or fewer bytes than the header says.
    """
    if message.encoding != "16UC1":
        return image_to_float(message)
    millimetres = _values(message, "u2")
    metres = millimetres.astype(np.float32) / np.float32(1000)
    metres[millimetres == 0] = np.nan
    return metres


def image_to_float(message: Image) -> npt.NDArray[np.float32]:
    """Read a `32FC1` message; BadImageError for any other encoding."""
    if message.encoding != "32FC1":
        raise BadImageError(f"expected a 32FC1 image, got {message.encoding!r}")
    return _values(message, "f4").astype(np.float32)


def _values(message: Image, kind: str) -> npt.NDArray[Any]:
    """Return the pixels' values, (H, W), of a numpy type in the message's byte order."""
    size = (message.encoding, message.width, message.height, message.step)
    dtype = np.dtype(f"{'>' if message.is_bigendian else '<'}{kind}")
    rows = used_rows(*size, message.data, bytes_per_pixel=dtype.itemsize)
    return np.ascontiguousarray(rows).view(dtype)


def camera_info_message(model: CameraModel, header: Header) -> CameraInfo:
    """Return a calibration as a message with this header."""
    message = CameraInfo(header=header, width=model.width, height=model.height)
    message.distortion_model = model.distortion_model
    message.d, message.k, message.r, message.p = list(model.d), model.k, model.r, model.p
    return message


def stamp_ns(header: Header) -> int:
    """Return a header's stamp in nanoseconds."""
    return int(header.stamp.sec) * 1_000_000_000 + int(header.stamp.nanosec)
