"""Image and depth codecs, and image sizes from headers alone."""

import contextlib
import struct
import zlib
from functools import partial

import cv2
import numpy as np
import pytest

from tiekd_ros.core.errors import BadDepthError, BadImageError
from tiekd_ros.core.images import (
    check_rgb,
    check_whole,
    decode_depth_png,
    decode_image,
    decode_share_png,
    encode_depth_png,
    encode_jpeg,
    encode_png,
    encode_share_png,
    read_image_size,
    resize_depth,
    thumbnail,
    thumbnail_distances,
)

IMAGE = np.random.default_rng(0).integers(0, 256, (37, 91, 3), dtype=np.uint8)


def test_colours_keep_their_order_through_jpeg_and_every_pixel_through_png():
    red = np.zeros((32, 48, 3), np.uint8)
    red[..., 0] = 250
    decoded = decode_image(encode_jpeg(red))
    assert decoded.shape == red.shape
    assert decoded[..., 0].mean() > 240
    assert decoded[..., 2].mean() < 10
    np.testing.assert_array_equal(decode_image(encode_png(IMAGE)), IMAGE)


def test_what_is_no_image_or_no_depth_map_is_refused_with_what_came():
    for data in (b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(40)):
        with pytest.raises(BadImageError, match=f"{len(data)} bytes"):
            decode_image(data)
        with pytest.raises(BadDepthError, match=f"{len(data)} bytes"):
            decode_depth_png(data)
    for shape, kind in (
        ((4, 4), np.uint8),
        ((4, 4, 4), np.uint8),
        ((4, 4, 3), np.float32),
        ((0, 4, 3), np.uint8),
    ):
        with pytest.raises(BadImageError, match=np.dtype(kind).name) as caught:
            check_rgb(np.zeros(shape, kind))
        assert str(shape) in str(caught.value)
    with pytest.raises(BadDepthError, match=r"\(H, W\), got \(2, 2, 1\)"):
        encode_depth_png(np.ones((2, 2, 1), np.float32))
    of_8_bits = cv2.imencode(".png", np.ones((4, 4), np.uint8))[1].tobytes()
    for decode in (decode_depth_png, partial(decode_share_png, max_depth_m=80.0)):
        with pytest.raises(BadDepthError, match=r"16 bits, got uint8.*save it as uint16"):
            decode(of_8_bits)


def test_depth_survives_storage_to_half_a_unit_and_unknown_stays_unknown():
    depth = np.random.default_rng(0).uniform(0.01, 250, (24, 32)).astype(np.float32)
    depth[0, :5] = np.nan, np.inf, -np.inf, -1.0, 256.1
    decoded = decode_depth_png(encode_depth_png(depth))
    assert np.isnan(decoded[0, :5]).all()
    rest = np.isfinite(decoded)
    assert rest.sum() == depth.size - 5
    assert np.abs(decoded - depth)[rest].max() <= 0.5 / 256 + 1e-6
    data = cv2.imencode(".png", np.array([[0, 1500]], np.uint16))[1].tobytes()
    np.testing.assert_array_equal(decode_depth_png(data, 1000.0), np.float32([[np.nan, 1.5]]))


def test_thumbnails_of_one_view_are_nearer_than_those_of_two():
    rng = np.random.default_rng(0)
    image, other = rng.integers(0, 256, (2, 6, 8, 3), np.uint8).repeat(20, 1).repeat(20, 2)
    again = decode_image(encode_jpeg(image))
    small = thumbnail(image)
    assert small.shape == (24, 32)
    assert small.dtype == np.float32
    same, different = thumbnail_distances(small, np.stack([thumbnail(again), thumbnail(other)]))
    assert same < 2 < 10 < different


@pytest.mark.parametrize("max_depth_m", [80.0, 10.0])
def test_published_teacher_maps_are_truncated_shares_of_the_range(max_depth_m):
    depth = np.random.default_rng(0).uniform(0.01, max_depth_m, (24, 32)).astype(np.float32)
    depth[0, :6] = np.nan, np.inf, -1.0, 1.01 * max_depth_m, 0.0, max_depth_m
    data = encode_share_png(depth, max_depth_m)
    stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert stored[0, :6].tolist() == [0, 0, 0, 65535, 0, 65535]
    np.testing.assert_array_equal(
        stored[1:], np.floor(depth[1:] / np.float32(max_depth_m) * np.float32(65535))
    )
    decoded = decode_share_png(data, max_depth_m)
    assert np.isnan(decoded[0, [0, 1, 2, 4]]).all()
    assert decoded[0, 3] == max_depth_m  # beyond the range is far, not unknown
    lost = depth[1:] - decoded[1:]
    assert lost.min() > -1e-5
    assert lost.max() <= max_depth_m / 65535 + 1e-5


