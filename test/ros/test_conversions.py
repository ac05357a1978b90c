"""Camera images to RGB, from messages made by hand, byte by byte."""

from __future__ import annotations

import array
import importlib.util

import numpy as np
import numpy.typing as npt
import pytest
from sensor_msgs.msg import Image

from ros_helpers.messages import header
from tiekd_ros.core.errors import BadImageError
from tiekd_ros.nodes.common.conversions import image_to_rgb, rgb_to_image, stamp_ns

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


def test_the_answer_is_a_copy_and_the_message_stays_as_it_was() -> None:
    sent = message("rgb8", interleaved(*COLOUR), 3)
    before = bytes(sent.data)
    image = image_to_rgb(sent)
    image[:] = 0
    assert bytes(sent.data) == before


def test_without_a_copy_an_rgb_message_is_looked_at_in_place() -> None:
    sent = message("rgb8", interleaved(*COLOUR), 3)
    image = image_to_rgb(sent, copy=False)
    assert np.shares_memory(image, np.frombuffer(sent.data, np.uint8))
    padded = image_to_rgb(message("rgb8", interleaved(*COLOUR), 3, padding=5), copy=False)
    assert padded.flags.c_contiguous
    np.testing.assert_array_equal(image, padded)


def test_an_rgb_image_comes_back_from_its_message() -> None:
    pixels = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3)
    sent = rgb_to_image(pixels, header(3))
    assert (sent.encoding, sent.step, stamp_ns(sent.header)) == ("rgb8", 15, stamp_ns(header(3)))
    assert (image_to_rgb(sent) == pixels).all()


@pytest.mark.parametrize(("height", "width"), [(0, 3), (2, 0), (0, 0)])
def test_an_image_without_pixels_is_refused(height: int, width: int) -> None:
    with pytest.raises(BadImageError, match=f"{width} x {height}"):
        image_to_rgb(Image(encoding="rgb8", height=height, width=width))


def test_an_image_with_too_few_bytes_is_refused() -> None:
    sent = message("rgb8", interleaved(*COLOUR), 3)
    sent.data = sent.data[:-1]
    with pytest.raises(BadImageError, match=r"17 bytes of data.*take 18.*truncated"):
        image_to_rgb(sent)


def test_a_step_shorter_than_a_row_is_refused() -> None:
    sent = message("rgb8", interleaved(*COLOUR), 3)
    sent.step = 8
    with pytest.raises(BadImageError, match="step is 8 bytes"):
        image_to_rgb(sent)


def test_packed_yuv_of_odd_width_is_refused() -> None:
    rows = np.zeros((2, 6), np.uint8)
    with pytest.raises(BadImageError, match=r"3 x 2 uyvy"):
        image_to_rgb(message("uyvy", rows, 3))


@pytest.mark.skipif(HAS_CV_BRIDGE, reason="cv_bridge takes what this package does not know")
def test_an_unknown_encoding_is_named_with_those_that_would_do() -> None:
    with pytest.raises(BadImageError) as refusal:
        image_to_rgb(message("nv24", np.zeros((2, 4), np.uint8), 2))
    text = str(refusal.value)
    for name in ("'nv24'", "rgb8", "bayer_rggb8", "mono16", "cv_bridge"):
        assert name in text
