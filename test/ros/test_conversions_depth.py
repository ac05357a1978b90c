"""Depth and calibration to messages and back."""

from __future__ import annotations

import numpy as np
import pytest
from sensor_msgs.msg import CameraInfo

from ros_helpers.messages import K, camera_info, header
from tiekd_ros.core.camera import CameraModel
from tiekd_ros.core.errors import BadImageError
from tiekd_ros.nodes.common.conversions import (
    ImageCanvas,
    camera_info_message,
    depth_to_image,
    image_to_float,
    rgb_to_image,
)

DEPTH = np.array([[0.5, 1.2346, np.nan], [np.inf, -np.inf, 70.0]], np.float32)


def test_metres_come_back_as_they_went_with_nan_and_both_infinities() -> None:
    sent = depth_to_image(DEPTH, header(1))
    assert (sent.encoding, sent.width, sent.height, sent.step) == ("32FC1", 3, 2, 12)
    assert sent.header == header(1)
    np.testing.assert_array_equal(image_to_float(sent), DEPTH)


def test_millimetres_are_rounded_and_zero_where_there_is_no_depth_below_65_m() -> None:
    sent = depth_to_image(DEPTH, header(), "16UC1")
    assert (sent.encoding, sent.step, len(sent.data)) == ("16UC1", 6, 12)
    values = np.frombuffer(sent.data, "<u2").reshape(2, 3)
    assert values.tolist() == [[500, 1235, 0], [0, 0, 0]]


def test_making_a_message_leaves_the_depth_as_it_was() -> None:
    depth = DEPTH.copy()
    for encoding in ("32FC1", "16UC1"):
        depth_to_image(depth, header(), encoding)
    np.testing.assert_array_equal(depth, DEPTH)


def test_a_canvas_serves_images_of_any_size_and_encoding_one_after_the_other() -> None:
    canvas = ImageCanvas()
    for depth in (DEPTH, DEPTH[:, :2], DEPTH + 1, DEPTH.T):
        for encoding in ("32FC1", "16UC1"):
            painted = depth_to_image(depth, header(2), encoding, canvas)
            fresh = depth_to_image(depth, header(2), encoding)
            assert painted == fresh


def test_depth_in_the_other_byte_order_is_read() -> None:
    sent = depth_to_image(DEPTH, header())
    swapped = np.frombuffer(sent.data, np.float32).byteswap().tobytes()
    sent.data, sent.is_bigendian = swapped, 1
    np.testing.assert_array_equal(image_to_float(sent), DEPTH)


def test_reading_depth_refuses_another_encoding() -> None:
    with pytest.raises(BadImageError, match="'rgb8'"):
        image_to_float(rgb_to_image(np.zeros((2, 2, 3), np.uint8), header()))


def test_a_calibration_goes_to_a_model_and_back_with_another_header() -> None:
    info = camera_info()
    info.p[3] = -12.0
    again = camera_info_message(CameraModel.from_message(info), header(7))
    assert again.header == header(7)
    again.header = info.header
    assert again == info


def test_a_resized_calibration_keeps_the_images_corners_at_any_aspect_ratio() -> None:
    info = camera_info()  # 96 x 72
    info.p[3] = -12.0
    resized = camera_info_message(CameraModel.from_message(info).resized(48, 144), header())
    assert (resized.width, resized.height) == (48, 144)
    # x' = (x + 0.5) * 0.5 - 0.5, y' = (y + 0.5) * 2 - 0.5: the image's centre stays its centre.
    assert list(resized.k) == [30.0, 0.0, 23.5, 0.0, 122.0, 71.5, 0.0, 0.0, 1.0]
    expected_p = [30.0, 0.0, 23.5, -6.0, 0.0, 122.0, 71.5, 0.0, 0.0, 0.0, 1.0, 0.0]
    assert list(resized.p) == expected_p


def test_an_uncalibrated_camera_stays_uncalibrated_when_resized() -> None:
    model = CameraModel.from_message(CameraInfo(width=96, height=72)).resized(48, 36)
    assert not any([*model.k, *model.p])


def test_intrinsics_are_those_of_the_images_size() -> None:
    for info, size, expected in (
        (camera_info(), (96, 72), (60.0, 61.0, 47.5, 35.5)),
        (camera_info(), (48, 36), (30.0, 30.5, 23.5, 17.5)),
        (camera_info(width=0, height=0), (48, 36), (60.0, 61.0, 47.5, 35.5)),
    ):
        found = CameraModel.from_message(info).intrinsics(*size)
        assert found is not None
        assert found.as_tuple() == expected


def test_no_intrinsics_are_read_from_a_matrix_that_describes_no_camera() -> None:
    for place, value in ((0, 0.0), (0, -60.0), (4, 0.0), (0, np.nan), (2, np.inf), (5, np.nan)):
        k = list(K)
        k[place] = value
        assert CameraModel.from_message(camera_info(k)).intrinsics(96, 72) is None, (place, value)
