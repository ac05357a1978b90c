"""What an image may ask of the server before anything of it is decoded."""

from __future__ import annotations

from tiekd_ros.image_size import read_image_size
from tiekd_ros.teacher.errors import BadRequestError
from tiekd_ros.teacher.service_settings import ServiceSettings

# A progressive JPEG has about ten. Each goes over the whole image again, and takes a few bytes:
# without a bound, a small file keeps a decoder busy for hours.
_MOST_SCANS = 100
_LONGEST_SIDE = 65_535  # JPEG's own; beyond it PNG's library only complains on standard error
_SCAN = b"\xff\xda"  # within a scan's data 0xff is followed by 0x00 or a restart marker


def admit_image(data: bytes, settings: ServiceSettings) -> tuple[int, int]:
    """Return the (width, height) of an encoded image that is small enough to be decoded.

    Raises:
        BadImageError: the bytes are neither JPEG nor PNG, or the header is damaged.
        BadRequestError: the image has too many bytes, pixels or scans, or is too long.
    """
    if len(data) > settings.max_image_mb << 20:
        raise BadRequestError(
            f"the encoded image has {len(data)} bytes, this server takes {settings.max_image_mb} "
            "MiB (max_image_mb); send a JPEG, or a smaller one"
        )
    width, height = read_image_size(data)
    if width * height > settings.max_pixels:
        raise BadRequestError(
            f"the image has {width}x{height} = {width * height} pixels, this server takes "
            f"{settings.max_pixels} (max_pixels); send a smaller one"
        )
    if max(width, height) > _LONGEST_SIDE:
        raise BadRequestError(
            f"the image has {width}x{height} pixels, no camera's has a side beyond {_LONGEST_SIDE}"
        )
    scans = 0 if data.startswith(b"\x89") else data.count(_SCAN)
    if scans > _MOST_SCANS:
        raise BadRequestError(
            f"the JPEG has {scans} scans, no camera writes more than {_MOST_SCANS}; send it as a "
            "baseline JPEG"
        )
    return width, height
