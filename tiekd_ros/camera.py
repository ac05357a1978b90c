"""Cameras: pinhole intrinsics, and a whole calibration as ROS knows it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tiekd_ros.errors import BadIntrinsicsError

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
