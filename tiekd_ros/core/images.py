"""Images, depth maps and masks: their files, their sizes, and KITTI's crop.

Images are uint8 RGB arrays of shape (H, W, 3). Depth maps are float32 arrays of shape
(H, W) in metres along the optical axis; NaN means unknown.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from tiekd_ros.core.errors import BadDepthError, BadImageError

RgbImage = npt.NDArray[np.uint8]
DepthMap = npt.NDArray[np.float32]
Thumbnail = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

DEPTH_UNITS_PER_M = 256.0
"""Scale of stored depth labels, KITTI's convention: uint16 = metres * 256, 0 = unknown."""

SURFACE_TOLERANCE = 0.05
"""Share of a depth by which another one may differ and be on the same surface."""
_THUMBNAIL_SIZE = (32, 24)  # (width, height): enough to tell views apart, small to compare


def encode_jpeg(image: RgbImage, quality: int = 92) -> bytes:
    """Encode an RGB image as JPEG."""
    check_rgb(image)
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return encode_pixels(".jpg", bgr, cv2.IMWRITE_JPEG_QUALITY, quality)


def encode_png(image: RgbImage) -> bytes:
    """Encode an RGB image as PNG, without loss and quickly rather than small."""
    check_rgb(image)
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return encode_pixels(".png", bgr, cv2.IMWRITE_PNG_COMPRESSION, 1)


def encode_pixels(suffix: str, pixels: npt.NDArray[Any], *options: int) -> bytes:
    """Encode an array as OpenCV has it: colours as BGR, one channel as it is.

    Args:
        suffix: `.jpg` or `.png`.
        pixels: uint8 or uint16, (H, W) or (H, W, 3).
        options: OpenCV's, each followed by its value.
    """
    ok, data = cv2.imencode(suffix, pixels, options)
    if not ok:
        raise BadImageError(f"OpenCV could not encode {pixels.dtype} of shape {pixels.shape}")
    return data.tobytes()


def decode_pixels(data: bytes, flags: int = cv2.IMREAD_UNCHANGED) -> npt.NDArray[Any] | None:
    """Decode a JPEG or PNG to an array as OpenCV has it; None where it cannot."""
    if not data:
        return None
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None


def decode_image(data: bytes, *, as_stored: bool = False) -> RgbImage:
    """Decode JPEG or PNG bytes to an RGB image.

    Args:
        data: the encoded image.
        as_stored: leave it as its rows lie, whatever EXIF says of how the camera was held: the
            size is the header's then, and intrinsics of the stored image hold.

    Raises:
        BadImageError: the bytes are no image that OpenCV can read.
    """
    flags = cv2.IMREAD_COLOR | (cv2.IMREAD_IGNORE_ORIENTATION if as_stored else 0)
    bgr = decode_pixels(data, flags)
    if bgr is None:
        raise BadImageError(f"{len(data)} bytes are no readable JPEG or PNG image")
    rgb: RgbImage = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    return rgb


