"""Items of data sets (an image with what is known of its depth), and files of teacher maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.errors import BadDepthError, BadImageError, DatasetError
from tiekd_ros.core.images import (
    DEPTH_UNITS_PER_M,
    DepthMap,
    RgbImage,
    decode_depth_png,
    decode_share_png,
    encode_depth_png,
    encode_share_png,
)

TEACHER_FOLDER = "teacher"
"""Default folder of a data set's teacher maps."""
TEACHER_NOTE = "teacher.json"
"""The file beside the maps that says who made them, and in which unit."""

_Decoded = TypeVar("_Decoded")


def read_file(path: Path, decode: Callable[[bytes], _Decoded], *, hint: str = "") -> _Decoded:
    """Read a file of a data set and decode it.

    Args:
        path: the file.
        decode: raises BadImageError or BadDepthError.
        hint: the way out where it is damaged, for the message.

    Raises:
        DatasetError: it cannot be read or decoded; the message names it.
    """
    try:
        return decode(path.read_bytes())
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}") from error
    except (BadImageError, BadDepthError) as error:
        raise DatasetError(f"{path}: {error}{hint}") from error


def check_folder(path: Path, wanted: str) -> None:
    """Raise DatasetError unless `path` is a folder; the message asks for a folder of `wanted`."""
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise DatasetError(f"{path} {what}; give {wanted}")


@dataclass(frozen=True)
class MapFormat:
    """16-bit PNG, one channel, 0 = unknown.

    `share_of_m` None: the number is metres * 256, rounded. Otherwise, as published for KITTI
    (80 m) and NYU (10 m): the share of that depth, v / 65535 * share_of_m, truncated. (The
    published NYU evaluation divides by 65525 instead, 0.015 % more: a slip, not followed.)
    """

    share_of_m: float | None = None

    @property
    def units(self) -> str:
        """Unit of the numbers, in words."""
        if self.share_of_m is None:
            return "uint16 = metres * 256, 0 = unknown"
        return f"uint16 = metres / {self.share_of_m:g} * 65535, 0 = unknown"

    @property
    def max_depth_m(self) -> float:
        """The largest depth that can be stored, in metres."""
        return 65535 / DEPTH_UNITS_PER_M if self.share_of_m is None else self.share_of_m

    @property
    def at_image_size(self) -> bool:
        """Whether maps must have their image's size, as the published ones have."""
        return self.share_of_m is not None

    def encode(self, depth: DepthMap) -> bytes:
        """Encode metres, (H, W), NaN = unknown; what cannot be stored becomes unknown.

        Shares are the exception: what is beyond their range becomes the farthest depth.
        """
        if self.share_of_m is None:
            return encode_depth_png(depth)
        return encode_share_png(depth, self.share_of_m)

    def read(self, path: Path) -> DepthMap:
        """Read a map: float32 metres (H, W), NaN = unknown.

        Raises:
            DatasetError: the file cannot be read or is no 16-bit PNG.
        """
        try:
            data = path.read_bytes()
            if self.share_of_m is None:
                return decode_depth_png(data)
            return decode_share_png(data, self.share_of_m)
        except OSError as error:
            raise DatasetError(
                f"cannot read the teacher map {path}: {error.strerror}; make it with `tiekd label`"
            ) from error
        except BadDepthError as error:
            raise DatasetError(f"{path}: {error}") from error


KITTI_MAPS = MapFormat(80.0)
NYU_MAPS = MapFormat(10.0)
FOLDER_MAPS = MapFormat()


@dataclass(frozen=True)
class ReadOptions:
    """Which parts of a data set to read, and whether to skip unusable entries."""

    split: Path | None = None
    """Split file, as given or inside the data set's folder.

    Lines `image depth focal` (KITTI, NYU; None: the usual file) or image names (folders; None:
    all images).
    """
    subset: Literal["train", "test"] = "test"
    """The default split file to use where none is given (KITTI, NYU)."""
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
    """Entries that a data set leaves out, with the reasons."""

    bad: dict[str, str] = field(default_factory=dict)
    """Entries that cannot be used, by name, each with the full reason."""
    without_truth: list[str] = field(default_factory=list)
    """Entries whose split file says `None` for depth; the published protocol drops them."""

    def add(self, name: str, reason: str) -> None:
        """Note an entry that cannot be used; the first reason stays."""
        self.bad.setdefault(name, reason)


class NamedItems(Protocol):
    """What data sets and sources of images to label have in common."""

    @property
    def names(self) -> Sequence[str]:
        """The items' names, in the order of their indices."""
        ...

    @property
    def report(self) -> SkipReport:
        """Entries left out when it was opened; readers of items may add some."""
        ...

    def __len__(self) -> int:
        """Return the number of items."""
        ...


class DepthDataset(NamedItems, Protocol):
    """Images with depth, by index. Reading an item changes nothing but may raise."""

    @property
    def kind(self) -> str:
        """Layout: one of `DATASET_KINDS`, or 'frames'."""
        ...

    def item(self, index: int) -> DepthItem:
        """Read one item.

        Raises:
            DatasetError: a file is missing, damaged or does not fit; the message names it.
        """
        ...


class LabelSource(NamedItems, Protocol):
    """Images that a teacher can label: what to send, and how its answer is kept."""

    @property
    def map_format(self) -> MapFormat:
        """Format of this layout's teacher maps."""
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
