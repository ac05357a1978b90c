"""Whether a CameraInfo can be right for the images that come with it."""

from __future__ import annotations

from collections.abc import Iterator

from sensor_msgs.msg import CameraInfo

from tiekd_ros.nodes.camera_view import (
    described_size,
    info_of_view,
    is_for_another_shape,
    is_near,
)
from tiekd_ros.nodes.reporting import ERROR, WARN
from tiekd_ros.rectify import (
    VISIBLE_SHIFT_PX,
    border_shift_px,
    calibration_key,
    is_calibrated,
    is_distorted,
    model_fault,
)

Finding = tuple[bytes, str]

_OTHER_SHAPE = (
    "another shape, so K and P cannot be right and are not used (no points, an uncalibrated "
    "camera_info beside depth); calibrate the camera at this size, or remap image_info to this "
    "camera's"
)


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
        if is_for_another_shape(info, *size):
            yield ERROR, f"{_sizes(expected, size)}: {_OTHER_SHAPE}"
            return
        if all(expected) and not is_near(expected, size):
            yield WARN, f"{_sizes(expected, size)}; K and P are scaled"
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
        if self._shift[1] >= VISIBLE_SHIFT_PX:
            yield (
                WARN,
                "the images are not rectified: the lens moves their border by up to "
                f"{self._shift[1]:.0f} px, and so depth's; set rectify to true, or remap image to "
                "image_rect",
            )


def _sizes(expected: tuple[float, float], size: tuple[int, int]) -> str:
    return f"camera_info is for {expected[0]:g} x {expected[1]:g}, images are {size[0]} x {size[1]}"
