"""A camera's calibration, what it says of an image, and images with the lens's distortion removed.

Shapes: images (H, W, 3); a point of the image is (x, y) in pixels, pixel centres at whole
coordinates: the centre of the top-left pixel is (0, 0). Matrices are row by row. The models are
those of sensor_msgs/CameraInfo and REP-104, computed by OpenCV.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from tiekd_ros.core.errors import BadImageError, BadIntrinsicsError
from tiekd_ros.core.images import Mask, RgbImage

DISTORTION_MODELS = {
    "plumb_bob": (4, 5),
    "rational_polynomial": (8, 12, 14),
    "equidistant": (4,),
}
"""Distortion models that can be removed, and how many numbers D may have in each."""
VISIBLE_SHIFT_PX = 1.0
"""Distortion of less than this at the border does not show in a depth image."""

_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
_ASPECT_TOLERANCE = 0.01
# A lens outside these (field of view of about 170 and 2 degrees) is a wrong file, not a camera.
_FOCAL_PER_SIDE = (0.05, 30.0)
_BORDER_POINTS = 17  # on each side of the image
_HALF_PIXEL = 0.5

Size = tuple[int, int]
"""(width, height) in pixels."""


def is_rectified_topic(topic: str) -> bool:
    """Return whether a topic is named as one of rectified images: image_rect, image_rect_color."""
    return topic.removesuffix("/compressed").rpartition("/")[2].startswith("image_rect")


def same_shape(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Return whether two (width, height) sizes have one aspect ratio, up to 1 %."""
    return abs((one[0] * other[1]) / (one[1] * other[0]) - 1.0) <= _ASPECT_TOLERANCE