def check_rgb(image: npt.NDArray[np.generic]) -> None:
    """Raise BadImageError unless `image` is a non-empty uint8 array of shape (H, W, 3)."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise BadImageError(
            f"expected a non-empty RGB image, uint8 of shape (H, W, 3), got {image.dtype} "
            f"of shape {image.shape}"
        )


def encode_depth_png(depth: DepthMap, units_per_m: float = DEPTH_UNITS_PER_M) -> bytes:
    """Encode metres as 16-bit PNG; unknown and out of range become 0.

    With 256 units to the metre, precision is 1/256 m and the largest depth 255.99 m.
    """
    _check_depth(depth)
    units = np.nan_to_num(depth.astype(np.float64) * units_per_m, nan=0, posinf=0, neginf=0)
    return _encode_uint16(np.rint(units))


def decode_depth_png(data: bytes, units_per_m: float = DEPTH_UNITS_PER_M) -> DepthMap:
    """Decode a 16-bit PNG to metres; 0 becomes NaN (unknown).

    Raises:
        BadDepthError: the bytes are no single-channel 16-bit PNG.
    """
    raw = _decode_uint16(data)
    depth: DepthMap = raw.astype(np.float32) / np.float32(units_per_m)
    depth[raw == 0] = np.nan
    return depth


def encode_share_png(depth: DepthMap, max_depth_m: float) -> bytes:
    """Encode metres as 16-bit PNG of the share of `max_depth_m`, as published teacher maps.

    Stored is `depth / max_depth_m * 65535` in float32, truncated (not rounded). Unknown, infinite
    and negative become 0; what is farther than `max_depth_m` becomes that, since 0 would say
    "unknown", which the published losses take for nearest. One step is 1.22 mm of 80 m, 0.15 mm
    of 10 m.
    """
    _check_depth(depth)
    share = depth.astype(np.float32) / np.float32(max_depth_m) * np.float32(65535)
    known = np.nan_to_num(share, nan=0, posinf=0, neginf=0)
    return _encode_uint16(np.minimum(known, np.float32(65535)))


def decode_share_png(data: bytes, max_depth_m: float) -> DepthMap:
    """Decode a published teacher map (uint16, v / 65535 * max) to metres; 0 becomes NaN.

    Raises:
        BadDepthError: the bytes are no single-channel 16-bit PNG.
    """
    raw = _decode_uint16(data)
    depth: DepthMap = raw.astype(np.float32) / np.float32(65535) * np.float32(max_depth_m)
    depth[raw == 0] = np.nan
    return depth


def _check_depth(depth: DepthMap) -> None:
    if depth.ndim != 2 or depth.size == 0:
        raise BadDepthError(f"a depth map has shape (H, W), got {depth.shape}")


def _encode_uint16(units: npt.NDArray[np.floating]) -> bytes:
    """Encode numbers, (H, W), truncated to uint16; what does not fit becomes 0."""
    stored = np.where((units < 0) | (units >= 65536), 0, units).astype(np.uint16)
    return encode_pixels(".png", stored)


def _decode_uint16(data: bytes) -> npt.NDArray[np.uint16]:
    raw = decode_pixels(data)
    if raw is None:
        raise BadDepthError(f"{len(data)} bytes are no readable PNG depth map")
    if raw.dtype != np.uint16 or raw.ndim != 2:
        raise BadDepthError(
            f"a depth PNG has one channel of 16 bits, got {raw.dtype} of shape {raw.shape}; "
            "save it as uint16"
        )
    return raw


def resize_depth(depth: DepthMap, height: int, width: int) -> DepthMap:
    """Bring a depth map to another size: bilinear on a surface, nearest at its edge.

    Halfway between two surfaces, or between a known and an unknown depth, is nothing.
    """
    if depth.shape == (height, width):
        return depth
    size = (width, height)
    smooth: DepthMap = cv2.resize(depth, size, interpolation=cv2.INTER_LINEAR)
    nearest = cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST_EXACT)
    on_surface = cv2.absdiff(smooth, nearest) <= SURFACE_TOLERANCE * nearest  # not where it is NaN
    np.copyto(smooth, nearest, where=~on_surface)
    return smooth


def shrink_map(values: npt.NDArray[np.float32], max_side: int) -> npt.NDArray[np.float32]:
    """Return a map (H, W) whose longer side has at most `max_side` pixels; 0 = as it is.

    Takes the nearest pixel: a mean across the edge of an object would be the depth of nothing.
    """
    height, width = values.shape[:2]
    if max_side < 1 or max(height, width) <= max_side:
        return values
    scale = max_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small: npt.NDArray[np.float32] = cv2.resize(values, size, interpolation=cv2.INTER_NEAREST_EXACT)
    return small


def fit_mask(mask: Mask, height: int, width: int) -> Mask:
    """Return a mask (H, W) at another size, by nearest pixels."""
    if mask.shape == (height, width):
        return mask
    values = mask.astype(np.uint8)
    size = (width, height)
    resized: Mask = cv2.resize(values, size, interpolation=cv2.INTER_NEAREST_EXACT) > 0
    return resized


def encode_mask_png(mask: Mask) -> bytes:
    """Encode a mask (H, W) as PNG of 1 bit per pixel."""
    values = mask.astype(np.uint8) * np.uint8(255)
    how = (cv2.IMWRITE_PNG_BILEVEL, 1, cv2.IMWRITE_PNG_COMPRESSION, 9)  # a third of the default's
    return encode_pixels(".png", values, *how)


def decode_mask_png(data: bytes) -> Mask:
    """Decode a PNG of `encode_mask_png`.

    Raises:
        BadImageError: the bytes are no readable image.
    """
    return decode_image(data)[..., 0] > 0


def mask_depth(depth: DepthMap, mask_png: bytes | None) -> DepthMap:
    """Return depth (h, w) of an image's view at any size, NaN where its mask is set.

    Raises:
        BadImageError: the mask is damaged.
    """
    if mask_png is None:
        return depth
    invalid = fit_mask(decode_mask_png(mask_png), depth.shape[0], depth.shape[1])
    return np.where(invalid, np.float32(np.nan), depth)


def thumbnail(image: RgbImage) -> Thumbnail:
    """Return a small grey picture of shape (24, 32), float32 0..255, by area averaging."""
    check_rgb(image)
    small = cv2.resize(image, _THUMBNAIL_SIZE, interpolation=cv2.INTER_AREA)
    grey: Thumbnail = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return grey


def thumbnail_distances(one: Thumbnail, many: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the mean absolute grey-level difference of `one` to each of `many` (N, 24, 32)."""
    distances: npt.NDArray[np.float32] = np.abs(many - one[None]).mean(axis=(1, 2))
    return distances


