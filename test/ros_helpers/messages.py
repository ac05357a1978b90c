"""Images and calibrations as a camera driver sends them."""

from __future__ import annotations

from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from helpers.teachers import picture
from tiekd_ros.core.images import RgbImage
from tiekd_ros.nodes.common.conversions import rgb_to_image

FRAME_ID = "test_camera"
WIDTH, HEIGHT = 96, 72
K = [60.0, 0.0, 47.5, 0.0, 61.0, 35.5, 0.0, 0.0, 1.0]
FIRST_NS = 1_700_000_000_000_000_000
_STEP_NS = 66_666_667  # about 15 Hz


def header(number: int = 0, step_ns: int = _STEP_NS) -> Header:
    """Return the header of a camera's image of this number."""
    stamp = Time(nanoseconds=FIRST_NS + number * step_ns).to_msg()
    return Header(frame_id=FRAME_ID, stamp=stamp)


def image_message(
    number: int = 0,
    pixels: RgbImage | None = None,
    *,
    width: int = WIDTH,
    height: int = HEIGHT,
    step_ns: int = _STEP_NS,
) -> Image:
    """Return an rgb8 image of coloured blocks, another one for each number."""
    shown = picture(number, width, height) if pixels is None else pixels
    return rgb_to_image(shown, header(number, step_ns))


def camera_info(
    k: list[float] | None = None, width: int = WIDTH, height: int = HEIGHT
) -> CameraInfo:
    """Return a calibration for images of this size."""
    values = K if k is None else k
    info = CameraInfo(header=header(), width=width, height=height, distortion_model="plumb_bob")
    info.d = [0.0] * 5
    info.k = values
    info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    info.p = [*values[0:3], 0.0, *values[3:6], 0.0, *values[6:9], 0.0]
    return info


def distorted_info() -> CameraInfo:
    """Return the calibration of a wide lens whose rectified image has a border it did not see."""
    info = camera_info()
    info.d = [-0.3, 0.05, 0.0, 0.0, 0.0]
    info.p = [30.0, 0.0, 47.5, 0.0, 0.0, 30.0, 35.5, 0.0, 0.0, 0.0, 1.0, 0.0]
    return info
