"""What is asked of an import into the frame log, and what became of it."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from tiekd_ros.core import Closing
from tiekd_ros.core.camera import CameraModel
from tiekd_ros.framelog.records import ImportCursors
from tiekd_ros.framelog.store import FrameStore

NOT_ASKED_FOR = "not_asked_for"
"""Why an image is left out that `every` passes over."""
UNREADABLE = "unreadable"

Calibration = Callable[[tuple[int, int]], CameraModel]
"""Returns the calibration of images of (width, height)."""


@dataclass(frozen=True)
class ImportOptions:
    """What to take from a recording."""

    image_topic: str = ""
    """'' = the only one with a camera's images."""
    camera_info_topic: str = ""
    """'' = `camera_info` beside the images."""
    calibration: Calibration | None = None
    """Instead of the recording's own calibration."""
    every: int = 1
    """Only one image in so many."""
    again: bool = False
    """ImageStats at images anew that an earlier import has looked at."""
    rectify: bool = False
    """Take the lens's distortion out."""


@dataclass
class ImportReport:
    """What became of a recording."""

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
    """Why it did not come to the end: 'no_room' where the frame log is full; '' = it did."""
    not_looked_at: int = 0
    """Images that were left for another time."""
    notes: list[str] = field(default_factory=list)
    """What was odd."""
    warnings: list[str] = field(default_factory=list)
    """What students will learn wrongly."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values by name, fit for JSON."""
        return asdict(self)


class Recording(Closing):
    """A recording that is open, and known to be of use; its length is its number of images."""

    def __init__(self, report: ImportReport) -> None:
        self.report = report
        self._left_out: Counter[str] = Counter()

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @property
    @abstractmethod
    def seconds(self) -> float:
        """How long it is."""

    def run(self, store: FrameStore, advance: Callable[[], None]) -> ImportReport:
        """Offer its images to the frame log; `advance` is called after each.

        Killed at any moment and run again, it goes on where it was; so where the log has no room.

        Raises:
            FrameStoreError: the frame log cannot be written; what was kept stays.
        """
        cursors = ImportCursors(store.path, store.settings.lock_timeout_s)
        try:
            self._offer(store, cursors, advance)
        finally:
            cursors.close()
            self.report.left_out = dict(self._left_out.most_common())
            self._conclude()
        return self.report

    @abstractmethod
    def _offer(
        self, store: FrameStore, cursors: ImportCursors, advance: Callable[[], None]
    ) -> None:
        """Offer the images that no earlier import has looked at."""

    @abstractmethod
    def _conclude(self) -> None:
        """Put what was odd into the report."""
