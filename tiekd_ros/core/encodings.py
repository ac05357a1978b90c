"""A camera's pixels, as the messages of ROS carry them, to RGB; knows nothing of ROS itself.

Raw images are rows of `step` bytes in one of sensor_msgs' encodings; compressed ones are a JPEG
or PNG file and a format in the words of image_transport ("rgb8; jpeg compressed bgr8").
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from tiekd_ros.core.errors import BadImageError
from tiekd_ros.core.images import (
    JPEG_START,
    PNG_LAST,
    PNG_START,
    RgbImage,
    decode_image,
    decode_pixels,
    read_image_size,
)


class _PixelLayout(NamedTuple):
    """Layout of an encoding's pixels."""

    channels: int
    to_rgb: int | None
    """OpenCV's conversion; None = is RGB already."""
    wide: bool = False
    """Whether a channel takes 16 bits, of which the upper 8 are kept."""


_BYTES = {
    "rgb8": _PixelLayout(3, None),
    "bgr8": _PixelLayout(3, cv2.COLOR_BGR2RGB),
    "8UC3": _PixelLayout(3, cv2.COLOR_BGR2RGB),
    "rgba8": _PixelLayout(4, cv2.COLOR_RGBA2RGB),
    "bgra8": _PixelLayout(4, cv2.COLOR_BGRA2RGB),
    "8UC4": _PixelLayout(4, cv2.COLOR_BGRA2RGB),
    "mono8": _PixelLayout(1, cv2.COLOR_GRAY2RGB),
    "8UC1": _PixelLayout(1, cv2.COLOR_GRAY2RGB),
    # OpenCV names a Bayer pattern by its second row, ROS by its first.
    "bayer_rggb8": _PixelLayout(1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": _PixelLayout(1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": _PixelLayout(1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": _PixelLayout(1, cv2.COLOR_BayerGB2RGB),
    "uyvy": _PixelLayout(2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422": _PixelLayout(2, cv2.COLOR_YUV2RGB_UYVY),
    "yuyv": _PixelLayout(2, cv2.COLOR_YUV2RGB_YUY2),
    "yuv422_yuy2": _PixelLayout(2, cv2.COLOR_YUV2RGB_YUY2),
}
_MOST_PIXELS = 50_000_000  # a file of a few kilobytes can unfold to gigabytes
_WIDE_TWINS = {
    "mono8": "mono16",
    "8UC1": "16UC1",
    "rgb8": "rgb16",
    "bgr8": "bgr16",
    "rgba8": "rgba16",
    "bgra8": "bgra16",
    **{f"bayer_{p}8": f"bayer_{p}16" for p in ("rggb", "bggr", "gbrg", "grbg")},
}
_LAYOUTS = {
    **_BYTES,
    **{wide: _BYTES[narrow]._replace(wide=True) for narrow, wide in _WIDE_TWINS.items()},
}

RAW_ENCODINGS = tuple(_LAYOUTS)
"""Encodings that `raw_to_rgb` reads."""

_DEPTH_ENCODINGS = ("16UC1", "32FC1", "64FC1")
_COMPRESSED_DEPTH = "compresseddepth"

_COLOURS = ("rgb8", "bgr8", "rgba8", "bgra8", "rgb16", "bgr16", "rgba16", "bgra16")
_CODECS = ("jpeg", "jpg", "png")
_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"


def is_depth(encoding: str) -> bool:
    """Return whether an Image's encoding, or a CompressedImage's format, is that of depth images.

    16UC1 is one (REP-118), but some infrared cameras use it too: `raw_to_rgb` reads it, for a
    topic that was named.
    """
    return encoding in _DEPTH_ENCODINGS or _COMPRESSED_DEPTH in encoding.lower()


def raw_to_rgb(
    *,
    encoding: str,
    width: int,
    height: int,
    step: int,
    is_bigendian: bool,
    data: Any,
    copy: bool = True,
) -> RgbImage:
    """Convert the fields of a sensor_msgs/Image to RGB, (H, W, 3).

    Args:
        encoding: one of `RAW_ENCODINGS`.
        width: pixels of a row.
        height: rows.
        step: bytes from one row to the next; 0 = rows follow each other without padding.
        is_bigendian: byte order of 16-bit encodings.
        data: anything that gives a buffer of bytes.
        copy: return an array of its own. Otherwise it may be a view of `data`, to be read only
            and as long as `data` does not change.

    Raises:
        BadImageError: zero size, an unsupported encoding, a size that the encoding cannot have,
            or fewer bytes than the size takes.
    """
    channels, conversion, wide = _layout_of(encoding)
    pixels = used_rows(
        encoding, width, height, step, data, bytes_per_pixel=channels * (2 if wide else 1)
    )
    if wide:
        values = np.ascontiguousarray(pixels).view(">u2" if is_bigendian else "<u2")
        pixels = (values >> 8).astype(np.uint8)
    pixels = pixels.reshape(height, width, channels)
    if conversion is None:
        return pixels.copy() if copy and not wide else np.ascontiguousarray(pixels)
    return _converted(np.ascontiguousarray(pixels), conversion, encoding)


def _layout_of(encoding: str) -> _PixelLayout:
    if encoding not in _LAYOUTS and is_depth(encoding):
        raise BadImageError(
            f"an image of {encoding} is a depth image, not a camera's picture; choose the colour "
            "image's topic"
        )
    if encoding not in _LAYOUTS:
        raise BadImageError(
            f"encoding {encoding!r} is not supported; supported are {', '.join(RAW_ENCODINGS)}. "
            "Change the camera's encoding"
        )
    return _LAYOUTS[encoding]


def used_rows(
    encoding: str, width: int, height: int, step: int, data: Any, *, bytes_per_pixel: int
) -> npt.NDArray[np.uint8]:
    """Return the used bytes of each row, (H, W * bytes_per_pixel), a view of `data`.

    Args and errors as `raw_to_rgb`, for any encoding.
    """
    if height <= 0 or width <= 0:
        raise BadImageError(f"the image is {width} x {height} pixels; check the camera")
    used = width * bytes_per_pixel
    step = step or used
    if step < used:
        raise BadImageError(
            f"step is {step} bytes, but {width} pixels of {encoding} take {used}; the camera "
            "driver fills the message wrongly"
        )
    buffer = np.frombuffer(data, np.uint8) if len(data) else np.empty(0, np.uint8)
    needed = step * (height - 1) + used  # the last row needs no padding
    if buffer.size < needed:
        raise BadImageError(
            f"{buffer.size} bytes of data, but {width} x {height} {encoding} with step {step} "
            f"take {needed}; the message is truncated"
        )
    return np.lib.stride_tricks.as_strided(buffer, (height, used), (step, 1))


def _converted(pixels: npt.NDArray[np.uint8], conversion: int, encoding: str) -> RgbImage:
    try:
        rgb: RgbImage = cv2.cvtColor(pixels, conversion)
    except cv2.error as error:  # packed YUV of odd width, for instance
        height, width = pixels.shape[:2]
        raise BadImageError(
            f"an image of {width} x {height} {encoding} cannot be converted ({error.err}); "
            "change the camera's image size or encoding"
        ) from error
    return rgb


def compressed_to_rgb(format: str, data: Any) -> RgbImage:
    """Convert the fields of a sensor_msgs/CompressedImage to RGB, (H, W, 3).

    A format in image_transport's words is honoured as image_transport does: colours whose file
    is not marked "compressed bgr" were stored with red and blue exchanged, and a Bayer image
    that was compressed as it is has its mosaic still. Where drivers leave the format empty or
    write something of their own there, the bytes tell.

    Args:
        format: as in the message: "jpeg", "png", "rgb8; jpeg compressed bgr8", ...
        data: the file; anything that gives a buffer of bytes.

    Raises:
        BadImageError: another format than JPEG and PNG, bytes that cannot be decoded or are cut
            off, or more than 50 million pixels.
    """
    data = bytes(memoryview(data))
    _check_codec(format, data)
    _check_size(data)
    original, marked, stored = (part.strip() for part in format.partition(";"))
    if original.startswith("bayer_") and marked and "mono8" not in stored:
        mosaic = decode_pixels(data)
        if mosaic is not None and mosaic.ndim == 2:
            return _demosaiced(original, mosaic)
    rgb = decode_image(data, as_stored=True)
    if marked and original in _COLOURS and "compressed bgr" not in stored:
        return np.ascontiguousarray(rgb[..., ::-1])
    return rgb


def _check_codec(format: str, data: bytes) -> None:
    """Refuse what is no whole JPEG or PNG file; a cut-off one would decode, in part."""
    if is_depth(format):
        raise BadImageError(
            f"format {format!r} is a depth image, not a camera's picture; choose the colour "
            "image's topic"
        )
    if data.startswith(JPEG_START):
        # Neither mark can occur inside compressed pixels, so a scan without an end is cut off.
        whole = data.rfind(_JPEG_END) > data.rfind(_JPEG_SCAN)
    elif data.startswith(PNG_START):
        whole = PNG_LAST in data
    elif format.strip() and not any(codec in format.lower() for codec in _CODECS):
        raise BadImageError(
            f"compressed format {format!r} is not supported; supported are JPEG and PNG. Change "
            "the camera's format, or use its raw images (image_transport: raw)"
        )
    else:
        raise BadImageError(
            f"{len(data)} bytes in format {format!r} are no JPEG or PNG image; check the camera's "
            "driver"
        )
    if not whole:
        raise BadImageError(
            f"an image of {len(data)} bytes in format {format!r} is cut off; the camera's driver "
            "or its connection loses data"
        )


def _check_size(data: bytes) -> None:
    """Refuse what its header says is too large, before anything is unpacked."""
    width, height = read_image_size(data)
    if width * height > _MOST_PIXELS:
        raise BadImageError(
            f"an image of {width}x{height} pixels is larger than the {_MOST_PIXELS / 1e6:.0f} "
            "million that are decoded; have the camera send smaller ones"
        )


def _demosaiced(encoding: str, mosaic: npt.NDArray[Any]) -> RgbImage:
    """Return the colours of a one-channel image as it is stored, (H, W), 8 or 16 bits."""
    if encoding.endswith("16") and mosaic.dtype == np.uint8:  # JPEG has no more than 8 bits
        encoding = encoding[:-2] + "8"
    height, width = mosaic.shape
    pixels = np.ascontiguousarray(mosaic).astype(mosaic.dtype.newbyteorder("<"), copy=False)
    return raw_to_rgb(
        encoding=encoding, width=width, height=height, step=0, is_bigendian=False, data=pixels.data
    )
