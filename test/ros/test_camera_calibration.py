"""Calibrations that cannot be right for the images are named with what would do."""

from __future__ import annotations

import pytest
from sensor_msgs.msg import CameraInfo
from tiekd_ros.nodes.camera.calibration import CalibrationCheck

from ros_helpers.messages import HEIGHT, WIDTH, camera_info
from tiekd_ros.core.camera import is_rectified_topic
from tiekd_ros.nodes.common.reporting import ERROR, WARN

SIZE = (WIDTH, HEIGHT)
TOPIC = "/camera/image_raw"


def findings(
    info: CameraInfo,
    size: tuple[int, int] | None = SIZE,
    topic: str = TOPIC,
    *,
    rectify: bool = False,
) -> list[tuple[bytes, str]]:
    return list(CalibrationCheck(rectify).findings(info, size, topic))


def bent(model: str = "plumb_bob", first: float = -0.3) -> CameraInfo:
    info = camera_info()
    info.distortion_model = model
    info.d = [first, *[0.0] * (3 if model == "equidistant" else 4)]
    return info


def test_a_calibration_that_fits_leaves_nothing_to_say() -> None:
    assert findings(camera_info()) == []
    assert findings(camera_info(), None) == []


@pytest.mark.parametrize("focal", [0.0, -60.0, float("nan")])
def test_an_uncalibrated_camera_is_named(focal: float) -> None:
    k = [focal, 0.0, 47.5, 0.0, 61.0, 35.5, 0.0, 0.0, 1.0]
    ((level, text),) = findings(camera_info(k))
    assert level == WARN
    assert "uncalibrated" in text


def test_another_size_of_the_same_shape_is_scaled_and_said() -> None:
    ((level, text),) = findings(camera_info(width=192, height=144))
    assert level == WARN
    assert "camera_info is for 192 x 144, images are 96 x 72; K and P are scaled" in text


def test_another_shape_is_an_error() -> None:
    ((level, text),) = findings(camera_info(width=192, height=108))
    assert level == ERROR
    assert "another shape" in text
    assert "calibrate the camera at this size" in text


def test_distortion_of_another_shapes_calibration_is_not_spoken_of() -> None:
    info = bent()
    info.width, info.height = 192, 108
    ((level, text),) = findings(info)
    assert (level, "another shape" in text) == (ERROR, True)


def test_binning_that_explains_the_size_is_fine() -> None:
    info = camera_info(width=193, height=145)  # odd: binning rounds down
    info.binning_x = info.binning_y = 2
    assert findings(info) == []


@pytest.mark.parametrize("model", ["plumb_bob", "rational_polynomial", "equidistant"])
def test_distortion_that_nobody_takes_out_is_said_in_pixels(model: str) -> None:
    info = bent(model)
    if model == "rational_polynomial":
        info.d = [-0.3, *[0.0] * 7]
    ((level, text),) = findings(info)
    assert level == WARN
    assert "by up to" in text
    assert "set rectify to true" in text


def test_rectified_images_are_not_called_distorted() -> None:
    assert findings(bent(), rectify=True) == []
    assert findings(bent(), topic="/camera/image_rect_color") == []
    assert findings(bent(first=-1e-5)) == []


def test_images_that_are_rectified_already_are_not_to_be_rectified_again() -> None:
    ((level, text),) = findings(bent(), topic="/camera/image_rect/compressed", rectify=True)
    assert level == WARN
    assert "set rectify to false" in text


def test_an_unknown_distortion_model_is_named() -> None:
    ((level, text),) = findings(bent("thin_prism"))
    assert level == WARN
    assert "'thin_prism' is not known" in text


@pytest.mark.parametrize(
    ("topic", "rectified"),
    [
        ("/a/image_rect", True),
        ("/a/image_rect_color/compressed", True),
        ("/a/image_rect_raw", True),
        ("/image_rect/image_raw", False),
        ("/a/image", False),
    ],
)
def test_the_topics_name_says_whether_images_are_rectified(topic: str, rectified: bool) -> None:
    assert is_rectified_topic(topic) == rectified
