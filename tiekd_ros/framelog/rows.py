"""SQL of the frame log's rows: frames, labels, rounds and counts."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tiekd_ros.core import Closing
from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.images import encode_jpeg, encode_mask_png
from tiekd_ros.core.labels import Label
from tiekd_ros.framelog.labels import encode_label, read_invalid_masks, write_invalid_mask
from tiekd_ros.framelog.novelty import Distances
from tiekd_ros.framelog.policy import ImageStats
from tiekd_ros.framelog.records import (
    HELD_OUT,
    LABELLED,
    LOGGED,
    REJECTED,
    TRAIN,
    LabelledSpan,
    LoggedFrame,
    Observation,
    Split,
    StoreStats,
    write_cursor,
)
from tiekd_ros.framelog.schema import Database, UnknownFrameError, used_bytes


class Blobs(NamedTuple):
    """A frame's image, with what belongs to it where it is logged."""

    jpeg: bytes
    invalid_mask_png: bytes | None
    """The mask of what the camera did not see; None = it saw all."""
    depth_png: bytes | None
    """The label, where it is known already."""


def encode_frame(observation: Observation, label: Label | None, jpeg_quality: int) -> Blobs:
    """Encode an image, its mask, and the label that is known already.

    Raises:
        BadDepthError: no pixel of the label is known.
    """
    jpeg = encode_jpeg(observation.image, jpeg_quality)
    invalid_mask_png = (
        None if observation.invalid_mask is None else encode_mask_png(observation.invalid_mask)
    )
    depth_png = None if label is None else encode_label(label.depth, None, invalid_mask_png)[0]
    return Blobs(jpeg, invalid_mask_png, depth_png)


IN_ROUND = -1
"""`last_round` of a label that there was when the round under way began."""
SKIPPED = 0
"""`last_round` of a label that a finished round could have drawn, but did not.

Where a round trained on it, `last_round` is that round's number (from 1 on); NULL: it is new.
"""

