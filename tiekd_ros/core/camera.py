"""What a lens does to images, and images without it.

Shapes: images (H, W, 3); a point of the image is (x, y) in pixels, centres at whole coordinates.
The models are those of sensor_msgs/CameraInfo and REP-104, computed by OpenCV.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from tiekd_ros.core.errors import BadImageError, BadIntrinsicsError
from tiekd_ros.core.images import Mask, RgbImage

_NOT_TURNED = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Intrinsics:
    """Focal lengths and principal point of a pinhole camera, in pixels.

    Pixel centres lie at whole coordinates: the centre of the top-left pixel is (0, 0).

    Raises:
        BadIntrinsicsError: a value is not finite, or a focal length is not positive.
    """

    fx: float
    fy: float
    cx: float
    cy: float

    def __post_init__(self) -> None:
        values = self.as_tuple()
        if not all(math.isfinite(v) for v in values) or self.fx <= 0 or self.fy <= 0:
            raise BadIntrinsicsError(
                f"intrinsics (fx, fy, cx, cy) = {values} describe no camera: all must be finite "
                "and the focal lengths positive; calibrate the camera, or fix its camera_info"
            )

    @classmethod
    def from_matrix(cls, matrix: npt.ArrayLike) -> Intrinsics:
        """Read from a 3x3 camera matrix K (also as 9 numbers, row by row)."""
        k = np.asarray(matrix, dtype=np.float64)
        if k.size != 9:
            raise BadIntrinsicsError(f"a camera matrix has 9 numbers, got {k.size}")
        k = k.reshape(3, 3)
        return cls(float(k[0, 0]), float(k[1, 1]), float(k[0, 2]), float(k[1, 2]))

    def as_tuple(self) -> tuple[float, float, float, float]:
        """Return (fx, fy, cx, cy)."""
        return (self.fx, self.fy, self.cx, self.cy)

    def matrix(self) -> npt.NDArray[np.float64]:
        """Return the 3x3 camera matrix K."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], np.float64)

    def scaled(self, width_factor: float, height_factor: float) -> Intrinsics:
        """Return the intrinsics of the same view resized by these factors.

        With pixel centres at whole coordinates, x' = (x + 0.5) * s - 0.5.
        """
        return Intrinsics(
            self.fx * width_factor,
            self.fy * height_factor,
            (self.cx + 0.5) * width_factor - 0.5,
            (self.cy + 0.5) * height_factor - 0.5,
        )

    def cropped(self, left: float, top: float) -> Intrinsics:
        """Return the intrinsics of the view whose top-left pixel is (left, top) of this one."""
        return Intrinsics(self.fx, self.fy, self.cx - left, self.cy - top)


@dataclass(frozen=True)
class CameraModel:
    """A camera's calibration, as a sensor_msgs/CameraInfo has it.

    Matrices are row by row, in pixels of images of this size.
    """

    width: int
    height: int
    distortion_model: str
    d: tuple[float, ...]
    k: tuple[float, ...]
    """9 numbers; all 0 where the camera is not calibrated (REP-104)."""
    r: tuple[float, ...]
    """9 numbers."""
    p: tuple[float, ...]
    """12 numbers."""
    binning: tuple[int, int] = (1, 1)
    """How many columns and rows of the camera's pixels one of the image's takes."""
    roi: tuple[int, int, int, int] | None = None
    """(left, top, width, height) of the part that images show, in pixels before binning."""

    @classmethod
    def pinhole(cls, intrinsics: Intrinsics, width: int, height: int) -> CameraModel:
        """Return the model of images without distortion."""
        k = tuple(float(value) for value in intrinsics.matrix().flatten())
        p = (*k[0:3], 0.0, *k[3:6], 0.0, *k[6:9], 0.0)
        return cls(width, height, "plumb_bob", (0.0,) * 5, k, _NOT_TURNED, p)

    def intrinsics(self, width: int, height: int) -> Intrinsics | None:
        """Return K for images of this size; None where the camera is not calibrated."""
        k = self.of_view(width, height).k
        if not all(map(math.isfinite, k)) or k[0] <= 0 or k[4] <= 0:
            return None
        return Intrinsics.from_matrix(k)

    def of_view(self, width: int, height: int) -> CameraModel:
        """Return the model of an image of this size: region of interest and binning undone.

        One for another size is scaled, one without a size is taken for the image's. An image of
        the full size that comes with a region of interest is taken for the whole.
        """
        left, top, own_width, own_height = 0, 0, self.width, self.height
        if self.roi is not None and (width, height) != (self.width, self.height):
            left, top, own_width, own_height = self.roi
        if not own_width or not own_height:
            own_width, own_height = width * self.binning[0], height * self.binning[1]
        factors = width / own_width, height / own_height
        k, p = (_moved(matrix, (left, top), factors) for matrix in (self.k, self.p))
        return replace(self, width=width, height=height, k=k, p=p, binning=(1, 1), roi=None)


