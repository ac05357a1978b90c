"""Images, depth and calibrations to messages and back."""

from __future__ import annotations

import array
import importlib.util

import numpy as np
import numpy.typing as npt
import pytest
from sensor_msgs.msg import CameraInfo, Image

from ros_helpers.messages import K, camera_info, header
from tiekd_ros.core.camera import CameraModel
from tiekd_ros.core.errors import BadImageError
from tiekd_ros.nodes.common.conversions import (
    ImageCanvas,
    camera_info_message,
    depth_to_image,
    image_to_float,
    image_to_rgb,
    rgb_to_image,
    stamp_ns,
)

COLOUR = (200, 100, 50)
HAS_CV_BRIDGE = importlib.util.find_spec("cv_bridge") is not None


def message(
    encoding: str, rows: npt.NDArray[np.uint8], width: int, *, padding: int = 0, big: bool = False
) -> Image:
    """Make a message of rows (H, used bytes), with so many bytes of rubbish after each row."""
    height = rows.shape[0]
    padded = np.full((height, rows.shape[1] + padding), 0xEE, np.uint8)
    padded[:, : rows.shape[1]] = rows
    data = array.array("B", padded.tobytes())
    return Image(
        header=header(), height=height, width=width, encoding=encoding, is_bigendian=int(big),
        step=padded.shape[1], data=data,
    )  # fmt: skip


def interleaved(*channels: int) -> npt.NDArray[np.uint8]:
    """Return 2 rows of 3 pixels with these channels; the last pixel is black."""
    row = [*channels, *channels, *[0] * len(channels)]
    return np.array([row, row], np.uint8)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("encoding", "channels", "expected"),
    [
        ("rgb8", (200, 100, 50), COLOUR),
        ("bgr8", (50, 100, 200), COLOUR),
        ("8UC3", (50, 100, 200), COLOUR),
        ("rgba8", (200, 100, 50, 7), COLOUR),
        ("bgra8", (50, 100, 200, 7), COLOUR),
        ("mono8", (90,), (90, 90, 90)),
        ("8UC1", (90,), (90, 90, 90)),
    ],
)
def test_channels_are_put_in_order_and_row_padding_is_skipped(
    encoding: str, channels: tuple[int, ...], expected: tuple[int, ...], padding: int
) -> None:
    image = image_to_rgb(message(encoding, interleaved(*channels), 3, padding=padding))
    assert image.shape == (2, 3, 3)
    assert image.dtype == np.uint8
    assert image.tolist() == [[list(expected), list(expected), [0, 0, 0]]] * 2


@pytest.mark.parametrize("encoding", ["mono16", "16UC1"])
@pytest.mark.parametrize("big", [False, True])
def test_16_bit_grey_keeps_its_upper_byte_in_either_byte_order(encoding: str, big: bool) -> None:
    values = np.array([[0x0012, 0xAB34, 0xFFFF]], ">u2" if big else "<u2")
    sent = message(encoding, values.view(np.uint8), 3, padding=3, big=big)
    assert image_to_rgb(sent)[..., 1].tolist() == [[0x00, 0xAB, 0xFF]]


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_mosaics_give_their_colours(pattern: str) -> None:
    levels = dict(zip("rgb", COLOUR, strict=True))
    cell = np.array([levels[c] for c in pattern], np.uint8).reshape(2, 2)
    image = image_to_rgb(message(f"bayer_{pattern}8", np.tile(cell, (4, 4)), 8, padding=2))
    assert (image[2:-2, 2:-2] == COLOUR).all()


@pytest.mark.parametrize(
    ("encoding", "order"),
    [("uyvy", "uyvy"), ("yuv422", "uyvy"), ("yuyv", "yuyv"), ("yuv422_yuy2", "yuyv")],
)
def test_packed_yuv_gives_red_for_red(encoding: str, order: str) -> None:
    red = {"y": 82, "u": 90, "v": 240}  # BT.601, limited range
    row = np.array([red[c] for c in order] * 2, np.uint8)
    image = image_to_rgb(message(encoding, np.stack([row, row]), 4, padding=4))
    assert image.shape == (2, 4, 3)
    assert (image[..., 0] > 245).all()
    assert (image[..., 1:] < 10).all()