_WAITING = """
SELECT id, stamp_ns, camera_frame, jpeg, width, height, fx, fy, cx, cy
FROM frames JOIN images ON frame_id = id
WHERE state = 'logged' AND id NOT IN ({marks}) ORDER BY id LIMIT ?
"""
_LABELLED = """
SELECT stamp_ns, split, fx, fy, cx, cy, jpeg, depth, confidence FROM frames
JOIN images ON images.frame_id = id JOIN labels ON labels.frame_id = id WHERE id = ?
"""
_NEWEST_LABELS = """
SELECT depth, teacher_name, teacher_version FROM frames JOIN labels ON labels.frame_id = id
WHERE state = 'labelled' ORDER BY id DESC LIMIT ?
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
    rows = connection.execute(query, (*skipped, limit)).fetchall()
    masks = read_invalid_masks(connection, [int(row[0]) for row in rows])
    return [
        LoggedFrame(
            id=frame_id,
            stamp_ns=stamp_ns,
            frame_id=camera_frame,
            jpeg=jpeg,
            width=width,
            height=height,
            intrinsics=intrinsics_of(camera),
            invalid_mask_png=masks.get(frame_id),
        )
        for frame_id, stamp_ns, camera_frame, jpeg, width, height, *camera in rows
    ]


def insert_frame(
    connection: sqlite3.Connection,
    observation: Observation,
    stats: ImageStats,
    blobs: Blobs,
    split: Split,
    distances: Distances,
) -> int:
    """Insert a frame, its image and its mask; return its new id."""
    height, width = observation.image.shape[:2]
    camera = observation.intrinsics
    thumbnail = stats.thumbnail.astype(np.uint8).tobytes()
    cursor = connection.execute(
        _INSERT,
        (
            int(observation.stamp_ns),
            observation.frame_id,
            width,
            height,
            *(camera.as_tuple() if camera is not None else (None,) * 4),
            split,
            stats.sharpness,
            stats.exposure,
            float(distances.min()) if len(distances) else None,
            observation.confidence,
            len(thumbnail) + len(blobs.jpeg) + len(blobs.invalid_mask_png or b""),
        ),
    )
    frame_id = int(cursor.lastrowid or 0)
    connection.execute("INSERT INTO images VALUES (?, ?, ?)", (frame_id, thumbnail, blobs.jpeg))
    if blobs.invalid_mask_png is not None:
        write_invalid_mask(connection, frame_id, blobs.invalid_mask_png)
    if observation.cursor is not None:
        write_cursor(connection, observation.cursor)
    return frame_id


def write_label(
    connection: sqlite3.Connection,
    frame_id: int,
    depth_png: bytes,
    confidence_png: bytes | None,
    teacher: tuple[str, str],
) -> None:
    """Give a frame its label; an earlier one is replaced. `teacher` is (name, version).

    Raises:
        UnknownFrameError: no such frame is stored.
    """
    size = image_bytes(connection, frame_id) + len(depth_png) + len(confidence_png or b"")
    connection.execute(
        "INSERT OR REPLACE INTO labels VALUES (?, ?, ?)", (frame_id, depth_png, confidence_png)
    )
    connection.execute(
        "UPDATE frames SET state = 'labelled', reason = '', last_round = NULL, "
        "teacher_name = ?, teacher_version = ?, byte_size = ? WHERE id = ?",
        (*teacher, size, frame_id),
    )


def write_rejection(connection: sqlite3.Connection, frame_id: int, reason: str) -> None:
    """Mark a frame as rejected and drop its label.

    Raises:
        UnknownFrameError: no such frame is stored.
    """
    size = image_bytes(connection, frame_id)
    connection.execute("DELETE FROM labels WHERE frame_id = ?", (frame_id,))
    connection.execute(
        "UPDATE frames SET state = 'rejected', reason = ?, teacher_name = NULL, "
        "teacher_version = NULL, last_round = NULL, byte_size = ? WHERE id = ?",
        (reason, size, frame_id),
    )


def write_unlabelled(connection: sqlite3.Connection, frame_ids: Iterable[int], teacher: str) -> int:
    """Drop the labels of these frames that this teacher gave, so that they wait for another.

    Returns:
        How many labels were dropped.
    """
    count = 0
    for frame_id in map(int, frame_ids):
        known = connection.execute(
            "SELECT 1 FROM frames WHERE id = ? AND state = 'labelled' AND teacher_name = ?",
            (frame_id, teacher),
        ).fetchone()
        if known is None:
            continue
        count += 1
        connection.execute("DELETE FROM labels WHERE frame_id = ?", (frame_id,))
        connection.execute(
            "UPDATE frames SET state = 'logged', teacher_name = NULL, teacher_version = NULL, "
            "last_round = NULL, byte_size = ? WHERE id = ?",
            (image_bytes(connection, frame_id), frame_id),
        )
    return count


def write_round_started(connection: sqlite3.Connection) -> None:
    """Note which labels there are now."""
    connection.execute(
        "UPDATE frames SET last_round = ? "
        "WHERE state = 'labelled' AND split = 'train' AND last_round IS NULL",
        (IN_ROUND,),
    )


def write_round_finished(
    connection: sqlite3.Connection, ids: Iterable[int], round_number: int
) -> None:
    """Note that a round trained on these frames, and which it passed over."""
    rows = [(int(round_number), int(frame_id)) for frame_id in ids]
    connection.executemany("UPDATE frames SET last_round = ? WHERE id = ?", rows)
    connection.execute("UPDATE frames SET last_round = ? WHERE last_round = ?", (SKIPPED, IN_ROUND))


def read_labelled_ids(
    connection: sqlite3.Connection, split: Split | None, after_id: int
) -> list[int]:
    """Return the ids beyond `after_id` of labelled frames, or of one split's, ordered by stamp."""
    query = "SELECT id FROM frames WHERE state = 'labelled' AND id > :after_id"
    if split is not None:
        query += " AND split = :split"
    values = {"split": split, "after_id": after_id}
    rows = connection.execute(f"{query} ORDER BY stamp_ns, id", values)
    return [int(row[0]) for row in rows]


def read_labelled_span(connection: sqlite3.Connection) -> LabelledSpan:
    """Count the labelled frames, and return how long a time they cover."""
    number, first, last = connection.execute(
        "SELECT COUNT(*), MIN(stamp_ns), MAX(stamp_ns) FROM frames WHERE state = 'labelled'"
    ).fetchone()
    return LabelledSpan(number, 1e-9 * (last - first) if number else 0.0)


def read_labelled(connection: sqlite3.Connection, frame_id: int) -> tuple[Any, ...]:
    """Read (stamp_ns, split, fx, fy, cx, cy, jpeg, depth, confidence) of a labelled frame.

    Raises:
        UnknownFrameError: no such frame is stored, or it has no label.
    """
    row: tuple[Any, ...] | None = connection.execute(_LABELLED, (frame_id,)).fetchone()
    if row is None:
        raise UnknownFrameError(
            f"frame {frame_id} has no label, or was evicted meanwhile; go on without it"
        )
    return row


def read_newest_labels(connection: sqlite3.Connection, limit: int) -> list[tuple[bytes, str, str]]:
    """Read (depth PNG, teacher's name, its version) of the newest labelled frames, oldest first."""
    rows: list[tuple[bytes, str, str]] = connection.execute(_NEWEST_LABELS, (limit,)).fetchall()
    return rows[::-1]