@dataclass(frozen=True)
class Intrinsics:
    """Focal lengths and principal point of a pinhole camera, in pixels.

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

    def implausibility(self, width: int, height: int) -> str:
        """Return why these cannot belong to images of this size; empty where they can."""
        low, high = (bound * max(width, height) for bound in _FOCAL_PER_SIDE)
        centred = 0 < self.cx < width and 0 < self.cy < height
        if centred and all(low <= focal <= high for focal in (self.fx, self.fy)):
            return ""
        return (
            f"(fx, fy, cx, cy) = {self.as_tuple()} cannot belong to images of {width}x{height}: "
            "the principal point must lie inside the image and the focal lengths between "
            f"{low:g} and {high:g} pixels; was K made for another image size?"
        )


@dataclass(frozen=True)
class CameraModel:
    """A camera's calibration, with the names and meanings of sensor_msgs/CameraInfo (REP-104).

    Matrices are in pixels of images of this size.
    """

    width: int
    """Of the whole image, before region of interest and binning; 0 = not said."""
    height: int
    distortion_model: str
    d: tuple[float, ...]
    k: tuple[float, ...]
    """9 numbers; all 0 where the camera is not calibrated (REP-104)."""
    r: tuple[float, ...]
    """9 numbers; all 0 is taken for the identity."""
    p: tuple[float, ...]
    """12 numbers; K is taken where it is empty."""
    binning: tuple[int, int] = (1, 1)
    """Columns and rows of the camera's pixels in one pixel of the image."""
    roi: tuple[int, int, int, int] | None = None
    """(left, top, width, height) of the part that images show, in pixels before binning."""

    @classmethod
    def pinhole(cls, intrinsics: Intrinsics, width: int, height: int) -> CameraModel:
        """Return the model of images without distortion."""
        k = tuple(float(value) for value in intrinsics.matrix().flatten())
        p = (*k[0:3], 0.0, *k[3:6], 0.0, *k[6:9], 0.0)
        return cls(width, height, "plumb_bob", (0.0,) * 5, k, _IDENTITY, p)

    @classmethod
    def from_message(cls, info: Any) -> CameraModel:
        """Return the model of a CameraInfo, of ROS 2 or (matrices in capitals) of ROS 1."""
        d, k, r, p = (
            tuple(map(float, getattr(info, name, getattr(info, name.upper(), ()))))
            for name in "dkrp"
        )
        roi = info.roi
        shown = (int(roi.x_offset), int(roi.y_offset), int(roi.width), int(roi.height))
        return cls(
            width=int(info.width),
            height=int(info.height),
            distortion_model=str(info.distortion_model),
            d=d,
            k=k,
            r=r,
            p=p,
            binning=(max(int(info.binning_x), 1), max(int(info.binning_y), 1)),
            roi=shown if roi.width and roi.height else None,
        )

    @property
    def is_calibrated(self) -> bool:
        """Whether K describes a camera; REP-104: K[0] = 0 means uncalibrated."""
        return all(map(math.isfinite, self.k)) and self.k[0] > 0 and self.k[4] > 0

    @property
    def is_distorted(self) -> bool:
        """Whether D has a number other than 0."""
        return any(value != 0 for value in self.d)

    @property
    def image_size(self) -> tuple[float, float]:
        """(width, height) of the images that it is for, by region of interest and binning."""
        width, height = (self.width, self.height) if self.roi is None else self.roi[2:]
        return width / self.binning[0], height / self.binning[1]

    def fits_size(self, width: int, height: int) -> bool:
        """Return whether it is for images of this size, but for what binning rounds."""
        return all(abs(a - b) < 1 for a, b in zip(self.image_size, (width, height), strict=True))

    def fits_shape(self, width: int, height: int) -> bool:
        """Return whether it can be of images of this size or, once scaled, of this shape.

        True also where the model does not say its size, and for the full size that comes with a
        region of interest.
        """
        own = self.image_size
        if not all(own) or (width, height) == (self.width, self.height):
            return True
        return same_shape(own, (width, height)) or self.fits_size(width, height)

    def of_view(self, width: int, height: int) -> CameraModel:
        """Return the model of an image of this size: region of interest and binning undone.

        One for another size is scaled, one without a size is taken for the image's, and one for
        another shape says nothing of the image: it is returned as uncalibrated (K = 0). An image
        of the full size that comes with a region of interest is taken for the whole.
        """
        if not self.fits_shape(width, height):
            return CameraModel(width, height, "", (), (0.0,) * 9, (0.0,) * 9, (0.0,) * 12)
        left, top, own_width, own_height = 0, 0, self.width, self.height
        if self.roi is not None and (width, height) != (self.width, self.height):
            left, top, own_width, own_height = self.roi
        if not own_width or not own_height:
            own_width, own_height = width * self.binning[0], height * self.binning[1]
        factors = width / own_width, height / own_height
        k, p = (_cropped_and_scaled(matrix, (left, top), factors) for matrix in (self.k, self.p))
        return replace(self, width=width, height=height, k=k, p=p, binning=(1, 1), roi=None)

    def resized(self, width: int, height: int) -> CameraModel:
        """Return the model of a whole image that is resized to this size, of any shape."""
        factors = width / self.width, height / self.height
        k, p = (_cropped_and_scaled(matrix, (0, 0), factors) for matrix in (self.k, self.p))
        return replace(self, width=width, height=height, k=k, p=p)

    def intrinsics(self, width: int, height: int) -> Intrinsics | None:
        """Return K for images of this size; None where the camera is not calibrated for them."""
        model = self.of_view(width, height)
        return Intrinsics.from_matrix(model.k) if model.is_calibrated else None

    def rectified(self) -> CameraModel:
        """Return the model of the rectified image: D = 0, R = I, K as in P (P as K if empty)."""
        matrix = self.projection()
        k, p = (tuple(map(float, each.flatten())) for each in (matrix[:, :3], matrix))
        return replace(self, distortion_model="plumb_bob", d=(0.0,) * 5, k=k, r=_IDENTITY, p=p)

    def projection(self) -> npt.NDArray[np.float64]:
        """Return P, (3, 4), or K with a column of 0 where a driver left it empty."""
        matrix = np.array(self.p, np.float64)
        usable = matrix.size == 12 and np.isfinite(matrix).all()
        if usable and matrix[0] > 0 and matrix[5] > 0:
            return matrix.reshape(3, 4)
        return np.hstack([_matrix(self.k), np.zeros((3, 1))])

    def distortion_fault(self) -> str:
        """Return why images cannot be rectified by this calibration; empty where they can."""
        if not self.is_calibrated:
            return "camera_info is uncalibrated (K[0] = 0); calibrate the camera"
        if not self.is_distorted:
            return ""
        model, count = self.distortion_model, len(self.d)
        if model not in DISTORTION_MODELS:
            return (
                f"camera_info's distortion model {model!r} is not known; known are "
                f"{', '.join(DISTORTION_MODELS)}; calibrate the camera with one of them"
            )
        if count not in DISTORTION_MODELS[model]:
            numbers = " or ".join(map(str, DISTORTION_MODELS[model]))
            return (
                f"camera_info has {count} numbers in D, {model} takes {numbers}; calibrate the "
                "camera"
            )
        if not all(map(math.isfinite, self.d)):
            return "camera_info has a number in D that is not finite; calibrate the camera"
        return ""

    def border_shift_px(self) -> float:
        """Return how far the lens moves the image's border, the largest distance in pixels.

        0 without distortion, NaN where the model cannot be computed.
        """
        return _border_shift_px(self)

    def distort(self, rays: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return where the lens puts finite rays, (N, 2) at z = 1, in pixels, (N, 2)."""
        k, d = _matrix(self.k), np.array(self.d, np.float64)
        if self.distortion_model == "equidistant":
            found: Any = cv2.fisheye.distortPoints(rays[:, None], k, d)
        else:
            points = np.concatenate([rays, np.ones((len(rays), 1))], axis=1)
            found, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), k, d)
        return np.asarray(found, np.float64).reshape(-1, 2)

    def key(self) -> tuple[object, ...]:
        """Return what tells models of whole images apart; with a NaN, `==` would not."""
        numbers = (np.array(values).tobytes() for values in (self.d, self.k, self.r, self.p))
        return (self.width, self.height, self.distortion_model, *numbers)


def _cropped_and_scaled(
    matrix: tuple[float, ...], corner: tuple[float, float], factors: tuple[float, float]
) -> tuple[float, ...]:
    """Return K (9 numbers) or P (12) of a view cropped at `corner`, then resized by `factors`.

    A matrix that says nothing (0) stays as it is.
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


@lru_cache(maxsize=8)  # asked for each image; cameras seldom change
def _border_shift_px(model: CameraModel) -> float:
    if not model.is_distorted:
        return 0.0
    if model.distortion_fault() or not model.width or not model.height:
        return math.nan
    xs = np.linspace(0, model.width - 1, _BORDER_POINTS)
    ys = np.linspace(0, model.height - 1, _BORDER_POINTS)
    right, low = np.full_like(ys, xs[-1]), np.full_like(xs, ys[-1])
    edges = [(xs, np.zeros_like(xs)), (xs, low), (np.zeros_like(ys), ys), (right, ys)]
    points = np.concatenate([np.stack(edge, axis=-1) for edge in edges])  # (N, 2)
    k = _matrix(model.k)
    rays = (points - [k[0, 2], k[1, 2]]) / [k[0, 0], k[1, 1]]
    return float(np.linalg.norm(model.distort(rays) - points, axis=1).max())


class Rectified(NamedTuple):
    """A rectified image."""

    image: RgbImage
    invalid_mask: Mask | None
    """(H, W), where it shows what the camera did not see; None = nowhere."""


class Rectifier:
    """Removes the distortion from images; keeps the maps for one calibration.

    Args:
        alternative: what would do where an image cannot be rectified, for people.
    """

    def __init__(self, alternative: str = "set rectify to false") -> None:
        self._alternative = alternative
        self._key: tuple[object, ...] = ()
        self._maps: tuple[Any, Any] | None = None
        self._invalid_mask: Mask | None = None

    def rectified(self, image: RgbImage, model: CameraModel) -> Rectified:
        """Return the image as a pinhole camera with P as its K would have taken it.

        `model.rectified()` is that camera's calibration.

        Args:
            image: (H, W, 3).
            model: of this very image, region of interest and binning undone.

        Raises:
            BadImageError: the calibration does not allow it.
        """
        fault = model.distortion_fault()
        if fault:
            raise BadImageError(f"the image cannot be rectified: {fault}, or {self._alternative}")
        key = (image.shape[:2], model.key())
        if key != self._key:
            self._prepare(model, image.shape[1], image.shape[0])
            self._key = key
        if self._maps is not None:
            # Repeated edges rather than black: what lies beyond is marked, but a network looks.
            image = cv2.remap(image, *self._maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return Rectified(image, self._invalid_mask)

    def _prepare(self, model: CameraModel, width: int, height: int) -> None:
        k, r, p = _matrix(model.k), _matrix(model.r), model.projection()[:, :3]
        if not r.any():
            r = np.eye(3)
        self._maps = self._invalid_mask = None
        if not model.is_distorted and np.array_equal(r, np.eye(3)) and np.allclose(k, p):
            return
        d, size = np.array(model.d, np.float64), (width, height)
        fisheye = model.distortion_model == "equidistant" and model.is_distorted
        make = cv2.fisheye.initUndistortRectifyMap if fisheye else cv2.initUndistortRectifyMap
        x, y = make(k, d, r, p, size, cv2.CV_32FC1)
        inside = (x >= -_HALF_PIXEL) & (x <= width - _HALF_PIXEL)
        inside &= (y >= -_HALF_PIXEL) & (y <= height - _HALF_PIXEL)
        inside &= ~_mirrored(x, y)
        if not inside.any():
            raise BadImageError(
                "the image cannot be rectified: by camera_info's R and P nothing of it would be "
                f"seen; calibrate the camera, or {self._alternative}"
            )
        self._invalid_mask = None if inside.all() else ~inside
        self._maps = cv2.convertMaps(x, y, cv2.CV_16SC2)


def _matrix(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return np.array(values, np.float64).reshape(3, 3)


def _mirrored(x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Return where the maps (H, W) show a part of the image again, mirrored.

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
