"""KITTI and NYU Depth v2 in their own layouts: a split file names images, depth and focal lengths.

One line an image: `image depth focal` for KITTI and NYU, the image's name in folders.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.errors import BadImageError, DatasetError
from tiekd_ros.core.images import (
    DEPTH_UNITS_PER_M,
    KB_SIZE,
    DepthMap,
    RgbImage,
    decode_depth_png,
    decode_image,
    kb_window,
)
from tiekd_ros.datasets.calibration import find_intrinsics, plausible
from tiekd_ros.datasets.items import (
    KITTI_MAPS,
    NYU_MAPS,
    TEACHER_FOLDER,
    DepthItem,
    MapFormat,
    ReadOptions,
    SkipReport,
    check_folder,
    read_file,
)

SPLIT_FOLDERS = (".", "split", "splits")
_NO_DEPTH = "None"


@dataclass(frozen=True)
class SplitEntry:
    """One line: paths relative to the data set's roots, without the leading slash some have."""

    image: str
    depth: str | None
    """None where the file says `None`."""
    focal: float | None
    """In pixels; None where the line ends before."""


def read_split(path: Path) -> list[SplitEntry]:
    """Return a split file's entries, sorted by image as the published loaders do.

    Raises:
        DatasetError: the file is missing, empty, or a line is not `image depth focal`.
    """
    entries: dict[str, SplitEntry] = {}
    for number, line in enumerate(_lines(path), 1):
        words = line.split()
        if not words:
            continue
        entry = _entry(words, f"{path}, line {number}")
        if entry.image in entries:
            raise DatasetError(f"{path}, line {number} names {entry.image} again; remove one")
        entries[entry.image] = entry
    if not entries:
        raise DatasetError(f"{path} is empty; it needs lines `image depth focal`")
    return [entries[name] for name in sorted(entries)]


def read_names(path: Path, suffixes: Sequence[str]) -> list[str]:
    """Return the image names in a folder's split file, one a line, without their suffix.

    Args:
        path: the file; empty lines and those that start with `#` are passed over.
        suffixes: what may follow a name and is cut off, in lower case.

    Raises:
        DatasetError: the file cannot be read, is empty, or names an image twice.
    """
    names: dict[str, None] = {}
    for number, line in enumerate(_lines(path), 1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        suffix = PurePosixPath(name).suffix
        if suffix.lower() in suffixes:
            name = name.removesuffix(suffix)
        if name in names:
            raise DatasetError(f"{path}, line {number} names {name} again; remove one")
        names[name] = None
    if not names:
        raise DatasetError(f"{path} is empty; it needs one image name a line")
    return list(names)


def find_split(folder: Path, split: Path | None, usual: Sequence[str]) -> Path:
    """Return the split file: `split`, here or in `folder`, else the first of the `usual` names.

    Raises:
        DatasetError: there is none.
    """
    places = [folder / place for place in SPLIT_FOLDERS]
    if split is not None:
        split = split.expanduser()
        found = [p for p in (split, *(place / split for place in places)) if p.is_file()]
        if found:
            return found[0]
        raise DatasetError(f"there is no split file {split}, neither here nor in {folder}")
    for name in usual:
        for place in places:
            if (place / name).is_file():
                return place / name
    raise DatasetError(
        f"no split file {' or '.join(usual)} in {folder}, its split/ or splits/; give one "
        "(--split FILE, lines `image depth focal`)"
    )


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"cannot read the split file {path}: {error}") from error


def _entry(words: list[str], where: str) -> SplitEntry:
    if len(words) not in (2, 3):
        raise DatasetError(f"{where} has {len(words)} words; expected `image depth focal`")
    image, depth = (word.lstrip("/") for word in words[:2])
    for path in (image, depth):
        if not path or ".." in PurePosixPath(path).parts:
            raise DatasetError(f"{where}: {path!r} is no path inside the data set")
    focal = None
    if len(words) == 3:
        try:
            focal = float(words[2])
        except ValueError:
            focal = math.nan
        if not (math.isfinite(focal) and focal > 0):
            raise DatasetError(f"{where}: focal must be positive pixels, got {words[2]!r}")
    return SplitEntry(image, None if depth == _NO_DEPTH else depth, focal)


