"""What is asked of an import into the frame log, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from tiekd_ros.camera import Intrinsics
from tiekd_ros.frames.store import FrameStore

NOT_ASKED_FOR = "not_asked_for"
"""Why an image is left out that `every` passes over."""
UNREADABLE = "unreadable"

Calibration = Callable[[tuple[int, int]], Intrinsics]
"""Returns the intrinsics of images of (width, height)."""


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
    """Look at images anew that an earlier import has looked at."""


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

    def as_dict(self) -> dict[str, Any]:
        """Return plain values by name, fit for JSON."""
        return asdict(self)


class Recording(Sized, Protocol):
    """A recording that is open, and known to be of use; its length is its number of images."""

    report: ImportReport

    @property
    def seconds(self) -> float:
        """How long it is."""

    def run(self, store: FrameStore, advance: Callable[[], None]) -> ImportReport:
        """Offer its images to the frame log; `advance` is called after each."""

    def close(self) -> None:
        """Close its files."""
