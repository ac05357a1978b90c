"""What a frame's image shows without the camera having seen it, and its label must not know.

A rectified image has such pixels where it reaches beyond the camera's own; whatever a teacher says
of them is made up, and a student must be neither taught nor judged by it. The mask is kept with the
frame, for each label that comes. It has a table of its own, made with the first mask: a log of an
earlier version is used as it is, and earlier versions can go on with one that has masks.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import numpy as np

from tiekd_ros.images import DepthMap, decode_mask_png, fit_mask

_TABLE = """
CREATE TABLE IF NOT EXISTS blind_parts (
    frame_id INTEGER PRIMARY KEY REFERENCES frames (id) ON DELETE CASCADE,
    mask BLOB NOT NULL                                 -- 1-bit PNG at the image's size
)
"""


def write_blind(connection: sqlite3.Connection, frame_id: int, mask_png: bytes) -> None:
    """Keep a frame's mask, in the caller's transaction."""
    connection.execute(_TABLE)
    connection.execute("INSERT INTO blind_parts VALUES (?, ?)", (frame_id, mask_png))


def read_blind(connection: sqlite3.Connection, ids: Sequence[int]) -> dict[int, bytes]:
    """Return the masks, as PNG, of those of these frames that have one."""
    if not connection.execute("PRAGMA table_info(blind_parts)").fetchall():
        return {}
    marks = ", ".join("?" * len(ids))
    query = f"SELECT frame_id, mask FROM blind_parts WHERE frame_id IN ({marks})"
    return dict(connection.execute(query, list(ids)).fetchall())


def without_blind(depth: DepthMap, mask_png: bytes | None) -> DepthMap:
    """Return depth (h, w) of a frame's view at any size, NaN where its image shows nothing.

    Raises:
        BadImageError: the mask is damaged.
    """
    if mask_png is None:
        return depth
    blind = fit_mask(decode_mask_png(mask_png), depth.shape[0], depth.shape[1])
    return np.where(blind, np.float32(np.nan), depth)
