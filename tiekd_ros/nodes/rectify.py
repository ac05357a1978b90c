"""What a CameraInfo says of an image, and images without their lens's distortion.

Shapes: images (H, W, 3); a point of the image is (x, y) in pixels, centres at whole coordinates.
The models are those of sensor_msgs/CameraInfo and REP-104, computed by OpenCV.
"""

from __future__ import annotations

import math
from copy import copy as shallow_copy
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from sensor_msgs.msg import CameraInfo, RegionOfInterest

from tiekd_ros.errors import BadImageError
from tiekd_ros.images import RgbImage
from tiekd_ros.nodes.conversions import camera_info_for

Mask = npt.NDArray[np.bool_]

COEFFICIENTS = {
    "plumb_bob": (4, 5),
    "rational_polynomial": (8, 12, 14),
    "equidistant": (4,),
}
"""Distortion models that can be taken out, and how many numbers D may have in each."""

_EDGE_POINTS = 17
_HALF_PIXEL = 0.5


class View(NamedTuple):
    """An image and what is known of how it was taken."""

    image: RgbImage
    info: CameraInfo | None
    """The calibration of this very image; its header is the camera_info's own."""
    blind: Mask | None = None
    """(H, W), where a rectified image shows what the camera did not see; None = nowhere."""


def described_size(info: CameraInfo) -> tuple[float, float]:
    """Return the (width, height) of the images that a CameraInfo is for, by ROI and binning."""
    roi = info.roi
    width, height = (
        (roi.width, roi.height) if roi.width and roi.height else (info.width, info.height)
    )
    return width / max(info.binning_x, 1), height / max(info.binning_y, 1)


def info_of_view(info: CameraInfo, width: int, height: int) -> CameraInfo:
    """Return the calibration of an image of this size: region of interest and binning undone.

    The same object where nothing has to be changed. A CameraInfo for another size is scaled, one
    without a size is taken for the image's. An image of the full size that comes with a region of
    interest is taken for the whole.
    """
    roi = info.roi
    if roi.width and roi.height and (width, height) != (info.width, info.height):
        info = _cropped(info, roi)
    if not info.width or not info.height:
        info = shallow_copy(info)
        info.width = width * max(info.binning_x, 1)
        info.height = height * max(info.binning_y, 1)
    if info.binning_x > 1 or info.binning_y > 1 or roi != RegionOfInterest():
        info = shallow_copy(info)
        info.binning_x = info.binning_y = 0
        info.roi = RegionOfInterest()
    if (info.width, info.height) == (width, height):
        return info
    return camera_info_for(info, info.header, width, height)


def _cropped(info: CameraInfo, roi: RegionOfInterest) -> CameraInfo:
    cropped = shallow_copy(info)
    cropped.width, cropped.height = roi.width, roi.height
    for name, columns in (("k", 3), ("p", 4)):
        matrix = np.array(getattr(info, name), np.float64).reshape(3, columns)
        if matrix[0, 0] != 0:
            matrix[0, 2] -= roi.x_offset
            matrix[1, 2] -= roi.y_offset
        setattr(cropped, name, matrix.flatten())
    return cropped


def rectified_info(info: CameraInfo) -> CameraInfo:
    """Return the calibration of the rectified image: D = 0, R = I, K as in P (P as K if empty)."""
    projection = _projection(info)
    result = shallow_copy(info)
    result.distortion_model = "plumb_bob"
    result.d = [0.0] * 5
    result.k = projection[:, :3].flatten()
    result.r = np.eye(3).flatten()
    result.p = projection.flatten()
    return result


def is_calibrated(info: CameraInfo) -> bool:
    """Say whether K describes a camera; REP-104: K[0] = 0 means uncalibrated."""
    k = [float(value) for value in info.k]
    return all(map(math.isfinite, k)) and k[0] > 0 and k[4] > 0


def calibration_key(info: CameraInfo) -> tuple[object, ...]:
    """Return what tells calibrations apart; of bytes, since a NaN is not equal to itself."""
    numbers = (np.array(getattr(info, name), np.float64).tobytes() for name in "dkrp")
    return (info.width, info.height, info.distortion_model, *numbers)


def is_distorted(info: CameraInfo) -> bool:
    """Say whether the CameraInfo speaks of any distortion."""
    return any(float(value) != 0 for value in info.d)


def model_fault(info: CameraInfo) -> str:
    """Say what keeps an image from being rectified by this CameraInfo; empty = nothing."""
    if not is_calibrated(info):
        return "camera_info is uncalibrated (K[0] = 0); calibrate the camera"
    if not is_distorted(info):
        return ""
    model, count = info.distortion_model, len(info.d)
    if model not in COEFFICIENTS:
        return (
            f"camera_info's distortion model {model!r} is not known; known are "
            f"{', '.join(COEFFICIENTS)}; calibrate the camera with one of them"
        )
    if count not in COEFFICIENTS[model]:
        numbers = " or ".join(map(str, COEFFICIENTS[model]))
        return (
            f"camera_info has {count} numbers in D, {model} takes {numbers}; calibrate the camera"
        )
    if not all(math.isfinite(float(value)) for value in info.d):
        return "camera_info has a number in D that is not finite; calibrate the camera"
    return ""


