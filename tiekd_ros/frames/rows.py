"""Rows of the frame log's tables, written and read."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

import numpy as np

from tiekd_ros.camera import Intrinsics
from tiekd_ros.frames.errors import UnknownFrameError
from tiekd_ros.frames.nearest import Distances
from tiekd_ros.frames.quality import Look
from tiekd_ros.frames.records import LoggedFrame, Observation, Split

_WAITING = """
SELECT id, stamp_ns, camera_frame, jpeg, width, height, fx, fy, cx, cy
FROM frames JOIN images ON frame_id = id
WHERE state = 'logged' AND id NOT IN ({marks}) ORDER BY id LIMIT ?
"""
_INSERT = """
INSERT INTO frames (stamp_ns, camera_frame, width, height, fx, fy, cx, cy, split, state,
                    sharpness, exposure, novelty, student_confidence, byte_size)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'logged', ?, ?, ?, ?, ?)
"""


def read_waiting(
    connection: sqlite3.Connection, limit: int, skip: Iterable[int]
) -> list[LoggedFrame]:
    """Read up to `limit` frames without a label, oldest first, those in `skip` left out."""
    skipped = [int(frame_id) for frame_id in skip]
    query = _WAITING.format(marks=", ".join("?" * len(skipped)))
    return [
        LoggedFrame(
            id=frame_id,
            stamp_ns=stamp_ns,
            frame_id=camera_frame,
            jpeg=jpeg,
            width=width,
            height=height,
            intrinsics=intrinsics_of(camera),
        )
        for frame_id, stamp_ns, camera_frame, jpeg, width, height, *camera in connection.execute(
            query, (*skipped, limit)
        )
    ]


def insert_frame(
    connection: sqlite3.Connection,
    observation: Observation,
    look: Look,
    jpeg: bytes,
    split: Split,
    distances: Distances,
) -> int:
    """Insert a frame and its image; return its new id."""
    height, width = observation.image.shape[:2]
    camera = observation.intrinsics
    thumbnail = look.thumbnail.astype(np.uint8).tobytes()
    cursor = connection.execute(
        _INSERT,
        (
            int(observation.stamp_ns),
            observation.frame_id,
            width,
            height,
            *(camera.as_tuple() if camera is not None else (None,) * 4),
            split,
            look.sharpness,
            look.exposure,
            float(distances.min()) if len(distances) else None,
            observation.confidence,
            len(thumbnail) + len(jpeg),
        ),
    )
    frame_id = int(cursor.lastrowid or 0)
    connection.execute("INSERT INTO images VALUES (?, ?, ?)", (frame_id, thumbnail, jpeg))
    return frame_id


def image_bytes(connection: sqlite3.Connection, frame_id: int) -> int:
    """Return the size of a frame's image and thumbnail.

    Raises:
        UnknownFrameError: no such frame is stored.
    """
    row = connection.execute(
        "SELECT LENGTH(thumbnail) + LENGTH(jpeg) FROM images WHERE frame_id = ?", (frame_id,)
    ).fetchone()
    if row is None:
        raise UnknownFrameError(f"frame {frame_id} is not stored; it may have been evicted")
    return int(row[0])


def intrinsics_of(values: Iterable[float | None]) -> Intrinsics | None:
    """Make intrinsics of (fx, fy, cx, cy) as stored; None where they are NULL."""
    known = [value for value in values if value is not None]
    return Intrinsics(*known) if len(known) == 4 else None
