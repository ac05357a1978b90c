"""Pixels as ROS carries them, without ROS: byte orders, rows, files and what is wrong with them."""

from __future__ import annotations

import re
from typing import Any

import cv2
import numpy as np
import pytest

from helpers.teachers import picture
from tiekd_ros.core.encodings import RAW_ENCODINGS, compressed_to_rgb, raw_to_rgb, used_rows
from tiekd_ros.core.errors import BadImageError
from tiekd_ros.core.images import encode_jpeg, encode_png

PATTERNS = ("rggb", "bggr", "gbrg", "grbg")


def raw(encoding: str, pixels: Any, *, step: int = 0, big: bool = False, **changes: Any) -> Any:
    height, width = pixels.shape[:2]
    fields = {"height": height, "width": width, "step": step, "data": pixels.tobytes(), **changes}
    return raw_to_rgb(encoding=encoding, is_bigendian=big, **fields)


def mosaic(image: Any, pattern: str) -> Any:
    """Return what a sensor with this pattern sees, (H, W)."""
    seen = np.empty(image.shape[:2], image.dtype)
    for place, colour in enumerate(pattern):
        rows, columns = slice(place // 2, None, 2), slice(place % 2, None, 2)
        seen[rows, columns] = image[rows, columns, "rgb".index(colour)]
    return seen


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["rgb", "bgr", "rgba", "bgra"])
@pytest.mark.parametrize("padding", [0, 6])
def test_16_bit_colours_keep_their_upper_byte(order: str, big: bool, padding: int) -> None:
    values = np.array([[[0x1234, 0x5678, 0x9ABC]] * 3, [[0xFFFF, 0x0080, 0]] * 3], np.uint16)
    channels = [values[..., "rgb".index(c)] if c != "a" else values[..., 0] for c in order]
    stored = np.stack(channels, -1).astype(">u2" if big else "<u2")
    rows = stored.view(np.uint8).reshape(2, -1)
    data = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xEE).tobytes()
    seen = raw(f"{order}16", stored, big=big, step=rows.shape[1] + padding, data=data)
    assert seen.tolist() == [[[0x12, 0x56, 0x9A]] * 3, [[0xFF, 0, 0]] * 3]


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_16_bit_mosaics_are_those_of_8_bits(pattern: str, big: bool) -> None:
    seen = mosaic(picture(1), pattern)
    wide = (seen.astype(np.uint16) << 8 | 0x7F).astype(">u2" if big else "<u2")
    expected = raw(f"bayer_{pattern}8", seen)
    assert (raw(f"bayer_{pattern}16", wide, big=big) == expected).all()


def test_any_buffer_will_do() -> None:
    pixels = picture()
    for data in (
        bytes(pixels),
        bytearray(pixels),
        memoryview(pixels.tobytes()),
        pixels.reshape(-1),
    ):
        assert (raw("rgb8", pixels, data=data) == pixels).all()
    assert (compressed_to_rgb("png", np.frombuffer(encode_png(pixels), np.uint8)) == pixels).all()


def test_what_is_no_picture_is_refused_and_told_what_would_do() -> None:
    for encoding, changes, reason in (
        ("nv24", {}, "'nv24' is not supported; supported are " + ", ".join(RAW_ENCODINGS)),
        ("32FC1", {}, "32FC1 is a depth image, not a camera's picture; choose the colour image"),
        ("rgb8", {"width": 0}, "0 x 48 pixels"),
        ("rgb8", {"height": 0}, "64 x 0 pixels"),
        ("rgb8", {"width": -1}, "-1 x 48 pixels"),
        ("rgb8", {"data": b""}, "0 bytes of data"),
    ):
        with pytest.raises(BadImageError, match=re.escape(reason)):
            raw(encoding, picture(), **changes)


def test_rows_of_any_encoding_are_views() -> None:
    data = np.arange(20, dtype=np.uint8)
    rows = used_rows("32FC1", 1, 2, 10, data, bytes_per_pixel=4)
    assert rows.tolist() == [[0, 1, 2, 3], [10, 11, 12, 13]]
    assert np.shares_memory(rows, data)


