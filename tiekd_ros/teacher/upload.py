"""Making what is sent small: the size that the teacher uses, and JPEG."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.images import RgbImage, decode_image, encode_jpeg, read_image_size
from tiekd_ros.core.settings import Settings, setting
from tiekd_ros.teacher.protocol import DepthRequest

_WORTH_IT = 10
"""Points of JPEG quality by which encoding an image anew, at the size it has, must lower it.

At the frame log's 92, down to 90 saves 4 to 7 % of a camera's bytes, which is not worth decoding,
encoding and a second loss; down to 80 saves 28 to 38 %, to 60 40 to 60 %.
"""
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
        90,
        "JPEG quality of an image that is made smaller; one of the right size is sent as it was "
        "logged, unless this is 10 or more below frames.jpeg_quality",
        minimum=10,
        maximum=100,
    )


def fit_for_upload(
    request: DepthRequest, settings: UploadSettings, logged_quality: int
) -> DepthRequest:
    """Return the request with its image made small, and the intrinsics of the small image.

    An image of the right size is sent as it is where encoding it anew would save little; of that
    one, only the header is read.

    Args:
        request: its image is a JPEG or PNG.
        settings: how small.
        logged_quality: JPEG quality at which the image was encoded.

    Raises:
        BadImageError: the image cannot be read.
    """
    width, height = read_image_size(request.image)
    scale = settings.max_side / max(height, width) if settings.max_side else 1.0
    if scale >= 1.0:
        if settings.jpeg_quality > logged_quality - _WORTH_IT:
            return request
        data = encode_jpeg(decode_image(request.image, as_stored=True), settings.jpeg_quality)
        return replace(request, image=data) if len(data) < len(request.image) else request
    image = decode_image(request.image, as_stored=True)
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
