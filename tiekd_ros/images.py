"""Image and depth codecs, and thumbnails, shared by the rooms.

Images are uint8 RGB arrays of shape (H, W, 3). Depth maps are float32 arrays of shape
(H, W) in metres along the optical axis; NaN means unknown.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from tiekd_ros.errors import BadDepthError, BadImageError

RgbImage = npt.NDArray[np.uint8]
DepthMap = npt.NDArray[np.float32]
Thumbnail = npt.NDArray[np.float32]

DEPTH_UNITS_PER_M = 256.0
"""Scale of stored depth labels, KITTI's convention: uint16 = metres * 256, 0 = unknown."""

_THUMBNAIL_SIZE = (32, 24)  # (width, height): enough to tell views apart, small to compare


def encode_jpeg(image: RgbImage, quality: int = 92) -> bytes:
    """Encode an RGB image as JPEG."""
    check_rgb(image)
    ok, data = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    if not ok:
        raise BadImageError(f"OpenCV could not encode an image of shape {image.shape}")
    return data.tobytes()


def decode_image(data: bytes) -> RgbImage:
    """Decode JPEG or PNG bytes to an RGB image.

    Raises:
        BadImageError: the bytes are no image that OpenCV can read.
    """
    bgr = None
    if data:
        try:
            bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error:
            bgr = None
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


def encode_depth_png(depth: DepthMap) -> bytes:
    """Encode metres as 16-bit PNG of metres * 256; unknown and out of range become 0.

    Precision 1/256 m; the largest depth that can be stored is 255.99 m.
    """
    if depth.ndim != 2 or depth.size == 0:
        raise BadDepthError(f"a depth map has shape (H, W), got {depth.shape}")
    units = np.nan_to_num(depth.astype(np.float64) * DEPTH_UNITS_PER_M, nan=0, posinf=0, neginf=0)
    units = np.rint(units)
    units[(units < 0) | (units > 65535)] = 0
    ok, data = cv2.imencode(".png", units.astype(np.uint16))
    if not ok:
        raise BadDepthError(f"OpenCV could not encode a depth map of shape {depth.shape}")
    return data.tobytes()


def decode_depth_png(data: bytes, units_per_m: float = DEPTH_UNITS_PER_M) -> DepthMap:
    """Decode a 16-bit PNG to metres; 0 becomes NaN (unknown).

    Raises:
        BadDepthError: the bytes are no single-channel 16-bit PNG.
    """
    raw = None
    if data:
        try:
            raw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error:
            raw = None
    if raw is None:
        raise BadDepthError(f"{len(data)} bytes are no readable PNG depth map")
    if raw.dtype != np.uint16 or raw.ndim != 2:
        raise BadDepthError(
            f"a depth PNG has one channel of 16 bits, got {raw.dtype} of shape {raw.shape}; "
            "save it as uint16"
        )
    depth: DepthMap = raw.astype(np.float32) / np.float32(units_per_m)
    depth[raw == 0] = np.nan
    return depth


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
