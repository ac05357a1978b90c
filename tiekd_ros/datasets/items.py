"""What every data set gives: one image with what is known of its depth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.errors import DatasetError
from tiekd_ros.core.images import DepthMap, RgbImage
from tiekd_ros.datasets.map_format import MapFormat


@dataclass(frozen=True)
class ReadOptions:
    """What to read of a data set, and what to do with entries that cannot be used."""

    split: Path | None = None
    """Split file, as given or inside the data set's folder.

    Lines `image depth focal` (KITTI, NYU; None: the usual file) or image names (folders; None:
    all images).
    """
    subset: Literal["train", "test"] = "test"
    """Which of the usual split files to take where none is given (KITTI, NYU)."""
    truth: bool = True
    """Read measured depth: every item has it, or is refused. Otherwise no item has it."""
    teacher: bool = False
    """Read a teacher's depth: every item has it, or is refused. Otherwise no item has it."""
    teacher_maps: Path | None = None
    """The folder of teacher maps; None: `teacher/` in the data set's folder."""
    crop: bool = True
    """KITTI: cut image and truth to the benchmark's 352x1216, which teacher maps have."""
    skip_bad: bool = False
    """Leave out entries without their files, and list them, instead of refusing all."""


@dataclass(frozen=True, eq=False)
class DepthItem:
    """One image of a data set.

    Depth maps are float32 metres, NaN = unknown, and show the image's view. They have the
    image's size on KITTI and NYU; in folders and frame logs they may have another one.
    """

    name: str
    image: RgbImage
    """uint8 RGB, (H, W, 3)."""
    truth: DepthMap | None
    """Measured depth; None where it was not asked for, or the data set has none."""
    teacher: DepthMap | None
    """A teacher's depth; None where it was not asked for, or the data set has none."""
    intrinsics: Intrinsics | None
    """Of `image`, in its pixels; None where nothing records them."""


@dataclass
class SkipReport:
    """What a data set leaves out, and why."""

    bad: dict[str, str] = field(default_factory=dict)
    """Entries that cannot be used, by name, each with the full reason."""
    without_truth: list[str] = field(default_factory=list)
    """Entries whose split file says `None` for depth; the published protocol drops them."""

    def add(self, name: str, reason: str) -> None:
        """Note an entry that cannot be used; the first reason stays."""
        self.bad.setdefault(name, reason)


class DepthDataset(Protocol):
    """Images with depth, by index. Reading an item changes nothing but may raise."""

    @property
    def kind(self) -> str:
        """Which layout it has: one of `DATASET_KINDS`, or 'frames'."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """The items' names, in the order of their indices."""
        ...

    @property
    def report(self) -> SkipReport:
        """What was left out when it was opened; readers of items may add to it."""
        ...

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def item(self, index: int) -> DepthItem:
        """Read one item.

        Raises:
            DatasetError: a file is missing, damaged or does not fit; the message names it.
        """
        ...


class LabelSource(Protocol):
    """Images that a teacher can label: what to send, and how its answer is kept."""

    @property
    def names(self) -> Sequence[str]:
        """The images' names, in the order of their indices."""
        ...

    @property
    def report(self) -> SkipReport:
        """What was left out when it was opened."""
        ...

    @property
    def map_format(self) -> MapFormat:
        """How teacher maps are stored in this layout."""
        ...

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def view(self, index: int) -> tuple[RgbImage, Intrinsics | None]:
        """Read one image (cropped where the layout's teacher maps are) and its intrinsics."""
        ...

    def teacher_file(self, index: int) -> str:
        """Return the name of the image's map inside a folder of teacher maps."""
        ...

    def stamps_ns(self, rate_hz: float) -> list[int]:
        """Return one stamp an image in nanoseconds: recorded ones, else index / rate."""
        ...


def readable_items(
    dataset: DepthDataset, *, skip_bad: bool = False, limit: int | None = None
) -> Iterator[DepthItem]:
    """Yield the items in order, at most `limit`.

    Args:
        dataset: what to read.
        skip_bad: pass over items that cannot be read, and note them in the data set's report.
        limit: how many items to yield at most; None = all.

    Raises:
        DatasetError: an item cannot be read, and `skip_bad` is off.
    """
    yielded = 0
    for index in range(len(dataset)):
        if limit is not None and yielded >= limit:
            return
        try:
            item = dataset.item(index)
        except DatasetError as error:
            if not skip_bad:
                raise
            dataset.report.add(dataset.names[index], str(error))
            continue
        yielded += 1
        yield item