def _moved(
    matrix: tuple[float, ...], corner: tuple[float, float], factors: tuple[float, float]
) -> tuple[float, ...]:
    """Return K (9 numbers) or P (12) of a view cropped at `corner`, then resized by `factors`.

    Pixel centres lie at whole coordinates; a matrix that says nothing (0) stays as it is.
    """
    columns = len(matrix) // 3
    if columns not in (3, 4) or matrix[0] == 0:
        return matrix
    rows = [list(matrix[row * columns : (row + 1) * columns]) for row in range(3)]
    for row, start, factor in zip(rows, corner, factors, strict=False):
        row[2] -= start
        if factor != 1:  # else it stays the same to the last bit
            row[2] = (row[2] + 0.5) * factor - 0.5
        row[:2] = [value * factor for value in row[:2]]
        row[3:] = [value * factor for value in row[3:]]  # a stereo camera's baseline, in pixels
    return tuple(value for row in rows for value in row)


COEFFICIENTS = {
    "plumb_bob": (4, 5),
    "rational_polynomial": (8, 12, 14),
    "equidistant": (4,),
}
"""Distortion models that can be taken out, and how many numbers D may have in each."""
VISIBLE_SHIFT_PX = 1.0
"""Distortion of less than this at the border is none that a depth image shows."""

_EDGE_POINTS = 17
_HALF_PIXEL = 0.5


class Calibration(Protocol):
    """What a CameraModel and a ROS CameraInfo have in common: the names of REP-104."""

    @property
    def width(self) -> int:
        """Of the images that it is for, pixels."""

    @property
    def height(self) -> int:
        """Of the images that it is for, pixels."""

    @property
    def distortion_model(self) -> str:
        """One of `COEFFICIENTS`, where D is not 0."""

    @property
    def d(self) -> Sequence[float]:
        """The lens's distortion."""

    @property
    def k(self) -> Sequence[float]:
        """9 numbers, row by row."""

    @property
    def r(self) -> Sequence[float]:
        """9 numbers, row by row."""

    @property
    def p(self) -> Sequence[float]:
        """12 numbers, row by row."""


class Rectified(NamedTuple):
    """A rectified image."""

    image: RgbImage
    blind: Mask | None
    """(H, W), where it shows what the camera did not see; None = nowhere."""


def is_calibrated(info: Calibration) -> bool:
    """Say whether K describes a camera; REP-104: K[0] = 0 means uncalibrated."""
    k = [float(value) for value in info.k]
    return all(map(math.isfinite, k)) and k[0] > 0 and k[4] > 0


def calibration_key(info: Calibration) -> tuple[object, ...]:
    """Return what tells calibrations apart; of bytes, since a NaN is not equal to itself."""
    numbers = (np.array(getattr(info, name), np.float64).tobytes() for name in "dkrp")
    return (info.width, info.height, info.distortion_model, *numbers)


def is_distorted(info: Calibration) -> bool:
    """Say whether the CameraInfo speaks of any distortion."""
    return any(float(value) != 0 for value in info.d)


def model_fault(info: Calibration) -> str:
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


def border_shift_px(info: Calibration) -> float:
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
    info: Calibration, k: npt.NDArray[np.float64], rays: npt.NDArray[np.float64]
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


