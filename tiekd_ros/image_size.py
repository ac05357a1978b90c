"""Width and height of a JPEG or PNG from its header.

Programs must know how many pixels an image has before they decode it: a PNG of a few kilobytes
can unfold to gigabytes. Formats: PNG (ISO/IEC 15948) section 11.2.2; JPEG (ITU-T T.81) annex B.
"""

from __future__ import annotations

import struct
import zlib

from tiekd_ros.errors import BadImageError

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_LAST = b"IEND"
_JPEG_START = b"\xff\xd8\xff"

# Cameras need a few dozen. Whoever sends megabytes of nothing else is not to be counted through.
_MOST_SEGMENTS, _MOST_FILL_BYTES = 1000, 64
_MOST_CHUNKS = 65_536  # encoders write one for each 8 KiB or more

_MARKER = 0xFF
# SOF0..SOF15 carry the size; C4, C8 and CC in their midst are tables and extensions.
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset((*range(0xD0, 0xD8), 0x01))  # restart markers and TEM
_SCAN, _END = 0xDA, 0xD9


def read_image_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) in pixels as the header of a JPEG or PNG gives them.

    Raises:
        BadImageError: the bytes are neither, or the header is cut off or wrong.
    """
    if data.startswith(_PNG_SIGNATURE):
        size = _png_size(data)
    elif data.startswith(_JPEG_START):
        size = _jpeg_size(data)
    else:
        raise BadImageError(
            f"{len(data)} bytes that begin with {data[:4].hex(' ') or 'nothing'} are neither "
            "JPEG nor PNG; send one encoded JPEG or PNG image"
        )
    if size is None or min(size) < 1:
        raise BadImageError(
            f"{len(data)} bytes begin like an image, but its header is cut off or damaged; "
            "send the whole file"
        )
    return size


def check_whole(data: bytes) -> None:
    """Check that a PNG is all there and undamaged, by its chunks' checksums; others pass.

    OpenCV says it as well, but only after PNG's library has written a line of its own to standard
    error. ISO/IEC 15948, section 5.3.

    Raises:
        BadImageError: a chunk is cut off or damaged, or there are far too many.
    """
    if not data.startswith(_PNG_SIGNATURE):
        return
    at = len(_PNG_SIGNATURE)
    for _ in range(_MOST_CHUNKS):
        body = at + 4  # behind the length: the chunk's type, its content, their checksum
        end = body + 4 + int.from_bytes(data[at:body], "big")
        chunk = memoryview(data)[body:end]
        if end + 4 > len(data) or zlib.crc32(chunk) != int.from_bytes(data[end : end + 4], "big"):
            raise BadImageError(
                f"{len(data)} bytes of a PNG are cut off or damaged at byte {at}; send the whole "
                "file"
            )
        if chunk[:4] == _PNG_LAST:
            return
        at = end + 4
    raise BadImageError(f"a PNG of more than {_MOST_CHUNKS} chunks; send an ordinary one")


def _png_size(data: bytes) -> tuple[int, int] | None:
    if len(data) < 24 or data[8:16] != b"\x00\x00\x00\rIHDR":
        return None
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    at = 2  # behind the start-of-image marker
    for _ in range(_MOST_SEGMENTS):
        at = _behind_fill_bytes(data, at)
        if at + 4 > len(data) or data[at] != _MARKER:
            return None
        marker = data[at + 1]
        if marker in _WITHOUT_LENGTH:
            at += 2
        elif marker in _FRAME_HEADERS:
            if at + 9 > len(data):
                return None
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        elif marker in (_SCAN, _END):
            return None
        else:
            at += 2 + int(struct.unpack(">H", data[at + 2 : at + 4])[0])
    return None


def _behind_fill_bytes(data: bytes, at: int) -> int:
    """Return where the marker's own 0xFF stands; the data's end where there are too many."""
    for place in range(at, at + _MOST_FILL_BYTES):
        if data[place : place + 2] != b"\xff\xff":
            return place
    return len(data)  # a decoder would go on: what stands farther on is not to be taken for a size
