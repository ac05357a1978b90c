"""Width and height are read from headers alone."""

from __future__ import annotations

import contextlib
import struct
import zlib

import cv2
import numpy as np
import pytest

from tiekd_ros.core.errors import BadImageError
from tiekd_ros.core.images import check_whole, read_image_size

IMAGE = np.random.default_rng(0).integers(0, 256, (37, 91, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".png", []),
        (".jpg", []),
        (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
        (".jpg", [cv2.IMWRITE_JPEG_OPTIMIZE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2]),
    ],
)
def test_the_header_agrees_with_the_decoder(suffix, options):
    data = cv2.imencode(suffix, IMAGE, options)[1].tobytes()
    assert read_image_size(data) == (91, 37)


def test_segments_and_fill_bytes_before_the_frame_header_are_passed_over():
    data = cv2.imencode(".jpg", IMAGE)[1].tobytes()
    # A comment that holds what looks like a frame header of 1x1, then fill bytes.
    comment = b"\xff\xc0\x00\x11\x08\x00\x01\x00\x01"
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
    data = cv2.imencode(".jpg", IMAGE)[1].tobytes()
    for length in range(len(data)):
        with contextlib.suppress(BadImageError):
            assert read_image_size(data[:length]) == (91, 37)


def test_a_png_that_is_all_there_passes_and_a_jpeg_is_not_looked_at():
    png = cv2.imencode(".png", IMAGE)[1].tobytes()
    check_whole(png)
    check_whole(png + b"what follows the end does not matter")
    check_whole(cv2.imencode(".jpg", IMAGE)[1].tobytes()[:100])


@pytest.mark.parametrize("keep", [8, 11, 40, 100, -1, -12])
def test_a_png_that_is_cut_off_is_refused(keep):
    with pytest.raises(BadImageError, match="cut off or damaged"):
        check_whole(cv2.imencode(".png", IMAGE)[1].tobytes()[:keep])


def test_a_png_with_one_other_byte_is_refused():
    png = bytearray(cv2.imencode(".png", IMAGE)[1].tobytes())
    png[200] ^= 1
    with pytest.raises(BadImageError, match="cut off or damaged"):
        check_whole(bytes(png))


@pytest.mark.parametrize(
    ("unit", "few", "many"),
    [(b"\xff", 60, 100), (b"\xff\xfe\x00\x02", 900, 1100), (b"\xff\x01", 900, 1100)],
)
def test_a_jpeg_s_header_is_looked_for_behind_so_many_fill_bytes_and_segments(unit, few, many):
    data = cv2.imencode(".jpg", IMAGE)[1].tobytes()
    assert read_image_size(data[:2] + unit * few + data[2:]) == (91, 37)
    with pytest.raises(BadImageError, match="header is cut off or damaged"):
        read_image_size(data[:2] + unit * many + data[2:])


def test_behind_too_many_fill_bytes_no_other_size_than_the_decoders_is_read():
    jpeg = cv2.imencode(".jpg", IMAGE)[1].tobytes()
    forged = b"\xff\xc0\x00\x11\x08\x00\x01\x00\x01\x03"  # a frame header of 1x1
    for fills in range(60, 70):
        begin = jpeg[:2] + b"\xff" * fills + jpeg[2:]
        for at in range(65_537, 65_537 + 80):
            data = begin + bytes(at - len(begin)) + forged
            with contextlib.suppress(BadImageError):
                assert read_image_size(data) == (91, 37)


def test_a_png_of_very_many_chunks_is_refused():
    png = cv2.imencode(".png", IMAGE)[1].tobytes()
    empty = bytes(4) + b"tEXt" + struct.pack(">I", zlib.crc32(b"tEXt"))
    check_whole(png[:33] + empty * 60_000 + png[33:])
    with pytest.raises(BadImageError, match="65536 chunks"):
        check_whole(png[:33] + empty * 70_000 + png[33:])