_LISTED = 3


@dataclass(frozen=True)
class EntryFiles:
    """One line of a split file, and its files where they were asked for."""

    entry: SplitEntry
    image: Path
    truth: Path | None
    teacher: Path | None


@dataclass(frozen=True)
class SplitLayout:
    """Folders (relative to the data set's), units and split files of a layout."""

    kind: str
    image_roots: tuple[str, ...]
    depth_roots: tuple[str, ...]
    depth_units_per_m: float
    map_format: MapFormat
    splits: dict[str, tuple[str, ...]]
    """Usual names of split files, by subset."""
    example: str
    """An image's usual path, for messages."""


class SplitDataset:
    """A data set whose items a split file names; base of the readers of one layout each.

    Items are sorted by image path. Lines whose depth is `None` are dropped and counted in
    `report.without_truth`.

    Raises:
        DatasetError: folder, split file or files of its entries are missing (with
            `options.skip_bad`, entries without their files are listed instead).
    """

    layout: SplitLayout

    def __init__(self, path: str | Path, options: ReadOptions | None = None) -> None:
        """Read the split file and look for each entry's files; opens no image."""
        self.path = Path(path).expanduser()
        self.options = options or ReadOptions()
        self.report = SkipReport()
        check_folder(self.path, f"the folder of a {self.kind} data set")
        usual = self.layout.splits[self.options.subset]
        self.split = find_split(self.path, self.options.split, usual)
        self._roots = {
            "image": self._present(self.layout.image_roots),
            "depth": self._present(self.layout.depth_roots),
        }
        self._files = self._resolve(read_split(self.split))
        self.names: list[str] = [files.entry.image for files in self._files]

    @property
    def kind(self) -> str:
        """The layout's name."""
        return self.layout.kind

    @property
    def map_format(self) -> MapFormat:
        """Format of this layout's teacher maps."""
        return self.layout.map_format

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._files)

    def item(self, index: int) -> DepthItem:
        """Read one item.

        Raises:
            DatasetError: a file is damaged, or sizes or intrinsics do not fit the image.
        """
        files = self._files[index]
        image, intrinsics = self._image(files)
        size = image.shape[:2]
        truth = None if files.truth is None else self._truth(files.truth, files.image, size)
        image, truth, intrinsics = self._cropped(files.image, image, truth, intrinsics)
        teacher = None
        if files.teacher is not None:
            teacher = self._teacher(files, (size[0], size[1]), (image.shape[0], image.shape[1]))
        return DepthItem(files.entry.image, image, truth, teacher, intrinsics)

    def view(self, index: int) -> tuple[RgbImage, Intrinsics | None]:
        """Read one image, cropped like the layout's teacher maps, and its intrinsics."""
        files = self._files[index]
        image, intrinsics = self._image(files)
        image, _, intrinsics = self._cropped(files.image, image, None, intrinsics)
        return image, intrinsics

    def stamps_ns(self, rate_hz: float) -> list[int]:
        """Return index / rate in nanoseconds: the split's images are no sequence."""
        return [round(index * 1e9 / rate_hz) for index in range(len(self))]

    def teacher_file(self, index: int) -> str:
        """Return the name of an item's map in a folder of teacher maps."""
        return self._teacher_names(self._files[index].entry)[0]

    def _teacher_names(self, entry: SplitEntry) -> Sequence[str]:
        """Return the names that an entry's teacher map may have, the one to write first."""
        return (Path(entry.image.replace("/", "_")).with_suffix(".png").name,)

    def _cropped(
        self, path: Path, image: RgbImage, truth: DepthMap | None, intrinsics: Intrinsics
    ) -> tuple[RgbImage, DepthMap | None, Intrinsics]:
        """Cut an item to the layout's evaluation size; the base does nothing."""
        return image, truth, intrinsics

    def _teacher(
        self, files: EntryFiles, full: tuple[int, int], shape: tuple[int, int]
    ) -> DepthMap:
        """Read a teacher map for an item of `shape` that was cut from an image of `full`."""
        assert files.teacher is not None
        teacher = self.map_format.read(files.teacher)
        if teacher.shape != shape:
            raise _size_error(files.teacher, teacher.shape, files.image, shape)
        return teacher

    def _intrinsics(self, files: EntryFiles, size: tuple[int, int]) -> Intrinsics:
        """Return the intrinsics of a whole image of (width, height) `size`.

        The split file's focal length, with the principal point in the image's middle.
        """
        focal, (width, height) = files.entry.focal, size
        if focal is None:
            raise DatasetError(
                f"{self.split}: {files.entry.image} has no focal length; write it as third word"
            )
        matrix = (focal, 0, (width - 1) / 2, 0, focal, (height - 1) / 2, 0, 0, 1)
        return plausible(f"{self.split}, focal of {files.entry.image}", matrix, size)

    def _image(self, files: EntryFiles) -> tuple[RgbImage, Intrinsics]:
        image = read_file(files.image, decode_image, hint="; replace the file")
        return image, self._intrinsics(files, (image.shape[1], image.shape[0]))

    def _truth(self, path: Path, image: Path, size: tuple[int, ...]) -> DepthMap:
        truth = read_file(path, lambda d: decode_depth_png(d, self.layout.depth_units_per_m))
        if truth.shape != size:
            raise _size_error(path, truth.shape, image, size)
        return truth

    def _present(self, names: Sequence[str]) -> list[Path]:
        return [folder for folder in (self.path / name for name in names) if folder.is_dir()]

    def _find(self, what: str, relative: str) -> Path | None:
        files = (root / relative for root in self._roots[what])
        return next((file for file in files if file.is_file()), None)

    def _resolve(self, entries: Sequence[SplitEntry]) -> list[EntryFiles]:
        found: list[EntryFiles] = []
        missing: dict[str, list[str]] = {"image": [], "depth": [], "teacher": []}
        for entry in entries:
            if entry.depth is None:
                self.report.without_truth.append(entry.image)
                continue
            files = self._files_of(entry, missing)
            if files is not None:
                found.append(files)
        for what, names in missing.items():
            for name in names:
                self.report.add(name, f"its {what} file is missing: {self._expected(what)}")
        if not found or (self.report.bad and not self.options.skip_bad):
            raise DatasetError(self._complaint(len(entries), missing))
        return found

    def _files_of(self, entry: SplitEntry, missing: dict[str, list[str]]) -> EntryFiles | None:
        assert entry.depth is not None
        image = self._find("image", entry.image)
        truth = self._find("depth", entry.depth) if self.options.truth else None
        teacher = None
        if image is None:
            missing["image"].append(entry.image)
            return None
        if self.options.truth and truth is None:
            missing["depth"].append(entry.depth)
            return None
        if self.options.teacher:
            names = self._teacher_names(entry)
            maps = [self.teacher_folder / name for name in names]
            teacher = next((path for path in maps if path.is_file()), None)
            if teacher is None:
                missing["teacher"].append(names[0])
                return None
        return EntryFiles(entry, image, truth, teacher)

    @property
    def teacher_folder(self) -> Path:
        """Folder of the teacher maps, whether or not it exists."""
        return self.options.teacher_maps or self.path / TEACHER_FOLDER

    def _expected(self, what: str) -> str:
        if what == "teacher":
            return f"expected in {self.teacher_folder}; make it with `tiekd label`"
        roots = ", ".join(str(root) for root in self._roots[what]) or "no such folder"
        return f"expected in {roots}"

    def _complaint(self, count: int, missing: dict[str, list[str]]) -> str:
        parts = [
            f"{len(names)} of {count} entries of {self.split} have no {what} file (such as "
            f"{', '.join(names[:_LISTED])}): {self._expected(what)}"
            for what, names in missing.items()
            if names
        ]
        if not parts:
            return f"{self.split}: every line says None for depth; nothing is left to read"
        if len(missing["image"]) + len(self.report.without_truth) == count:
            there = sorted(p.name for p in self.path.iterdir())[:8]
            return (
                f"{self.path} is not laid out as {self.kind}: {parts[0]}. Expected is "
                f"{self.path / self.layout.example}; there is {', '.join(there) or 'nothing'}"
            )
        return "; ".join(parts) + "; or leave those out with skip_bad (--skip-bad)"


