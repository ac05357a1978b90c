"""Labels as the frame log stores them: PNG blobs.

A rectified image has such pixels where it reaches beyond the camera's own; whatever a teacher says
of them is made up, and a student must be neither taught nor judged by it. The mask is kept with the
frame, for each label that comes. It has a table of its own, made with the first mask: a log of an
earlier version is used as it is, and earlier versions can go on with one that has masks.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from tiekd_ros.core.errors import BadDepthError, BadImageError
from tiekd_ros.core.images import DepthMap, encode_depth_png, mask_depth

_TABLE = """
CREATE TABLE IF NOT EXISTS blind_parts (
    frame_id INTEGER PRIMARY KEY REFERENCES frames (id) ON DELETE CASCADE,
    mask BLOB NOT NULL                                 -- 1-bit PNG at the image's size
)
"""


def write_invalid_mask(connection: sqlite3.Connection, frame_id: int, mask_png: bytes) -> None:
    """Keep a frame's mask, in the caller's transaction."""
    connection.execute(_TABLE)
    connection.execute("INSERT INTO blind_parts VALUES (?, ?)", (frame_id, mask_png))


def read_invalid_masks(connection: sqlite3.Connection, ids: Sequence[int]) -> dict[int, bytes]:
    """Return the masks, as PNG, of those of these frames that have one."""
    if not connection.execute("PRAGMA table_info(blind_parts)").fetchall():
        return {}
    marks = ", ".join("?" * len(ids))
    query = f"SELECT frame_id, mask FROM blind_parts WHERE frame_id IN ({marks})"
    return dict(connection.execute(query, list(ids)).fetchall())


_CONFIDENCE_UNITS = 255.0
_FARTHEST_M = 65535 / 256


def encode_label(
    depth: DepthMap,
    confidence: npt.NDArray[np.floating] | None,
    invalid_mask_png: bytes | None = None,
) -> tuple[bytes, bytes | None]:
    """Encode depth (h, w) in metres and confidence (h, w) in 0..1.

    Depth becomes unknown where `invalid_mask_png` says that the camera saw nothing.

    Raises:
        BadDepthError: nothing is known in the depth map, the shapes differ, or the mask is damaged.
    """
    try:
        depth = mask_depth(depth, invalid_mask_png)
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
