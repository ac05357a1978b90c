"""Imports of recordings into the frame log: options, the loop over the images, the report."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tiekd_ros.core import Closing
from tiekd_ros.core.camera import CameraModel
from tiekd_ros.framelog import policy
from tiekd_ros.framelog.records import ImportCursor, ImportCursors
from tiekd_ros.framelog.store import FrameStore

NOT_ASKED_FOR = "not_asked_for"
"""Reason for images that `every` skips."""
UNREADABLE = "unreadable"

_SAVE_EVERY_S = 1.0  # where nothing is kept: a kept frame brings its cursor with it
_Image = TypeVar("_Image")

Calibration = Callable[[tuple[int, int]], CameraModel]
"""Returns the calibration of images of (width, height)."""


@dataclass(frozen=True)
class ImportOptions:
    """The images to take from a recording."""

    image_topic: str = ""
    """'' = the only one with a camera's images."""
    camera_info_topic: str = ""
    """'' = `camera_info` beside the images."""
    calibration: Calibration | None = None
    """Instead of the recording's own calibration."""
    every: int = 1
    """Only one image in so many."""
    again: bool = False
    """Look again at images that an earlier import has looked at."""
    rectify: bool = False
    """Remove the lens's distortion."""


@dataclass
class ImportReport:
    """Result of importing one recording."""

    bag: str
    image_topic: str
    camera_info_topic: str
    """'' where it has none, or a file was given instead."""
    images: int
    """In the recording."""
    looked_at_before: int = 0
    """By an earlier import."""
    kept: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    """Images that were not kept, by reason."""
    stopped: str = ""
    """'no_room' where the frame log was full before the end; '' = all was offered."""
    not_looked_at: int = 0
    """Images that were left for another time."""
    notes: list[str] = field(default_factory=list)
    """Oddities of the recording, for people."""
    warnings: list[str] = field(default_factory=list)
    """Faults that students will learn."""


class Recording(Closing, Generic[_Image]):
    """A recording that is open and known to be of use; its length is its number of images."""

    def __init__(self, report: ImportReport, options: ImportOptions) -> None:
        self.report = report
        self._options = options
        self._faults: list[str] = []

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @property
    @abstractmethod
    def seconds(self) -> float:
        """Length of the recording, from its first image to its last."""

    @abstractmethod
    def _images(self) -> Iterator[tuple[ImportCursor, _Image]]:
        """Yield all images in order, each with the cursor behind it."""

    @abstractmethod
    def _is_valid(self, cursor: ImportCursor) -> bool:
        """Return whether the images up to a stored cursor are still those that it counted."""

    @abstractmethod
    def _recording_ids(self) -> Collection[str]:
        """Return what tells each of its files from all others."""

    @abstractmethod
    def _add(self, store: FrameStore, image: _Image, cursor: ImportCursor) -> str:
        """Offer one image; return `policy.KEPT`, or why it was not kept."""

    def _conclude(self) -> None:
        """Add notes and warnings to the report once all images were offered."""

    def run(self, store: FrameStore, advance: Callable[[], None]) -> ImportReport:
        """Offer its images to the frame log; `advance` is called after each.

        Killed at any moment and run again, it continues where it was; also where the log was full.

        Raises:
            FrameStoreError: the frame log cannot be written; what was kept stays.
        """
        left_out: Counter[str] = Counter()
        with ImportCursors(store.path, store.settings.lock_timeout_s) as cursors:
            try:
                self._offer_all(store, cursors, left_out, advance)
            finally:
                self.report.left_out = dict(left_out.most_common())
                self._conclude()
        return self.report

    def _offer_all(
        self,
        store: FrameStore,
        cursors: ImportCursors,
        left_out: Counter[str],
        advance: Callable[[], None],
    ) -> None:
        before = {} if self._options.again else self._looked_at(cursors)
        last: ImportCursor | None = None
        saved_at = time.monotonic()
        try:
            for number, (cursor, image) in enumerate(self._images()):
                if cursor.images <= before.get(cursor.recording, 0):
                    self.report.looked_at_before += 1
                    advance()
                    continue
                skipped = number % self._options.every
                reason = NOT_ASKED_FOR if skipped else self._add(store, image, cursor)
                if reason == policy.NO_ROOM:
                    self.report.stopped = policy.NO_ROOM
                    self.report.not_looked_at = len(self) - number
                    return
                if reason == policy.KEPT:
                    self.report.kept += 1
                else:
                    left_out[reason] += 1
                if last is not None and last.recording != cursor.recording:
                    cursors.put(last)
                last = cursor
                if time.monotonic() - saved_at > _SAVE_EVERY_S:
                    cursors.put(last)
                    saved_at = time.monotonic()
                advance()
        finally:
            if last is not None:
                cursors.put(last)

    def _looked_at(self, cursors: ImportCursors) -> dict[str, int]:
        """Return how many images of each file an earlier import has looked at."""
        found = filter(None, map(cursors.find, self._recording_ids()))
        return {cursor.recording: cursor.images for cursor in found if self._is_valid(cursor)}