def _size_error(
    path: Path, shape: Sequence[int], image: Path, wanted: Sequence[int]
) -> DatasetError:
    return DatasetError(
        f"{path} is {shape[1]}x{shape[0]}, expected {wanted[1]}x{wanted[0]} as {image}: they do "
        "not show the same view; check that both come from the same data set and crop"
    )


CALIBRATION = "calib_cam_to_cam.txt"

_DEPTH_FOLDERS = ("gt_depth", "data_depth_annotated", "depth", ".")
_IMAGE_PATH = re.compile(r"(?P<date>[^/]+)/[^/]+/image_(?P<camera>\d\d)/data/[^/]+")


class KittiDataset(SplitDataset):
    """KITTI in its official layout.

    ```
    DIR/[input/|raw/]2011_09_26/calib_cam_to_cam.txt
    DIR/[input/|raw/]2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069.png
    DIR/[gt_depth/|data_depth_annotated/[train/|val/]]2011_09_26_drive_0002_sync/
        proj_depth/groundtruth/image_02/0000000069.png      uint16, metres * 256, 0 = unknown
    DIR/[split/|splits/]kitti_eigen_{train,test}.txt        image depth focal
    DIR/teacher/2011_09_26_2011_09_26_drive_0002_sync_image_02_data_0000000069.png
    ```

    Teacher maps are uint16, metres / 80 * 65535, of the cropped 352x1216. Read without the
    crop, they are NaN outside of it. Intrinsics come from the day's calibration; where it is
    not there, from the split's focal length with the principal point in the middle (which is
    up to 20 pixels off on KITTI).
    """

    layout = SplitLayout(
        kind="kitti",
        image_roots=("input", "raw", "raw_data", "."),
        depth_roots=tuple(
            f"{folder}/{part}" for folder in _DEPTH_FOLDERS for part in (".", "train", "val")
        ),
        depth_units_per_m=DEPTH_UNITS_PER_M,
        map_format=KITTI_MAPS,
        splits={
            "train": ("kitti_eigen_train.txt", "eigen_train_files_with_gt.txt"),
            "test": ("kitti_eigen_test.txt", "eigen_test_files_with_gt.txt"),
        },
        example="2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069.png",
    )

    def _cropped(
        self, path: Path, image: RgbImage, truth: DepthMap | None, intrinsics: Intrinsics
    ) -> tuple[RgbImage, DepthMap | None, Intrinsics]:
        if not self.options.crop:
            return image, truth, intrinsics
        rows, columns = _kb_window(path, image.shape[:2])
        cut = None if truth is None else truth[rows, columns]
        return image[rows, columns], cut, intrinsics.cropped(columns.start, rows.start)

    def _teacher(
        self, files: EntryFiles, full: tuple[int, int], shape: tuple[int, int]
    ) -> DepthMap:
        if self.options.crop:
            return super()._teacher(files, full, shape)
        rows, columns = _kb_window(files.image, full)
        teacher = np.full(full, np.nan, np.float32)
        teacher[rows, columns] = super()._teacher(files, full, KB_SIZE)
        return teacher

    def _intrinsics(self, files: EntryFiles, size: tuple[int, int]) -> Intrinsics:
        match = _IMAGE_PATH.fullmatch(files.entry.image)
        if match is not None:
            up = len(PurePosixPath(files.entry.image).parts) - 2  # to the folder of the day
            path = files.image.parents[up] / CALIBRATION
            if path.is_file():
                return read_calibration(path, match["camera"], size)
        return super()._intrinsics(files, size)


