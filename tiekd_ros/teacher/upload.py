"""Making what is sent small: the size that the teacher uses, and JPEG."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2

from tiekd_ros.camera import Intrinsics
from tiekd_ros.images import RgbImage, decode_image, encode_jpeg
from tiekd_ros.settings import Settings, setting
from tiekd_ros.teacher.protocol import DepthRequest

_WORTH_IT = 0.9
"""Encoding anew loses a little quality: it has to save a tenth of the bytes."""
_MIRROR_QUALITY = 95


@dataclass(frozen=True)
class UploadSettings(Settings):
    """What becomes of an image before it is sent."""

    max_side: int = setting(
        1024,
        "longer side of the image that is sent; more than the teacher's own input is wasted "
        "(Depth Anything: about 700 at 4:3, 920 at 16:9; Depth Pro: 1536); 0 = as it was logged",
        unit="px",
        minimum=0,
        maximum=16384,
    )
    jpeg_quality: int = setting(
        90, "JPEG quality of the image that is sent", minimum=10, maximum=100
    )


def fit_for_upload(request: DepthRequest, settings: UploadSettings) -> DepthRequest:
    """Return the request with its image made small, and the intrinsics of the small image.

    An image of the right size is sent as it is where encoding it anew would save little.

    Raises:
        BadImageError: the image cannot be decoded.
    """
    image = decode_image(request.image, as_stored=True)
    height, width = image.shape[:2]
    scale = settings.max_side / max(height, width) if settings.max_side else 1.0
    if scale >= 1.0:
        data = encode_jpeg(image, settings.jpeg_quality)
        return replace(request, image=data) if _is_worth_it(data, request.image) else request
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small: RgbImage = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    intrinsics = request.intrinsics
    if intrinsics is not None:
        intrinsics = intrinsics.scaled(size[0] / width, size[1] / height)
    data = encode_jpeg(small, settings.jpeg_quality)
    return replace(request, image=data, intrinsics=intrinsics)


def mirrored(request: DepthRequest) -> DepthRequest:
    """Return the request as a mirror shows it, left and right exchanged.

    Raises:
        BadImageError: the image cannot be decoded.
    """
    image = decode_image(request.image, as_stored=True)
    intrinsics = request.intrinsics
    if intrinsics is not None:
        fx, fy, cx, cy = intrinsics.as_tuple()
        intrinsics = Intrinsics(fx, fy, image.shape[1] - 1 - cx, cy)
    flipped: RgbImage = cv2.flip(image, 1)
    return replace(request, image=encode_jpeg(flipped, _MIRROR_QUALITY), intrinsics=intrinsics)


def _is_worth_it(data: bytes, before: bytes) -> bool:
    return len(data) < _WORTH_IT * len(before)