def projection(info: Calibration) -> npt.NDArray[np.float64]:
    """Return P, (3, 4), or what it has to be where a driver left it empty."""
    matrix = np.array(info.p, np.float64).reshape(3, 4)
    if matrix[0, 0] > 0 and matrix[1, 1] > 0 and np.isfinite(matrix).all():
        return matrix
    return np.hstack([_matrix(info.k), np.zeros((3, 1))])


def rectified_model(model: CameraModel) -> CameraModel:
    """Return the model of the rectified image: D = 0, R = I, K as in P (P as K if empty)."""
    matrix = projection(model)
    k, p = (tuple(map(float, each.flatten())) for each in (matrix[:, :3], matrix))
    return replace(model, distortion_model="plumb_bob", d=(0.0,) * 5, k=k, r=_NOT_TURNED, p=p)


class Rectifier:
    """Takes the distortion out of images; keeps the maps for one calibration.

    Args:
        otherwise: what would do where an image cannot be rectified, for people.
    """

    def __init__(self, otherwise: str = "set rectify to false") -> None:
        self._otherwise = otherwise
        self._key: tuple[object, ...] = ()
        self._maps: tuple[Any, Any] | None = None
        self._blind: Mask | None = None

    def rectified(self, image: RgbImage, info: Calibration) -> Rectified:
        """Return the image as a pinhole camera with P as its K would have taken it.

        `rectified_model` says what is known of that camera.

        Args:
            image: (H, W, 3).
            info: of this very image, region of interest and binning undone.

        Raises:
            BadImageError: the calibration does not allow it.
        """
        fault = model_fault(info)
        if fault:
            raise BadImageError(f"the image cannot be rectified: {fault}, or {self._otherwise}")
        key = (image.shape[:2], calibration_key(info))
        if key != self._key:
            self._prepare(info, image.shape[1], image.shape[0])
            self._key = key
        if self._maps is not None:
            # Repeated edges rather than black: what lies beyond is marked, but a network looks.
            image = cv2.remap(image, *self._maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return Rectified(image, self._blind)

    def _prepare(self, info: Calibration, width: int, height: int) -> None:
        k, r, p = _matrix(info.k), _rotation(info), projection(info)[:, :3]
        self._maps = self._blind = None
        if not is_distorted(info) and np.array_equal(r, np.eye(3)) and np.allclose(k, p):
            return
        d, size = np.array(info.d, np.float64), (width, height)
        fisheye = info.distortion_model == "equidistant" and is_distorted(info)
        make = cv2.fisheye.initUndistortRectifyMap if fisheye else cv2.initUndistortRectifyMap
        x, y = make(k, d, r, p, size, cv2.CV_32FC1)
        inside = (x >= -_HALF_PIXEL) & (x <= width - _HALF_PIXEL)
        inside &= (y >= -_HALF_PIXEL) & (y <= height - _HALF_PIXEL)
        inside &= ~_turned_back(x, y)
        if not inside.any():
            raise BadImageError(
                "the image cannot be rectified: by camera_info's R and P nothing of it would be "
                f"seen; calibrate the camera, or {self._otherwise}"
            )
        self._blind = None if inside.all() else ~inside
        self._maps = cv2.convertMaps(x, y, cv2.CV_16SC2)


def _matrix(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return np.array(values, np.float64).reshape(3, 3)


def _turned_back(x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Say where the maps (H, W) show a part of the image again, mirrored.

    A lens does not do that, but a polynomial does, beyond the angle that it was fitted to.
    """
    x_right, x_down, y_right, y_down = (
        cv2.Sobel(each, cv2.CV_32F, *axis, ksize=1, borderType=cv2.BORDER_REPLICATE)
        for each in (x, y)
        for axis in ((1, 0), (0, 1))
    )
    with np.errstate(over="ignore", invalid="ignore"):  # far out of the image
        turned: npt.NDArray[np.bool_] = x_right * y_down < x_down * y_right
    return turned


def _rotation(info: Calibration) -> npt.NDArray[np.float64]:
    rotation = _matrix(info.r)
    return rotation if rotation.any() else np.eye(3)
