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

    @classmethod
    def pinhole(cls, intrinsics: Intrinsics, width: int, height: int) -> CameraModel:
        """Return the model of images without distortion."""
        k = tuple(float(value) for value in intrinsics.matrix().flatten())
        p = (*k[0:3], 0.0, *k[3:6], 0.0, *k[6:9], 0.0)
        return cls(width, height, "plumb_bob", (0.0,) * 5, k, _NOT_TURNED, p)

    @property
    def distorted(self) -> bool:
        """Whether straight lines are bent in its images."""
        return any(self.d)

    def rectified(self) -> CameraModel:
        """Return the model of the rectified images (image_rect), whose K is P's left part."""
        if len(self.p) != 12 or self.p[0] <= 0:
            return self
        k = (*self.p[0:3], *self.p[4:7], *self.p[8:11])
        return replace(self, d=(0.0,) * len(self.d), k=k, r=_NOT_TURNED)

    def intrinsics(self, width: int, height: int) -> Intrinsics | None:
        """Return K for images of this size; None where the camera is not calibrated."""
        if not all(map(math.isfinite, self.k)) or self.k[0] <= 0 or self.k[4] <= 0:
            return None
        found = Intrinsics.from_matrix(self.k)
        if self.width and self.height and (self.width, self.height) != (width, height):
            found = found.scaled(width / self.width, height / self.height)
        return found
