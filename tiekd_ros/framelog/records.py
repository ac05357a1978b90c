"""Records of the frame log: observations, frames, labels, counts, import cursors."""

from __future__ import annotations

import dataclasses
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from tiekd_ros.core import Closing
from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.images import DepthMap, Mask, RgbImage
from tiekd_ros.framelog.schema import Database

# Made when it is first needed: a frame log without imports has none.
_TABLE = """
CREATE TABLE IF NOT EXISTS file_places (
    recording TEXT PRIMARY KEY,                        -- a hash that tells files apart
    images INTEGER NOT NULL,                           -- how many of its images were looked at
    mark INTEGER NOT NULL                           -- tells the last one of them from others
) WITHOUT ROWID
"""
_KEEP = """
INSERT INTO file_places VALUES (?, ?, ?) ON CONFLICT (recording)
DO UPDATE SET images = excluded.images, mark = excluded.mark
"""


@dataclass(frozen=True)
class ImportCursor:
    """Position up to which one file of a recording was imported."""

    recording: str
    """Hash that tells the file from others."""
    images: int
    """Number of its images that were looked at."""
    mark: int
    """Tells the last of them from others: the time of its recording, or a checksum."""


def write_cursor(connection: sqlite3.Connection, cursor: ImportCursor) -> None:
    """Store a cursor in the caller's transaction: together with its frame."""
    connection.execute(_TABLE)
    connection.execute(_KEEP, (cursor.recording, cursor.images, cursor.mark))


class ImportCursors(Closing):
    """Import cursors of a frame log, to continue an import that was stopped."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        """Open a frame log that is there already; errors as `FrameStore`."""
        self._db = Database(path, read_only=False, timeout_s=timeout_s)

    def find(self, recording: str) -> ImportCursor | None:
        """Return the cursor in a file; None where no image of it was looked at."""
        with self._db.read() as connection:
            if not connection.execute("PRAGMA table_info(file_places)").fetchall():
                return None
            row = connection.execute(
                "SELECT images, mark FROM file_places WHERE recording = ?", (recording,)
            ).fetchone()
        return None if row is None else ImportCursor(recording, int(row[0]), int(row[1]))

    def put(self, cursor: ImportCursor) -> None:
        """Store a cursor."""
        with self._db.write() as connection:
            write_cursor(connection, cursor)

    def close(self) -> None:
        """Close the file."""
        self._db.close()


Split = Literal["train", "held_out"]

TRAIN: Split = "train"
HELD_OUT: Split = "held_out"

LOGGED = "logged"
LABELLED = "labelled"
REJECTED = "rejected"


@dataclass(frozen=True)
class Observation:
    """One image as the camera gave it."""

    image: RgbImage
    """uint8 RGB, shape (H, W, 3)."""
    stamp_ns: int
    """Time of its exposure, nanoseconds."""
    frame_id: str
    """The camera's coordinate frame, from the image's header."""
    intrinsics: Intrinsics | None = None
    """Of this image, in its pixels; None where no camera_info came."""
    confidence: float | None = None
    """The student's mean confidence in its depth of this image, 0..1."""
    cursor: ImportCursor | None = None
    """Of an imported image: its cursor in the recording, kept with the frame."""
    invalid_mask: Mask | None = None
    """(H, W), where a rectified image shows what the camera did not see; None = nowhere."""


@dataclass(frozen=True)
class AddResult:
    """Result of offering an image to the frame log."""

    frame_id: int | None
    """The stored frame's id; None where it was not kept."""
    reason: str
    """'kept', or why not: one of the constants of `framelog.policy`."""

    @property
    def kept(self) -> bool:
        """Whether the frame is stored."""
        return self.frame_id is not None


@dataclass(frozen=True)
class LoggedFrame:
    """A frame that waits for its label."""

    id: int
    stamp_ns: int
    frame_id: str
    """The camera's coordinate frame (not the frame's id)."""
    jpeg: bytes
    width: int
    height: int
    intrinsics: Intrinsics | None
    invalid_mask_png: bytes | None = None
    """The mask of what the camera did not see, 1-bit PNG; None = it saw all."""


class LabelledSpan(NamedTuple):
    """How many frames have a label, and how long a time they cover."""

    frames: int
    seconds: float
    """From the stamp of the first to that of the last."""


@dataclass(frozen=True)
class TrainingFrame:
    """An image with its label."""

    id: int
    image: RgbImage
    """uint8 RGB, shape (H, W, 3)."""
    depth: DepthMap
    """float32 metres, NaN = unknown, shape (h, w): the same view at the teacher's size."""
    intrinsics: Intrinsics | None
    """Of `image`, in its pixels."""
    stamp_ns: int
    split: Split
    confidence: npt.NDArray[np.float32] | None = None
    """The teacher's confidence, 0..1, shape (h, w), where it gave one."""


@dataclass(frozen=True)
class StoreStats:
    """A count of the frame log at one moment."""

    frames: dict[str, dict[str, int]]
    """Number of frames by state ('logged', 'labelled', 'rejected') and split."""
    rejected: dict[str, int]
    """Number of stored frames that the teacher or its checks refused, by reason."""
    new_labels: int
    """Labelled training frames whose label came after the last finished round had begun."""
    bytes: int
    """Space in use inside the file (its write-ahead log, some MB at most, comes on top)."""
    max_bytes: int
    first_stamp_ns: int | None
    last_stamp_ns: int | None
    teachers: dict[str, int]
    """Number of labels by 'name version'."""
    not_kept: dict[str, int] = field(default_factory=dict)
    """Observations that this store object did not keep, by reason, since it was opened."""

    @property
    def total(self) -> int:
        """Number of stored frames, in any state."""
        return sum(sum(by_split.values()) for by_split in self.frames.values())

    def as_dict(self) -> dict[str, Any]:
        """Return plain values by name, fit for JSON."""
        return {**dataclasses.asdict(self), "total": self.total}