def image_bytes(connection: sqlite3.Connection, frame_id: int) -> int:
    """Return the size of a frame's image, thumbnail and mask.

    Raises:
        UnknownFrameError: no such frame is stored.
    """
    row = connection.execute(
        "SELECT LENGTH(thumbnail) + LENGTH(jpeg) FROM images WHERE frame_id = ?", (frame_id,)
    ).fetchone()
    if row is None:
        raise UnknownFrameError(f"frame {frame_id} is not stored; it may have been evicted")
    return int(row[0]) + len(read_invalid_masks(connection, [frame_id]).get(frame_id, b""))


def intrinsics_of(values: Iterable[float | None]) -> Intrinsics | None:
    """Make intrinsics of (fx, fy, cx, cy) as stored; None where they are NULL."""
    known = [value for value in values if value is not None]
    return Intrinsics(*known) if len(known) == 4 else None


def count(
    connection: sqlite3.Connection, max_bytes: int, not_kept: Mapping[str, int]
) -> StoreStats:
    """Count by state, split, reason and teacher, in one consistent view of the file."""
    frames: dict[str, dict[str, int]] = {
        state: {TRAIN: 0, HELD_OUT: 0} for state in (LOGGED, LABELLED, REJECTED)
    }
    for state, split, number in connection.execute(
        "SELECT state, split, COUNT(*) FROM frames GROUP BY state, split"
    ):
        frames[state][split] = number
    rejected: dict[str, int] = dict(
        connection.execute(
            "SELECT reason, COUNT(*) FROM frames WHERE state = 'rejected' GROUP BY reason"
        ).fetchall()
    )
    teachers: dict[str, int] = dict(
        connection.execute(
            "SELECT teacher_name || ' ' || teacher_version AS teacher, COUNT(*) FROM frames "
            "WHERE state = 'labelled' GROUP BY teacher"
        ).fetchall()
    )
    new_labels = connection.execute(
        "SELECT COUNT(*) FROM frames WHERE state = 'labelled' AND split = 'train' "
        "AND (last_round IS NULL OR last_round = ?)",
        (IN_ROUND,),
    ).fetchone()[0]
    first, last = connection.execute("SELECT MIN(stamp_ns), MAX(stamp_ns) FROM frames").fetchone()
    return StoreStats(
        frames=frames,
        rejected=rejected,
        new_labels=new_labels,
        bytes=used_bytes(connection),
        max_bytes=max_bytes,
        first_stamp_ns=first,
        last_stamp_ns=last,
        teachers=teachers,
        not_kept=dict(not_kept),
    )


_FRAME = """
SELECT id, stamp_ns, camera_frame, width, height, split, fx, fy, cx, cy, jpeg, depth,
       teacher_name, teacher_version
FROM frames JOIN images ON images.frame_id = id LEFT JOIN labels ON labels.frame_id = id
WHERE id = ?
"""


@dataclass(frozen=True)
class StoredFrame:
    """A frame as the log holds it."""

    id: int
    stamp_ns: int
    frame_id: str
    """The camera's coordinate frame (not the frame's id)."""
    width: int
    height: int
    split: Split
    intrinsics: Intrinsics | None
    jpeg: bytes
    depth_png: bytes | None
    """16-bit PNG, metres * 256, 0 = unknown; None where it has no label."""
    teacher: str
    """Name and version of its teacher; '' where it has no label."""


class StoredFrames(Closing):
    """The frames of a log that were not rejected, oldest first.

    Args:
        path: the frame log's file.
        labelled: only those with a label.
        split: only this split's; None: both.

    Raises:
        FrameStoreError: there is no such file, or it cannot be read.
    """

    def __init__(self, path: Path, *, labelled: bool = False, split: Split | None = None) -> None:
        self._db = Database(path, read_only=True, timeout_s=5.0)
        query = "SELECT id FROM frames WHERE state != 'rejected'"
        if labelled:
            query += " AND state = 'labelled'"
        if split is not None:
            query += " AND split = :split"
        with self._db.read() as connection:
            rows = connection.execute(f"{query} ORDER BY stamp_ns, id", {"split": split})
            self._ids = [int(row[0]) for row in rows]

    def __len__(self) -> int:
        """Return the number of frames, at the time of opening."""
        return len(self._ids)

    def __iter__(self) -> Iterator[StoredFrame]:
        """Yield the frames, without those that were evicted meanwhile."""
        for frame_id in self._ids:
            with self._db.read() as connection:
                row = connection.execute(_FRAME, (frame_id,)).fetchone()
            if row is None:
                continue
            number, stamp_ns, camera, width, height, split, *rest = row
            *intrinsics, jpeg, depth, name, version = rest
            yield StoredFrame(
                id=number,
                stamp_ns=stamp_ns,
                frame_id=camera,
                width=width,
                height=height,
                split=split,
                intrinsics=intrinsics_of(intrinsics),
                jpeg=jpeg,
                depth_png=depth,
                teacher=" ".join(filter(None, (name, version))),
            )

    def close(self) -> None:
        """Close the file."""
        self._db.close()
