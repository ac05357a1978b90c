"""The labelled frames of a frame log, read like a data set."""

from __future__ import annotations

from pathlib import Path

from tiekd_ros.core import Closing
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.state import StateFolder
from tiekd_ros.datasets import (
    AUTO,
    DatasetError,
    DepthDataset,
    DepthItem,
    ReadOptions,
    SkipReport,
    open_dataset,
)
from tiekd_ros.framelog import FrameStore
from tiekd_ros.framelog.records import Split

FRAMES = "frames"


def frame_log_file(path: str | Path) -> Path | None:
    """Return the frame log that `path` is or holds (a state folder); None where there is none."""
    path = Path(path).expanduser()
    inside = StateFolder(path).frames
    if inside.is_file():
        return inside
    return path if path.is_file() and path.suffix == inside.suffix else None


class FrameLogDataset(Closing):
    """The labelled frames of a frame log, oldest first; the labels are a teacher's depth.

    A frame log knows no truth: `item().truth` is always None, `item().teacher` the label.

    Args:
        path: a state folder, or the frame log in it.
        split: 'train' or 'held_out' frames only; None: all.

    Raises:
        DatasetError: there is no frame log, or it has no labelled frame.
        FrameStoreError: the file is damaged or cannot be read.
    """

    kind = FRAMES

    def __init__(self, path: str | Path, split: Split | None = None) -> None:
        """Open the log for reading; a companion may go on writing to it."""
        file = frame_log_file(path)
        if file is None:
            raise DatasetError(f"there is no frame log in {path}; give a state folder")
        self.report = SkipReport()
        self._store = FrameStore(file, read_only=True)
        self._ids = self._store.labelled_ids(split)
        if not self._ids:
            self._store.close()
            which = f"{split} " if split else ""
            raise DatasetError(
                f"{file} has no labelled {which}frame; label it with a teacher first (tiekd label)"
            )
        self.names: list[str] = [str(frame_id) for frame_id in self._ids]

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    def __len__(self) -> int:
        """Return the number of labelled frames."""
        return len(self._ids)

    def item(self, index: int) -> DepthItem:
        """Read one frame and its label, which may have another resolution.

        Raises:
            DatasetError: it is damaged, or was evicted meanwhile.
        """
        try:
            frame = self._store.load(self._ids[index])
        except TiekdError as error:
            raise DatasetError(str(error)) from error
        return DepthItem(self.names[index], frame.image, None, frame.depth, frame.intrinsics)


def open_data(
    kind: str,
    path: str | Path,
    options: ReadOptions | None = None,
    frames_split: Split | None = None,
) -> DepthDataset:
    """Open a data set of any layout, or a frame log ('frames').

    Args:
        kind: as `open_dataset`, or 'frames'; 'auto' also knows a state folder.
        path: the data set's folder, a state folder or a frame log.
        options: what to read; for a frame log, `truth` on and a split file are refused.
        frames_split: which part of a frame log to take; None: all.

    Raises:
        TiekdError: it cannot be opened as asked; the message says why and what would do.
    """
    options = options or ReadOptions()
    if kind != FRAMES and not (kind == AUTO and frame_log_file(path) is not None):
        return open_dataset(kind, path, options)
    if options.truth:
        raise DatasetError(
            f"{path} is a frame log: it has a teacher's depth and no truth; compare with the "
            "teacher's (--against teacher)"
        )
    if options.split is not None:
        raise DatasetError(f"{path} is a frame log, which has no split files: leave out --split")
    return FrameLogDataset(path, frames_split)