def border_shift_px(info: CameraInfo) -> float:
    """Return how far the lens moves the image's border, the largest distance in pixels.

    0 without distortion, NaN where the model cannot be computed.
    """
    if not is_distorted(info):
        return 0.0
    if model_fault(info) or not info.width or not info.height:
        return math.nan
    xs = np.linspace(0, info.width - 1, _EDGE_POINTS)
    ys = np.linspace(0, info.height - 1, _EDGE_POINTS)
    right, low = np.full_like(ys, xs[-1]), np.full_like(xs, ys[-1])
    edges = [(xs, np.zeros_like(xs)), (xs, low), (np.zeros_like(ys), ys), (right, ys)]
    points = np.concatenate([np.stack(edge, axis=-1) for edge in edges])  # (N, 2)
    k = _matrix(info.k)
    rays = (points - [k[0, 2], k[1, 2]]) / [k[0, 0], k[1, 1]]
    return float(np.linalg.norm(distorted(info, k, rays) - points, axis=1).max())


def distorted(
    info: CameraInfo, k: npt.NDArray[np.float64], rays: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return where the lens puts rays, (N, 2) at z = 1, in pixels, (N, 2).

    Args:
        info: whose distortion model and D count.
        k: the camera matrix, (3, 3).
        rays: finite.
    """
    d = np.array(info.d, np.float64)
    if info.distortion_model == "equidistant":
        found: Any = cv2.fisheye.distortPoints(rays[:, None], k, d)
    else:
        points = np.concatenate([rays, np.ones((len(rays), 1))], axis=1)
        found, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), k, d)
    return np.asarray(found, np.float64).reshape(-1, 2)


def fit_mask(mask: Mask, height: int, width: int) -> Mask:
    """Return a mask at another size, by nearest pixels."""
    if mask.shape == (height, width):
        return mask
    values = mask.astype(np.uint8)
    return cv2.resize(values, (width, height), interpolation=cv2.INTER_NEAREST_EXACT) > 0


class Rectifier:
    """Takes the distortion out of images; keeps the maps for one calibration."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._maps: tuple[Any, Any] | None = None
        self._blind: Mask | None = None

    def rectified(self, image: RgbImage, info: CameraInfo) -> View:
        """Return the image as a pinhole camera with P as its K would have taken it.

        Args:
            image: (H, W, 3).
            info: of this very image (`info_of_view`).

        Raises:
            BadImageError: the calibration does not allow it.
        """
        fault = model_fault(info)
        if fault:
            raise BadImageError(f"the image cannot be rectified: {fault}, or set rectify to false")
        key = (image.shape[:2], calibration_key(info))
        if key != self._key:
            self._prepare(info, image.shape[1], image.shape[0])
            self._key = key
        if self._maps is not None:
            # Repeated edges rather than black: what lies beyond is marked, but a network looks.
            image = cv2.remap(image, *self._maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return View(image, rectified_info(info), self._blind)

    def _prepare(self, info: CameraInfo, width: int, height: int) -> None:
        k, r, p = _matrix(info.k), _rotation(info), _projection(info)[:, :3]
        self._maps = self._blind = None
        if not is_distorted(info) and np.array_equal(r, np.eye(3)) and np.allclose(k, p):
            return
        d, size = np.array(info.d, np.float64), (width, height)
        fisheye = info.distortion_model == "equidistant" and is_distorted(info)
        make = cv2.fisheye.initUndistortRectifyMap if fisheye else cv2.initUndistortRectifyMap
        x, y = make(k, d, r, p, size, cv2.CV_32FC1)
        inside = (x >= -_HALF_PIXEL) & (x <= width - _HALF_PIXEL)
        inside &= (y >= -_HALF_PIXEL) & (y <= height - _HALF_PIXEL)
        if not inside.any():
            raise BadImageError(
                "the image cannot be rectified: by camera_info's R and P nothing of it would be "
                "seen; calibrate the camera, or set rectify to false"
            )
        self._blind = None if inside.all() else ~inside
        self._maps = cv2.convertMaps(x, y, cv2.CV_16SC2)


def _matrix(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return np.array(values, np.float64).reshape(3, 3)


def _rotation(info: CameraInfo) -> npt.NDArray[np.float64]:
    rotation = _matrix(info.r)
    return rotation if rotation.any() else np.eye(3)


def _projection(info: CameraInfo) -> npt.NDArray[np.float64]:
    """Return P, (3, 4), or what it has to be where a driver left it empty."""
    projection = np.array(info.p, np.float64).reshape(3, 4)
    if projection[0, 0] > 0 and projection[1, 1] > 0 and np.isfinite(projection).all():
        return projection
    return np.hstack([_matrix(info.k), np.zeros((3, 1))])
