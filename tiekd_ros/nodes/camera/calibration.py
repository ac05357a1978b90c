"""Whether a CameraInfo can be right for the images that come with it."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy as shallow_copy
from typing import NamedTuple

import numpy as np
from sensor_msgs.msg import CameraInfo, RegionOfInterest

from tiekd_ros.core.camera import (
    VISIBLE_SHIFT_PX,
    border_shift_px,
    calibration_key,
    is_calibrated,
    is_distorted,
    is_rectified_topic,
    model_fault,
    projection,
)
from tiekd_ros.core.images import Mask, RgbImage
from tiekd_ros.nodes.common.conversions import camera_info_for
from tiekd_ros.nodes.common.reporting import ERROR, WARN, Finding

_SAME_SHAPE = 0.01


class View(NamedTuple):
    """An image and what is known of how it was taken."""

    image: RgbImage
    info: CameraInfo | None
    """The calibration of this very image; its header is the camera_info's own."""
    invalid_mask: Mask | None = None
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


_OTHER_SHAPE = (
    "another shape, so K and P cannot be right and are not used (no points, an uncalibrated "
    "camera_info beside depth); calibrate the camera at this size, or remap image_info to this "
    "camera's"
)


class CalibrationCheck:
    """Looks at calibrations; what takes long to compute is kept for the last one.

    Args:
        rectify: whether the images are rectified here.
    """

    def __init__(self, rectify: bool) -> None:
        self._rectify = rectify
        self._shift: tuple[tuple[object, ...], float] | None = None  # (calibration, pixels)

    def findings(
        self, info: CameraInfo, size: tuple[int, int] | None, topic: str
    ) -> Iterator[Finding]:
        """Say what is wrong with a calibration in itself, and for these images.

        Args:
            info: as it came.
            size: (width, height) of the images, if one came.
            topic: of the images.
        """
        if not is_calibrated(info):
            yield WARN, "camera_info is uncalibrated (K[0] = 0); calibrate the camera"
            return
        if size is None:
            return
        expected = described_size(info)
        if not info.width or not info.height:
            yield (
                WARN,
                f"camera_info says {info.width} x {info.height} pixels; K and P are taken for the "
                f"images' {size[0]} x {size[1]}; calibrate the camera, or set them in its driver",
            )
        if is_for_another_shape(info, *size):
            yield ERROR, f"{_sizes(expected, size)}: {_OTHER_SHAPE}"
            return
        if all(expected) and not is_near(expected, size):
            yield WARN, f"{_sizes(expected, size)}; K and P are scaled"
        rectified = is_rectified_topic(topic)
        if self._rectify and rectified:
            yield (
                WARN,
                f"rectify is on, but by its name {topic} is rectified already; set rectify to "
                "false, or remap image to the raw images",
            )
        if not self._rectify and not rectified and is_distorted(info):
            yield from self._distortion(info_of_view(info, *size))

    def _distortion(self, info: CameraInfo) -> Iterator[Finding]:
        fault = model_fault(info)
        if fault:
            yield WARN, fault
            return
        key = calibration_key(info)
        if self._shift is None or self._shift[0] != key:
            self._shift = (key, border_shift_px(info))
        if self._shift[1] >= VISIBLE_SHIFT_PX:
            yield (
                WARN,
                "the images are not rectified: the lens moves their border by up to "
                f"{self._shift[1]:.0f} px, and so depth's; set rectify to true, or remap image to "
                "image_rect",
            )


def _sizes(expected: tuple[float, float], size: tuple[int, int]) -> str:
    return f"camera_info is for {expected[0]:g} x {expected[1]:g}, images are {size[0]} x {size[1]}"
