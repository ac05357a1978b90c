"""ROS messages to arrays and back.

Images become uint8 RGB (H, W, 3); depth is float32 metres (H, W), NaN = unknown.
"""

from __future__ import annotations

import array
import copy
import math

import cv2
import numpy as np
import numpy.typing as npt
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from tiekd_ros.camera import Intrinsics
from tiekd_ros.errors import BadImageError
from tiekd_ros.images import DepthMap, RgbImage

# encoding -> (channels, conversion to RGB; None = is RGB already)
_EIGHT_BIT: dict[str, tuple[int, int | None]] = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "8UC3": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
    "8UC1": (1, cv2.COLOR_GRAY2RGB),
    # OpenCV names a Bayer pattern by its second row, ROS by its first.
    "bayer_rggb8": (1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": (1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": (1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": (1, cv2.COLOR_BayerGB2RGB),
    "uyvy": (2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422": (2, cv2.COLOR_YUV2RGB_UYVY),
    "yuyv": (2, cv2.COLOR_YUV2RGB_YUY2),
    "yuv422_yuy2": (2, cv2.COLOR_YUV2RGB_YUY2),
}
_MONO16 = ("mono16", "16UC1")


def image_to_rgb(message: Image) -> RgbImage:
    """Convert a sensor_msgs/Image, honouring `step` and `is_bigendian`.

    Returns:
        An array of its own: the message may be reused.

    Raises:
        BadImageError: zero size, an unsupported encoding, a size that the encoding cannot have,
            or fewer bytes than the header says.
    """
    encoding = message.encoding
    if message.height == 0 or message.width == 0:
        raise BadImageError(
            f"the image is {message.width} x {message.height} pixels; check the camera"
        )
    if encoding in _EIGHT_BIT:
        channels, conversion = _EIGHT_BIT[encoding]
        rows = _rows(message, channels)
        pixels = rows.reshape(message.height, message.width, channels)
        if conversion is None:
            return pixels.copy()
        return _converted(np.ascontiguousarray(pixels), conversion, encoding)
    if encoding in _MONO16:
        order = ">u2" if message.is_bigendian else "<u2"
        values = np.ascontiguousarray(_rows(message, 2)).view(order)
        grey: RgbImage = cv2.cvtColor((values >> 8).astype(np.uint8), cv2.COLOR_GRAY2RGB)
        return grey
    return _by_cv_bridge(message)


def _converted(pixels: npt.NDArray[np.uint8], conversion: int, encoding: str) -> RgbImage:
    try:
        rgb: RgbImage = cv2.cvtColor(pixels, conversion)
    except cv2.error as error:  # packed YUV of odd width, for instance
        height, width = pixels.shape[:2]
        raise BadImageError(
            f"an image of {width} x {height} {encoding} cannot be converted ({error.err}); "
            "change the camera's image size or encoding"
        ) from error
    return rgb


def _rows(message: Image, bytes_per_pixel: int) -> npt.NDArray[np.uint8]:
    """Return the used bytes of each row, (H, W * bytes_per_pixel), a view of the message."""
    used = message.width * bytes_per_pixel
    step = message.step or used
    if step < used:
        raise BadImageError(
            f"step is {message.step} bytes, but {message.width} pixels of {message.encoding} take "
            f"{used}; the camera driver fills the message wrongly"
        )
    data = np.frombuffer(message.data, np.uint8)
    needed = step * (message.height - 1) + used
    if data.size < needed:
        raise BadImageError(
            f"{data.size} bytes of data, but {message.width} x {message.height} {message.encoding} "
            f"with step {step} take {needed}; the message is truncated"
        )
    return np.lib.stride_tricks.as_strided(data, (message.height, used), (step, 1))


def _by_cv_bridge(message: Image) -> RgbImage:
    try:
        from cv_bridge import CvBridge
    except ImportError:
        known = ", ".join([*_EIGHT_BIT, *_MONO16])
        raise BadImageError(
            f"encoding {message.encoding!r} is not supported without cv_bridge; supported are "
            f"{known}. Install ros-$ROS_DISTRO-cv-bridge, or change the camera's encoding"
        ) from None
    try:
        rgb: RgbImage = CvBridge().imgmsg_to_cv2(message, desired_encoding="rgb8")
        return rgb
    except Exception as error:  # a short buffer comes as numpy's own error, for instance
        raise BadImageError(f"cv_bridge cannot convert {message.encoding!r}: {error}") from error


def rgb_to_image(image: RgbImage, header: Header) -> Image:
    """Make an `rgb8` message of an RGB image."""
    return _image(image, header, "rgb8", 3)


def depth_to_image(depth: DepthMap, header: Header, encoding: str = "32FC1") -> Image:
    """Make a depth message: `32FC1` metres as given, or `16UC1` millimetres (REP-118).

    In `16UC1`, 0 stands for everything that is no finite depth below 65.535 m.
    """
    if encoding == "32FC1":
        return _image(depth.astype(np.float32, copy=False), header, encoding, 4)
    millimetres = np.rint(depth.astype(np.float64) * 1000)
    unfit = ~np.isfinite(millimetres) | (millimetres > 65535) | (millimetres < 0)
    millimetres[unfit] = 0
    return _image(millimetres.astype(np.uint16), header, "16UC1", 2)


def float_to_image(values: npt.NDArray[np.float32], header: Header) -> Image:
    """Make a `32FC1` message."""
    return _image(values, header, "32FC1", 4)


def image_to_float(message: Image) -> npt.NDArray[np.float32]:
    """Read a `32FC1` message; BadImageError for any other encoding."""
    if message.encoding != "32FC1":
        raise BadImageError(f"expected a 32FC1 image, got {message.encoding!r}")
    order = ">f4" if message.is_bigendian else "<f4"
    return np.ascontiguousarray(_rows(message, 4)).view(order).astype(np.float32)


def _image(
    pixels: npt.NDArray[np.generic], header: Header, encoding: str, bytes_per_pixel: int
) -> Image:
    message = Image()
    message.header = header
    message.height, message.width = pixels.shape[:2]
    message.encoding = encoding
    message.is_bigendian = 0
    message.step = pixels.shape[1] * bytes_per_pixel
    data = array.array("B")  # the only type that rclpy takes over without looking at each byte
    data.frombytes(np.ascontiguousarray(pixels).reshape(-1).view(np.uint8).data)
    message.data = data
    return message


def intrinsics_of(info: CameraInfo, width: int, height: int) -> Intrinsics | None:
    """Return the intrinsics for an image of this size, None where the camera is uncalibrated.

    REP-104: K[0] = 0 means uncalibrated. A CameraInfo for another size is scaled.
    """
    k = [float(v) for v in info.k]
    if not all(map(math.isfinite, k)) or k[0] <= 0 or k[4] <= 0:
        return None
    intrinsics = Intrinsics.from_matrix(k)
    if info.width and info.height and (info.width, info.height) != (width, height):
        intrinsics = intrinsics.scaled(width / info.width, height / info.height)
    return intrinsics


def camera_info_for(info: CameraInfo, header: Header, width: int, height: int) -> CameraInfo:
    """Return the sibling CameraInfo of an image of the same view with this size and header."""
    message = copy.copy(info)
    message.header = header
    if info.width and info.height and (info.width, info.height) != (width, height):
        sx, sy = width / info.width, height / info.height
        message.width, message.height = width, height
        message.k = _scaled(info.k, 3, sx, sy)
        message.p = _scaled(info.p, 4, sx, sy)
    return message


def _scaled(values: npt.ArrayLike, columns: int, sx: float, sy: float) -> npt.NDArray[np.float64]:
    """Scale K or P; pixel centres lie at whole coordinates, hence the half pixels."""
    matrix = np.array(values, np.float64).reshape(3, columns)
    if matrix[0, 0] == 0:
        return matrix.flatten()
    matrix[0] *= sx
    matrix[1] *= sy
    matrix[0, 2] += 0.5 * sx - 0.5
    matrix[1, 2] += 0.5 * sy - 0.5
    return matrix.flatten()


def stamp_ns(header: Header) -> int:
    """Return a header's stamp in nanoseconds."""
    return int(header.stamp.sec) * 1_000_000_000 + int(header.stamp.nanosec)