def test_the_last_row_needs_no_padding() -> None:
    sent = message("rgb8", interleaved(*COLOUR), 3, padding=4)
    sent.data = sent.data[:-4]
    assert image_to_rgb(sent)[1, 0].tolist() == list(COLOUR)


def test_an_array_is_a_copy_of_the_message_unless_a_view_is_asked_for() -> None:
    sent = message("rgb8", interleaved(*COLOUR), 3)
    data = np.frombuffer(sent.data, np.uint8)
    assert not np.shares_memory(image_to_rgb(sent), data)
    image = image_to_rgb(sent, copy=False)
    assert np.shares_memory(image, data)
    padded = image_to_rgb(message("rgb8", interleaved(*COLOUR), 3, padding=5), copy=False)
    assert padded.flags.c_contiguous
    np.testing.assert_array_equal(image, padded)


def test_an_rgb_image_comes_back_from_its_message() -> None:
    pixels = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3)
    sent = rgb_to_image(pixels, header(3))
    assert (sent.encoding, sent.step, stamp_ns(sent.header)) == ("rgb8", 15, stamp_ns(header(3)))
    assert (image_to_rgb(sent) == pixels).all()


def test_an_image_whose_size_and_bytes_do_not_fit_is_refused() -> None:
    short, narrow = (message("rgb8", interleaved(*COLOUR), 3) for _ in range(2))
    short.data, narrow.step = short.data[:-1], 8
    for sent, reason in (
        (Image(encoding="rgb8", height=0, width=3), "3 x 0"),
        (Image(encoding="rgb8", height=2, width=0), "0 x 2"),
        (Image(encoding="rgb8", height=0, width=0), "0 x 0"),
        (short, r"17 bytes of data.*take 18.*truncated"),
        (narrow, "step is 8 bytes"),
        (message("uyvy", np.zeros((2, 6), np.uint8), 3), "3 x 2 uyvy"),
    ):
        with pytest.raises(BadImageError, match=reason):
            image_to_rgb(sent)


@pytest.mark.skipif(HAS_CV_BRIDGE, reason="cv_bridge takes what this package does not know")
def test_an_unknown_encoding_is_named_with_those_that_would_do() -> None:
    with pytest.raises(BadImageError) as refusal:
        image_to_rgb(message("nv24", np.zeros((2, 4), np.uint8), 2))
    text = str(refusal.value)
    for name in ("'nv24'", "rgb8", "bayer_rggb8", "mono16", "cv_bridge"):
        assert name in text


# Depth and calibrations.

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


def test_a_canvas_serves_images_of_any_size_and_encoding_and_leaves_the_depth_as_it_was() -> None:
    canvas, before = ImageCanvas(), DEPTH.copy()
    for depth in (DEPTH, DEPTH[:, :2], DEPTH + 1, DEPTH.T):
        for encoding in ("32FC1", "16UC1"):
            painted = depth_to_image(depth, header(2), encoding, canvas)
            assert painted == depth_to_image(depth, header(2), encoding)
    np.testing.assert_array_equal(DEPTH, before)


def test_depth_in_the_other_byte_order_is_read_and_another_encoding_refused() -> None:
    sent = depth_to_image(DEPTH, header())
    swapped = np.frombuffer(sent.data, np.float32).byteswap().tobytes()
    sent.data, sent.is_bigendian = swapped, 1
    np.testing.assert_array_equal(image_to_float(sent), DEPTH)
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
    uncalibrated = CameraModel.from_message(CameraInfo(width=96, height=72)).resized(48, 36)
    assert not any([*uncalibrated.k, *uncalibrated.p])


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