PNG_START, PNG_LAST = b"\x89PNG\r\n\x1a\n", b"IEND"
JPEG_START = b"\xff\xd8\xff"

# Cameras need a few dozen; a file with megabytes of them is hostile.
_MOST_SEGMENTS, _MOST_FILL_BYTES = 1000, 64
_MOST_CHUNKS = 65_536  # encoders write one for each 8 KiB or more

_MARKER = 0xFF
# SOF0..SOF15 carry the size; C4, C8 and CC in their midst are tables and extensions.
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset((*range(0xD0, 0xD8), 0x01))  # restart markers and TEM
_SCAN, _END = 0xDA, 0xD9


def read_image_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) in pixels from the header of a JPEG or PNG.

    The size must be known before an image is decoded: a PNG of a few kilobytes can unfold to
    gigabytes. Formats: PNG (ISO/IEC 15948) section 11.2.2; JPEG (ITU-T T.81) annex B.

    Raises:
        BadImageError: the bytes are neither, or the header is cut off or wrong.
    """
    if data.startswith(PNG_START):
        size = _png_size(data)
    elif data.startswith(JPEG_START):
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
    if not data.startswith(PNG_START):
        return
    at = len(PNG_START)
    for _ in range(_MOST_CHUNKS):
        body = at + 4  # behind the length: the chunk's type, its content, their checksum
        end = body + 4 + int.from_bytes(data[at:body], "big")
        chunk = memoryview(data)[body:end]
        if end + 4 > len(data) or zlib.crc32(chunk) != int.from_bytes(data[end : end + 4], "big"):
            raise BadImageError(
                f"{len(data)} bytes of a PNG are cut off or damaged at byte {at}; send the whole "
                "file"
            )
        if chunk[:4] == PNG_LAST:
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


_Scalar = TypeVar("_Scalar", bound=np.generic)

KB_SIZE = (352, 1216)
"""(height, width) of the benchmark's crop, at the image's bottom, in the middle of its width."""


def kb_window(shape: Sequence[int], size: tuple[int, int] = KB_SIZE) -> tuple[slice, slice]:
    """Return rows and columns of the KITTI benchmark's crop of an image.

    Args:
        shape: (height, width) of the image.
        size: (height, width) of the crop.

    Raises:
        BadImageError: the image is smaller than the crop.
    """
    height, width = size
    top, left = shape[0] - height, (shape[1] - width) // 2
    if top < 0 or left < 0:
        raise BadImageError(
            f"it is {shape[1]}x{shape[0]}, smaller than the {width}x{height} that every KITTI "
            "image is cut to: it is no KITTI image, or was resized; use the original"
        )
    return slice(top, top + height), slice(left, left + width)


def kb_crop(array: npt.NDArray[_Scalar], size: tuple[int, int] = KB_SIZE) -> npt.NDArray[_Scalar]:
    """Return the KITTI benchmark's crop of a picture or map (H, W, ...), as a view.

    Raises:
        BadImageError: it is smaller than the crop.
    """
    return array[kb_window(array.shape, size)]
