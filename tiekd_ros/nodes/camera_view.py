"""What a CameraInfo says of an image: region of interest, binning and rectification undone."""

from __future__ import annotations

from copy import copy as shallow_copy
from typing import NamedTuple

import numpy as np
from sensor_msgs.msg import CameraInfo, RegionOfInterest

from tiekd_ros.images import Mask, RgbImage
from tiekd_ros.nodes.conversions import camera_info_for
from tiekd_ros.rectify import projection

_SAME_SHAPE = 0.01


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


def is_near(one: tuple[float, float], other: tuple[int, int]) -> bool:
    """Say whether two sizes are the same but for what binning rounds."""
    return all(abs(a - b) < 1 for a, b in zip(one, other, strict=True))


def is_for_another_shape(info: CameraInfo, width: int, height: int) -> bool:
    """Say whether a CameraInfo is for images whose sides have another ratio than this one's."""
    expected = described_size(info)
    if not all(expected) or (width, height) == (info.width, info.height):
        return False
    ratio = expected[0] * height / (expected[1] * width)
    return abs(ratio - 1) > _SAME_SHAPE and not is_near(expected, (width, height))


def info_of_view(info: CameraInfo, width: int, height: int) -> CameraInfo:
    """Return the calibration of an image of this size: region of interest and binning undone.

    The same object where nothing has to be changed. A CameraInfo for another size is scaled, one
    without a size is taken for the image's, and one for another shape says nothing of this image:
    K is 0, which means uncalibrated. An image of the full size that comes with a region of
    interest is taken for the whole.
    """
    if is_for_another_shape(info, width, height):
        return _uncalibrated(info, width, height)
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


def _uncalibrated(info: CameraInfo, width: int, height: int) -> CameraInfo:
    return CameraInfo(header=info.header, width=width, height=height)


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
    matrix = projection(info)
    result = shallow_copy(info)
    result.distortion_model = "plumb_bob"
    result.d = [0.0] * 5
    result.k = matrix[:, :3].flatten()
    result.r = np.eye(3).flatten()
    result.p = matrix.flatten()
    return result