def test_a_file_comes_back_whatever_the_driver_calls_it() -> None:
    for name in (
        "png",
        "PNG",
        "",
        "rgb8; png compressed bgr8",
        "bgr8; png compressed bgr8",
        "rgb8",
    ):
        assert (compressed_to_rgb(name, encode_png(picture())) == picture()).all()
    for name in ("jpeg", "jpg", "mjpeg", "rgb8; jpeg compressed bgr8", ""):
        seen = compressed_to_rgb(name, encode_jpeg(picture()))
        assert np.abs(seen.astype(int) - picture()).mean() < 10


def test_a_file_that_is_not_marked_bgr_has_red_and_blue_exchanged() -> None:
    exchanged = encode_png(np.ascontiguousarray(picture()[..., ::-1]))
    for original in ("rgb8", "bgr8", "rgba8", "bgr16"):
        assert (compressed_to_rgb(f"{original}; png compressed ", exchanged) == picture()).all()


def test_grey_pictures_become_rgb_also_those_made_grey_from_a_mosaic() -> None:
    grey = picture()[..., 0]
    for values, format in (
        (grey, "mono8; png compressed "),
        (grey.astype(np.uint16) << 8 | 0x42, "mono16; png compressed "),
        (grey, "bayer_rggb8; jpeg compressed mono8"),
    ):
        seen = compressed_to_rgb(format, cv2.imencode(".png", values)[1].tobytes())
        assert (seen == grey[..., None]).all()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("bits", [8, 16])
def test_a_mosaic_in_a_file_is_made_colours(pattern: str, bits: int) -> None:
    seen = mosaic(picture(2), pattern)
    values = seen if bits == 8 else seen.astype(np.uint16) << 8
    data = cv2.imencode(".png", values)[1].tobytes()
    got = compressed_to_rgb(f"bayer_{pattern}{bits}; png compressed ", data)
    assert (got == raw(f"bayer_{pattern}8", seen)).all()


@pytest.mark.parametrize(
    ("format", "reason"),
    [
        ("16UC1; compressedDepth png", "depth image"),
        ("h264", r"'h264' is not supported; supported are JPEG and PNG.*image_transport: raw"),
        ("rgb8; tiff compressed bgr8", "tiff compressed bgr8' is not supported"),
        ("jpeg", "no JPEG or PNG image"),
        ("", "no JPEG or PNG image"),
    ],
)
def test_other_formats_are_refused_by_name(format: str, reason: str) -> None:
    with pytest.raises(BadImageError, match=reason):
        compressed_to_rgb(format, b"\0\0\0\1 something else")


def test_a_file_that_is_cut_off_is_refused_rather_than_half_shown() -> None:
    jpeg = encode_jpeg(picture())
    cut = [jpeg[:-100] + bytes(1000)]
    cut += [d[: int(len(d) * s)] for d in (jpeg, encode_png(picture())) for s in (0.3, 0.6, 0.98)]
    for data in cut:
        with pytest.raises(BadImageError, match="cut off"):
            compressed_to_rgb("", data)
    compressed_to_rgb("jpeg", jpeg + bytes(1000))


def test_a_thumbnails_end_is_not_taken_for_the_images() -> None:
    thumbnail, data = encode_jpeg(picture()[:8, :8]), encode_jpeg(picture())
    length = (len(thumbnail) + 2).to_bytes(2, "big")
    with_thumbnail = data[:2] + b"\xff\xe1" + length + thumbnail + data[2:]
    assert compressed_to_rgb("jpeg", with_thumbnail).shape == picture().shape
    with pytest.raises(BadImageError, match="cut off"):
        compressed_to_rgb("jpeg", with_thumbnail[:-50])


def test_a_damaged_png_is_refused_and_a_huge_one_by_its_header() -> None:
    damaged, huge = bytearray(encode_png(picture())), bytearray(encode_png(picture()))
    damaged[60] ^= 0xFF  # in the midst of the pixels
    huge[20:24] = b"\xff\xff\xff\xff"
    for data, reason in ((damaged, "no readable JPEG"), (huge, "is larger than the 50 million")):
        with pytest.raises(BadImageError, match=reason):
            compressed_to_rgb("png", bytes(data))