def test_resizing_depth_is_smooth_on_a_surface_and_invents_nothing_at_its_edge():
    depth = np.tile(np.array([10.0, 10.2, 10.4, 10.6, 2.0, 2.04, 2.08, 2.12], np.float32), (4, 1))
    assert resize_depth(depth, 4, 8) is depth
    row = resize_depth(depth, 8, 16)[0]
    assert row[[1, 2]] == pytest.approx([10.05, 10.15])
    assert row[[7, 8]] == pytest.approx([10.6, 2.0])  # and not 8.45 and 4.15
    depth[:, 3] = np.nan
    row = resize_depth(depth, 8, 16)[0]
    assert np.isnan(row[6:8]).all()
    assert row[[1, 5, 8]] == pytest.approx([10.05, 10.4, 2.0])


def encoded(suffix: str, *options: int) -> bytes:
    return cv2.imencode(suffix, IMAGE, options)[1].tobytes()


def test_the_header_agrees_with_the_decoder():
    for data in (
        encoded(".png"),
        encoded(".jpg"),
        encoded(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        encoded(".jpg", cv2.IMWRITE_JPEG_OPTIMIZE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
    ):
        assert read_image_size(data) == (91, 37)
    # A comment that holds what looks like a frame header of 1x1, then fill bytes.
    data, comment = encoded(".jpg"), b"\xff\xc0\x00\x11\x08\x00\x01\x00\x01"
    segment = b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment
    assert read_image_size(data[:2] + segment + b"\xff\xff" + data[2:]) == (91, 37)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF89a" + bytes(20),
        b"\x89PNG\r\n\x1a\n",
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(8),
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rCgBI" + struct.pack(">II", 5, 5),
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe0\xff\xff",
        b"\xff\xd8\xff\xda\x00\x02",
        b"\xff\xd8\xff\xe0\x00\x02garbage",
        b"\xff\xd8\xff\xc0\x00\x11\x08\x00",
    ],
)
def test_what_has_no_readable_header_is_refused(data):
    with pytest.raises(BadImageError, match=f"{len(data)} bytes"):
        read_image_size(data)


def test_every_truncation_is_either_read_right_or_refused():
    data = encoded(".jpg")
    for length in range(len(data)):
        with contextlib.suppress(BadImageError):
            assert read_image_size(data[:length]) == (91, 37)


def test_a_png_is_whole_if_every_chunk_is_there_and_undamaged():
    png = encoded(".png")
    check_whole(png)
    check_whole(png + b"what follows the end does not matter")
    check_whole(encoded(".jpg")[:100])  # is not looked at
    damaged = bytearray(png)
    damaged[200] ^= 1
    for data in (bytes(damaged), *(png[:keep] for keep in (8, 11, 40, 100, -1, -12))):
        with pytest.raises(BadImageError, match="cut off or damaged"):
            check_whole(data)
    empty = bytes(4) + b"tEXt" + struct.pack(">I", zlib.crc32(b"tEXt"))
    check_whole(png[:33] + empty * 60_000 + png[33:])
    with pytest.raises(BadImageError, match="65536 chunks"):
        check_whole(png[:33] + empty * 70_000 + png[33:])


@pytest.mark.parametrize(
    ("unit", "few", "many"),
    [(b"\xff", 60, 100), (b"\xff\xfe\x00\x02", 900, 1100), (b"\xff\x01", 900, 1100)],
)
def test_a_jpeg_s_header_is_looked_for_behind_so_many_fill_bytes_and_segments(unit, few, many):
    data = encoded(".jpg")
    assert read_image_size(data[:2] + unit * few + data[2:]) == (91, 37)
    with pytest.raises(BadImageError, match="header is cut off or damaged"):
        read_image_size(data[:2] + unit * many + data[2:])


def test_behind_too_many_fill_bytes_no_other_size_than_the_decoders_is_read():
    jpeg = encoded(".jpg")
    forged = b"\xff\xc0\x00\x11\x08\x00\x01\x00\x01\x03"  # a frame header of 1x1
    for fills in range(60, 70):
        begin = jpeg[:2] + b"\xff" * fills + jpeg[2:]
        for at in range(65_537, 65_537 + 80):
            data = begin + bytes(at - len(begin)) + forged
            with contextlib.suppress(BadImageError):
                assert read_image_size(data) == (91, 37)
