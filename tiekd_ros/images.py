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
Mask = npt.NDArray[np.bool_]

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


def encode_png(image: RgbImage) -> bytes:
    """Encode an RGB image as PNG, without loss and quickly rather than small."""
    check_rgb(image)
    ok, data = cv2.imencode(
        ".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1]
    )
    if not ok:
        raise BadImageError(f"OpenCV could not encode an image of shape {image.shape}")
    return data.tobytes()


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
    bgr = None
    if data:
        try:
            bgr = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
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
    ok, data = cv2.imencode(".png", stored)
    if not ok:
        raise BadDepthError(f"OpenCV could not encode a depth map of shape {units.shape}")
    return data.tobytes()


def _decode_uint16(data: bytes) -> npt.NDArray[np.uint16]:
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
    units: npt.NDArray[np.uint16] = raw
    return units


def resize_depth(depth: DepthMap, height: int, width: int) -> DepthMap:
    """Bring a depth map to another size: bilinear, or nearest where something is unknown."""
    if depth.shape == (height, width):
        return depth
    whole = bool(np.isfinite(depth).all())
    method = cv2.INTER_LINEAR if whole else cv2.INTER_NEAREST_EXACT
    resized: DepthMap = cv2.resize(depth, (width, height), interpolation=method)
    return resized


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
    how = [cv2.IMWRITE_PNG_BILEVEL, 1, cv2.IMWRITE_PNG_COMPRESSION, 9]  # a third of the default's
    ok, data = cv2.imencode(".png", values, how)
    if not ok:
        raise BadImageError(f"OpenCV could not encode a mask of shape {mask.shape}")
    return data.tobytes()


def decode_mask_png(data: bytes) -> Mask:
    """Decode a PNG of `encode_mask_png`.

    Raises:
        BadImageError: the bytes are no readable image.
    """
    mask: Mask = decode_image(data)[..., 0] > 0
    return mask


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
