"""The ray of each of a camera's pixels, through whatever lens.

Shapes: H x W, the image's size; N points.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from sensor_msgs.msg import CameraInfo

from tiekd_ros.rectify import distorted

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


def rays_of(info: CameraInfo) -> Rays | None:
    """Return the rays of an image's pixels, None where the camera is uncalibrated (REP-104).

    An image with distortion is as the lens shows it: its rays follow from K and D, and the lens
    puts each within half a pixel of its pixel. Without, P describes it, or K where P is empty.

    Args:
        info: of this very image, width and height included.
    """
    if any(info.d) and info.distortion_model in ("plumb_bob", "rational_polynomial", "equidistant"):
        return _undistorted(info)
    matrix = np.array(info.p, np.float64).reshape(3, 4)[:, :3]
    if not _is_camera(matrix):
        matrix = np.array(info.k, np.float64).reshape(3, 3)
    if not _is_camera(matrix):
        return None
    (fx, _, cx), (_, fy, cy) = matrix[:2]
    columns, rows = np.arange(info.width), np.arange(info.height)[:, None]
    return Rays(((columns - cx) / fx).astype(np.float32), ((rows - cy) / fy).astype(np.float32))


def _is_camera(matrix: _Numbers) -> bool:
    return bool(np.isfinite(matrix).all() and matrix[0, 0] > 0 and matrix[1, 1] > 0)


def _undistorted(info: CameraInfo) -> Rays | None:
    matrix = np.array(info.k, np.float64).reshape(3, 3)
    if not _is_camera(matrix):
        return None
    height, width = info.height, info.width
    pixels = np.indices((height, width), np.float64)[::-1].reshape(2, -1).T  # (H*W, 2)
    distortion = np.array(info.d, np.float64)
    if info.distortion_model == "equidistant":
        found: Any = cv2.fisheye.undistortPoints(pixels[:, None], matrix, distortion[:4])
    else:
        found = cv2.undistortPoints(pixels[:, None], matrix, distortion)
    rays = _checked(info, matrix, pixels, np.asarray(found, np.float64).reshape(-1, 2))
    rays[~(np.abs(rays).max(axis=1) < _STEEPEST)] = np.nan
    x, y = rays.T.reshape(2, height, width).astype(np.float32)
    return Rays(np.ascontiguousarray(x), np.ascontiguousarray(y))


def _checked(info: CameraInfo, k: _Numbers, pixels: _Numbers, rays: _Numbers) -> _Numbers:
    """Return rays (N, 2) that the lens puts where their pixels (N, 2) are, NaN where there is none.

    OpenCV's inverse makes a few steps of an iteration that need not converge, and does not look.
    """
    off = ~(np.linalg.norm(distorted(info, k, rays) - pixels, axis=1) < _EXACT_PX)
    off |= (rays * (pixels - k[:2, 2])).sum(axis=1) < 0  # mirrored: no lens does that
    if off.any():
        rays[off] = _refined(info, k, pixels[off])
    return rays


def _refined(info: CameraInfo, k: _Numbers, pixels: _Numbers) -> _Numbers:
    """Find rays (N, 2) by Newton's method, from those of a pinhole camera on.

    Where the model turns back, it meets the same pixels again with rays that are none: whatever
    gets there goes half the way back to where it was before.
    """
    found: _Numbers = np.full(pixels.shape, np.nan)
    rays: _Numbers = (pixels - k[:2, 2]) / k[[0, 1], [0, 1]]
    before, folds, open_ = np.zeros_like(rays), np.zeros(len(rays), int), np.arange(len(rays))
    for _ in range(_NEWTON_STEPS):
        error, step, folded = _newton(info, k, pixels[open_], rays)
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
    info: CameraInfo, k: _Numbers, pixels: _Numbers, rays: _Numbers
) -> tuple[_Numbers, _Numbers, npt.NDArray[np.bool_]]:
    """Return how far off rays (N, 2) are in pixels, the step to take, and which are folded over."""
    right, down = np.eye(2) * _DIFFERENCE
    at = distorted(info, k, rays)
    along_x = (distorted(info, k, rays + right) - at) / _DIFFERENCE
    along_y = (distorted(info, k, rays + down) - at) / _DIFFERENCE
    error = at - pixels
    determinant = along_x[:, 0] * along_y[:, 1] - along_x[:, 1] * along_y[:, 0]
    with np.errstate(all="ignore"):
        x = (along_y[:, 1] * error[:, 0] - along_y[:, 0] * error[:, 1]) / determinant
        y = (along_x[:, 0] * error[:, 1] - along_x[:, 1] * error[:, 0]) / determinant
    step = np.nan_to_num(np.stack([x, y], axis=-1))
    return error, np.clip(step, -_LONGEST_STEP, _LONGEST_STEP), ~(determinant > 0)
