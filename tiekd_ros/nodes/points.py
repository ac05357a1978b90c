"""Depth as an organised point cloud: xyz in metres and the image's colour.

Shapes: H x W, the depth image's size.
"""

from __future__ import annotations

import array
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from sensor_msgs.msg import CameraInfo, PointCloud2, PointField
from std_msgs.msg import Header

from tiekd_ros.errors import BadImageError
from tiekd_ros.images import DepthMap, RgbImage
from tiekd_ros.nodes.rays import Rays, rays_of
from tiekd_ros.rectify import calibration_key

_POINT_STEP = 16  # bytes: x, y, z, rgb
_COLOUR = np.uint32(0x00FFFFFF)


class PointCanvas:
    """A PointCloud2 whose points are written in place, cloud after cloud.

    Publishing copies a message, so the same one serves for the next cloud.
    """

    def __init__(self) -> None:
        self._message = PointCloud2(
            fields=[
                PointField(name=name, offset=4 * i, datatype=PointField.FLOAT32, count=1)
                for i, name in enumerate(("x", "y", "z", "rgb"))
            ],
            point_step=_POINT_STEP,
            is_bigendian=False,
        )
        self._points: npt.NDArray[np.float32] = np.empty((0, 0, 4), np.float32)
        self._calibration: tuple[object, ...] = ()
        self._rays: Rays | None = None

    def paint(
        self, depth: DepthMap, image: RgbImage, header: Header, info: CameraInfo
    ) -> PointCloud2 | None:
        """Return the message with these points; None where the camera is uncalibrated.

        Fields x, y, z (metres, z along the optical axis) and rgb (packed as PCL does it: the
        bytes of 0x00RRGGBB in a float). All of x, y, z are NaN where depth is NaN or infinite.

        Args:
            depth: metres, (H, W).
            image: of the same view, any size.
            header: of the message.
            info: the calibration of the depth image.
        """
        rays = self._rays_of(info)
        if rays is None:
            return None
        if self._points.shape[:2] != depth.shape:
            self._resize(*depth.shape)
        known = np.isfinite(depth)
        z = depth if known.all() else np.where(known, depth, np.float32(np.nan))
        x, y = z * rays.x, z * rays.y
        if rays.x.ndim == 2:  # with distortion some pixels may have no ray
            z = np.where(np.isnan(x), np.float32(np.nan), z)
            known &= ~np.isnan(x)
        cv2.merge([x, y, z, _packed(image, *depth.shape)], dst=self._points)
        self._message.is_dense = bool(known.all())
        self._message.header = header
        return self._message

    def _rays_of(self, info: CameraInfo) -> Rays | None:
        key = calibration_key(info)
        if key != self._calibration:
            self._calibration, self._rays = key, rays_of(info)
        return self._rays

    def _resize(self, height: int, width: int) -> None:
        message = self._message
        message.height, message.width = height, width
        message.row_step = width * _POINT_STEP
        message.data = array.array("B", bytes(height * message.row_step))
        # What the message holds now, which need not be what it was given.
        self._points = np.frombuffer(message.data, "<f4").reshape(height, width, 4)


def _packed(image: RgbImage, height: int, width: int) -> npt.NDArray[np.float32]:
    """Return the image's colours, (H, W), as PCL packs them.

    The fourth byte stays 0: with 255 a light red would read as NaN, and readers that skip points
    with a NaN would lose it.
    """
    if image.shape[:2] != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    bgra = cv2.cvtColor(image, cv2.COLOR_RGB2BGRA).view("<u4")[..., 0]
    bgra &= _COLOUR
    packed: npt.NDArray[np.float32] = bgra.view("<f4")
    return packed


class Cloud(NamedTuple):
    """The points of a message: metres (H, W, 3), NaN = none; colours (H, W, 3) or None."""

    xyz: npt.NDArray[np.float32]
    rgb: RgbImage | None


def read_cloud(message: PointCloud2) -> Cloud:
    """Read a cloud with float32 fields x, y, z and perhaps rgb, in whatever order they lie.

    Raises:
        BadImageError: a field is missing, or there are fewer bytes than the header says.
    """
    order = ">" if message.is_bigendian else "<"
    offsets = {f.name: f.offset for f in message.fields if f.datatype == PointField.FLOAT32}
    if not {"x", "y", "z"} <= set(offsets):
        names = ", ".join(f.name for f in message.fields) or "none"
        raise BadImageError(f"a point cloud needs float32 fields x, y and z; it has {names}")
    data = np.frombuffer(message.data, np.uint8)
    height, width, step = message.height, message.width, message.point_step
    if data.size < height * message.row_step or message.row_step < width * step:
        raise BadImageError(
            f"{data.size} bytes of data, but {width} x {height} points of {step} bytes take more; "
            "the message is truncated"
        )
    kind = np.dtype(
        {
            "names": list(offsets),
            "formats": [f"{order}f4"] * len(offsets),
            "offsets": list(offsets.values()),
            "itemsize": step,
        }
    )
    strides = (message.row_step, step)
    points = np.ndarray((height, width), kind, data.data, strides=strides)
    xyz = np.stack([points[axis].astype(np.float32) for axis in "xyz"], axis=-1)
    if "rgb" not in offsets:
        return Cloud(xyz, None)
    packed = np.ascontiguousarray(points["rgb"]).view(f"{order}u4")
    channels = [(packed >> shift) & 0xFF for shift in (16, 8, 0)]
    return Cloud(xyz, np.stack(channels, axis=-1).astype(np.uint8))