def _kb_window(path: Path, shape: Sequence[int]) -> tuple[slice, slice]:
    """Return `kb_window` of the image in a file.

    Raises:
        DatasetError: it is smaller than the crop.
    """
    try:
        return kb_window(shape)
    except BadImageError as error:
        raise DatasetError(f"{path}: {error}") from error


def read_calibration(path: Path, camera: str, size: tuple[int, int]) -> Intrinsics:
    """Return a rectified camera's intrinsics from KITTI's `calib_cam_to_cam.txt`.

    Args:
        path: the file.
        camera: two digits, '02' for the left colour camera.
        size: (width, height) of the image that they must fit.

    Raises:
        DatasetError: the file lacks this camera, or was made for images of another size.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        values = {key: text.split() for key, _, text in (line.partition(":") for line in lines)}
        matrix = [float(word) for word in values[f"P_rect_{camera}"]]
        made_for = [int(float(word)) for word in values[f"S_rect_{camera}"]]
    except (OSError, UnicodeDecodeError, ValueError, KeyError) as error:
        raise DatasetError(
            f"{path} is no KITTI calibration of camera {camera} ({error!r}): it needs the lines "
            f"`S_rect_{camera}: width height` and `P_rect_{camera}:` with 12 numbers"
        ) from error
    if len(matrix) != 12 or len(made_for) != 2:
        raise DatasetError(
            f"{path}: P_rect_{camera} has {len(matrix)} numbers and S_rect_{camera} "
            f"{len(made_for)}, expected 12 and 2"
        )
    if (made_for[0], made_for[1]) != size:
        raise DatasetError(
            f"{path} was made for images of {made_for[0]}x{made_for[1]}, this one is "
            f"{size[0]}x{size[1]}: use the calibration of the same day and the original images"
        )
    return plausible(path, np.reshape(matrix, (3, 4))[:, :3], size)


_TEACHER_PREFIX = "data_nyu_"


class NyuDataset(SplitDataset):
    """NYU Depth v2, images and depth registered to each other.

    ```
    DIR/[sync/|official_splits/{train,test}/]kitchen_0028b/rgb_00045.jpg
    DIR/[sync/|...]kitchen_0028b/sync_depth_00045.png    uint16, millimetres, 0 = unknown
    DIR/[split/|splits/]nyu_{train,test}.txt             image depth focal (a leading / is fine)
    DIR/teacher/data_nyu_kitchen_0028b_rgb_00045.png     uint16, metres / 10 * 65535
    ```

    The prefix `data_nyu_` of teacher maps may be missing. Intrinsics come from `K.txt` or
    `camera.yaml` in DIR; where there is none, from the split's focal length, with the
    principal point in the middle.
    """

    layout = SplitLayout(
        kind="nyu",
        image_roots=(".", "sync", "official_splits/train", "official_splits/test"),
        depth_roots=(".", "sync", "official_splits/train", "official_splits/test"),
        depth_units_per_m=1000.0,
        map_format=NYU_MAPS,
        splits={
            "train": ("nyu_train.txt", "nyudepthv2_train_files_with_gt.txt"),
            "test": ("nyu_test.txt", "nyudepthv2_test_files_with_gt.txt"),
        },
        example="kitchen_0028b/rgb_00045.jpg",
    )

    def _teacher_names(self, entry: SplitEntry) -> Sequence[str]:
        (name,) = super()._teacher_names(entry)
        plain = name.removeprefix(_TEACHER_PREFIX)
        return (_TEACHER_PREFIX + plain, plain)

    def _intrinsics(self, files: EntryFiles, size: tuple[int, int]) -> Intrinsics:
        return find_intrinsics(self.path, size) or super()._intrinsics(files, size)
