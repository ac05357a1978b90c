"""Whether a CameraInfo can be right for the images that come with it."""

from __future__ import annotations

from collections.abc import Iterator

from sensor_msgs.msg import CameraInfo

from tiekd_ros.nodes.rectify import (
    border_shift_px,
    calibration_key,
    described_size,
    info_of_view,
    is_calibrated,
    is_distorted,
    model_fault,
)
from tiekd_ros.nodes.reporting import ERROR, WARN

Finding = tuple[bytes, str]

_VISIBLE_SHIFT_PX = 1.0
"""Distortion of less than this at the border is none that a depth image shows."""
_SAME_SHAPE = 0.01


def comes_rectified(topic: str) -> bool:
    """Say whether a topic's name calls its images rectified: image_rect, image_rect_color, ..."""
    name = topic.removesuffix("/compressed").rpartition("/")[2]
    return name.startswith("image_rect")


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
        if all(expected) and not _near(expected, size):
            yield _other_size(expected, size)
        rectified = comes_rectified(topic)
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
        if self._shift[1] >= _VISIBLE_SHIFT_PX:
            yield (
                WARN,
                "the images are not rectified: the lens moves their border by up to "
                f"{self._shift[1]:.0f} px, and so depth's; set rectify to true, or remap image to "
                "image_rect",
            )


def _near(one: tuple[float, float], other: tuple[int, int]) -> bool:
    return all(abs(a - b) < 1 for a, b in zip(one, other, strict=True))  # binning rounds


def _other_size(expected: tuple[float, float], size: tuple[int, int]) -> Finding:
    text = f"camera_info is for {expected[0]:g} x {expected[1]:g}, images are {size[0]} x {size[1]}"
    if abs(expected[0] * size[1] / (expected[1] * size[0]) - 1) > _SAME_SHAPE:
        return ERROR, (
            f"{text}: another shape, so K and P cannot be right; calibrate the camera at this size"
        )
    return WARN, f"{text}; K and P are scaled"
