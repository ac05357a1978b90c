"""Labels as the frame log stores them: PNG blobs."""

from __future__ import annotations

import contextlib

import cv2
import numpy as np
import numpy.typing as npt

from tiekd_ros.errors import BadDepthError, BadImageError
from tiekd_ros.frames.blind import without_blind
from tiekd_ros.images import DepthMap, encode_depth_png

_CONFIDENCE_UNITS = 255.0
_FARTHEST_M = 65535 / 256


def encode_label(
    depth: DepthMap,
    confidence: npt.NDArray[np.floating] | None,
    blind_png: bytes | None = None,
) -> tuple[bytes, bytes | None]:
    """Encode depth (h, w) in metres and confidence (h, w) in 0..1.

    Depth becomes unknown where `blind_png` says that the camera saw nothing.

    Raises:
        BadDepthError: nothing is known in the depth map, the shapes differ, or the mask is damaged.
    """
    try:
        depth = without_blind(depth, blind_png)
    except BadImageError as error:
        raise BadDepthError(f"the mask of what the camera did not see: {error}") from error
    known = np.isfinite(depth) & (depth > 0) & (depth <= _FARTHEST_M)
    if not known.any():
        raise BadDepthError(
            f"a label needs at least one known depth between 0 and {_FARTHEST_M:.0f} m, but none "
            f"of the {depth.size} pixels has one; reject the frame instead"
        )
    if confidence is None:
        return encode_depth_png(depth), None
    if confidence.shape != depth.shape:
        raise BadDepthError(
            f"the confidence has shape {confidence.shape}, its depth map {depth.shape}"
        )
    units = np.nan_to_num(np.asarray(confidence, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    units = np.rint(np.clip(units, 0, 1) * _CONFIDENCE_UNITS)
    ok, data = cv2.imencode(".png", units.astype(np.uint8))
    if not ok:
        raise BadDepthError(f"OpenCV could not encode a confidence of shape {confidence.shape}")
    return encode_depth_png(depth), data.tobytes()


def decode_confidence(data: bytes) -> npt.NDArray[np.float32]:
    """Decode an 8-bit PNG to confidence in 0..1, shape (h, w).

    Raises:
        BadDepthError: the bytes are no such PNG.
    """
    raw = None
    if data:
        with contextlib.suppress(cv2.error):
            raw = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if raw is None or raw.dtype != np.uint8 or raw.ndim != 2:
        raise BadDepthError(f"{len(data)} bytes are no readable 8-bit PNG confidence")
    confidence: npt.NDArray[np.float32] = raw.astype(np.float32) / np.float32(_CONFIDENCE_UNITS)
    return confidence
