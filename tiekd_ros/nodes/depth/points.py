"""Depth as an organised point cloud: xyz in metres and the image's colour.

Shapes: H x W, the depth image's size; N points.
"""

from __future__ import annotations

import array
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header

from tiekd_ros.core.camera import DISTORTION_MODELS, CameraModel
from tiekd_ros.core.errors import BadImageError
from tiekd_ros.core.images import DepthMap, RgbImage

_STEEPEST = 100.0
"""A ray's x or y at z = 1; beyond it, 89.4 degrees off the axis, no distortion model holds."""
_EXACT_PX, _REFINED_PX, _USABLE_PX = 0.1, 0.01, 0.5
"""How far from its pixel the lens may put a ray: beyond the first it is refined, until within the
second; beyond the last it is none."""
_NEWTON_STEPS, _MOST_FOLDS = 15, 4
_LONGEST_STEP, _DIFFERENCE = 0.3, 1e-5

_Numbers = npt.NDArray[np.float64]


class Rays(NamedTuple):
    """Where each pixel's ray crosses the plane z = 1 m of the camera's optical frame (REP-103).

    x is (W,) and y is (H, 1) for a pinhole camera, both (H, W) for one with distortion; NaN where
    the calibration gives a pixel no ray.
    """

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.float32]


def rays_of(model: CameraModel) -> Rays | None:
    """Return the rays of an image's pixels, None where the camera is uncalibrated (REP-104).

    An image with distortion is as the lens shows it: its rays follow from K and D, and the lens
    puts each within half a pixel of its pixel. Without, P describes it, or K where P is empty.

    Args:
        model: of this very image, region of interest and binning undone.
    """
    if model.is_distorted and model.distortion_model in DISTORTION_MODELS:
        return _undistorted(model)
    matrix = model.projection()[:, :3]
    if not _is_camera(matrix):
        return None
    (fx, _, cx), (_, fy, cy) = matrix[:2]
    columns, rows = np.arange(model.width), np.arange(model.height)[:, None]
    return Rays(((columns - cx) / fx).astype(np.float32), ((rows - cy) / fy).astype(np.float32))


def _is_camera(matrix: _Numbers) -> bool:
    return bool(np.isfinite(matrix).all() and matrix[0, 0] > 0 and matrix[1, 1] > 0)


def _undistorted(model: CameraModel) -> Rays | None:
    matrix = np.array(model.k, np.float64).reshape(3, 3)
    if not _is_camera(matrix):
        return None
    height, width = model.height, model.width
    pixels = np.indices((height, width), np.float64)[::-1].reshape(2, -1).T  # (H*W, 2)
    distortion = np.array(model.d, np.float64)
    if model.distortion_model == "equidistant":
        found: Any = cv2.fisheye.undistortPoints(pixels[:, None], matrix, distortion[:4])
    else:
        found = cv2.undistortPoints(pixels[:, None], matrix, distortion)
    rays = _checked(model, matrix, pixels, np.asarray(found, np.float64).reshape(-1, 2))
    rays[~(np.abs(rays).max(axis=1) < _STEEPEST)] = np.nan
    x, y = rays.T.reshape(2, height, width).astype(np.float32)
    return Rays(np.ascontiguousarray(x), np.ascontiguousarray(y))


def _checked(model: CameraModel, k: _Numbers, pixels: _Numbers, rays: _Numbers) -> _Numbers:
    """Return rays (N, 2) that the lens puts where their pixels (N, 2) are, NaN where there is none.

    OpenCV's inverse makes a few steps of an iteration that need not converge, and does not look.
    """
    off = ~(np.linalg.norm(model.distort(rays) - pixels, axis=1) < _EXACT_PX)
    off |= (rays * (pixels - k[:2, 2])).sum(axis=1) < 0  # mirrored: no lens does that
    if off.any():
        rays[off] = _refined(model, k, pixels[off])
    return rays


def _refined(model: CameraModel, k: _Numbers, pixels: _Numbers) -> _Numbers:
    """Find rays (N, 2) by Newton's method, from those of a pinhole camera on.

    Where the model turns back, it meets the same pixels again with rays that are none: whatever
    gets there goes half the way back to where it was before.
    """
    found: _Numbers = np.full(pixels.shape, np.nan)
    rays: _Numbers = (pixels - k[:2, 2]) / k[[0, 1], [0, 1]]
    before, folds, open_ = np.zeros_like(rays), np.zeros(len(rays), int), np.arange(len(rays))
    for _ in range(_NEWTON_STEPS):
        error, step, folded = _newton(model, pixels[open_], rays)
        distance = np.linalg.norm(error, axis=1)
        usable = ~folded & (distance < _USABLE_PX)
        found[open_[usable]] = rays[usable]
        following = np.where(folded[:, None], (rays + before) / 2, rays - step)
        before = np.where(folded[:, None], before, rays)
        folds += folded
        on = ~(usable & (distance < _REFINED_PX)) & (folds <= _MOST_FOLDS)
        open_, rays, before, folds = open_[on], following[on], before[on], folds[on]
        if not open_.size:
            break
    return found


def _newton(
    model: CameraModel, pixels: _Numbers, rays: _Numbers
) -> tuple[_Numbers, _Numbers, npt.NDArray[np.bool_]]:
    """Return how far off rays (N, 2) are in pixels, the step to take, and which are folded over."""
    right, down = np.eye(2) * _DIFFERENCE
    at = model.distort(rays)
    along_x = (model.distort(rays + right) - at) / _DIFFERENCE
    along_y = (model.distort(rays + down) - at) / _DIFFERENCE
    error = at - pixels
    determinant = along_x[:, 0] * along_y[:, 1] - along_x[:, 1] * along_y[:, 0]
    with np.errstate(all="ignore"):
        x = (along_y[:, 1] * error[:, 0] - along_y[:, 0] * error[:, 1]) / determinant
        y = (along_x[:, 0] * error[:, 1] - along_x[:, 1] * error[:, 0]) / determinant
    step = np.nan_to_num(np.stack([x, y], axis=-1))
    return error, np.clip(step, -_LONGEST_STEP, _LONGEST_STEP), ~(determinant > 0)


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
        self, depth: DepthMap, image: RgbImage, header: Header, model: CameraModel
    ) -> PointCloud2 | None:
        """Return the message with these points; None where the camera is uncalibrated.

        Fields x, y, z (metres, z along the optical axis) and rgb (packed as PCL does it: the
        bytes of 0x00RRGGBB in a float). All of x, y, z are NaN where depth is NaN or infinite.

        Args:
            depth: metres, (H, W).
            image: of the same view, any size.
            header: of the message.
            model: of the depth image.
        """
        if model.key() != self._calibration:
            self._calibration, self._rays = model.key(), rays_of(model)
        rays = self._rays
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
