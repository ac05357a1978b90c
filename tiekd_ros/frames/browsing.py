"""Reading all of a frame log, image by image, as it is stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tiekd_ros.camera import Intrinsics
from tiekd_ros.frames.database import Database
from tiekd_ros.frames.records import Split
from tiekd_ros.frames.rows import intrinsics_of

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
    """Name and version of who labelled it; '' where nobody did."""


class StoredFrames:
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
