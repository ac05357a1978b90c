"""A folder of images from one camera, with intrinsics and stamps where they are recorded."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from functools import cached_property
from pathlib import Path
from statistics import median

from tiekd_ros.core.camera import Intrinsics, same_shape
from tiekd_ros.core.errors import DatasetError
from tiekd_ros.core.images import DepthMap, RgbImage, decode_image
from tiekd_ros.datasets.calibration import find_intrinsics
from tiekd_ros.datasets.items import (
    FOLDER_MAPS,
    TEACHER_FOLDER,
    DepthItem,
    ReadOptions,
    SkipReport,
    check_folder,
    read_file,
)
from tiekd_ros.datasets.split_dataset import find_split, read_names

TIMES_FILES = ("times.txt", "timestamps.txt")

_SECOND_DIGITS = 10  # epoch seconds have ten digits from 2001 to 2286
_STEM_DIGITS = range(16, 20)  # microseconds to nanoseconds since the epoch
# Whole numbers further apart than this are nanoseconds: frames are neither more than a
# quarter of an hour apart, nor less than a microsecond.
_LARGEST_SPACING_S = 1000


def recorded_stamps_ns(folder: Path, names: list[str]) -> list[int] | None:
    """Return the recorded stamps of the images `names`, or None where none are recorded.

    `times.txt` or `timestamps.txt` comes first: the first word of each line is the stamp of
    one image, in seconds, or in nanoseconds where whole numbers are too far apart for
    seconds; lines that start with `#` are passed over. Then file stems of 16 to 19 digits:
    ten digits of seconds since the epoch, the rest a fraction (16 digits are microseconds,
    19 are nanoseconds).

    Raises:
        DatasetError: a stamp file does not fit the images, or stamps do not rise.
    """
    for name in TIMES_FILES:
        path = folder / name
        if path.exists():
            stamps = _read_times(path, len(names))
            _check_rising(stamps, names, str(path))
            return stamps
    if all(name.isascii() and name.isdigit() and len(name) in _STEM_DIGITS for name in names):
        stamps = [
            int(name[:_SECOND_DIGITS] + name[_SECOND_DIGITS:].ljust(9, "0")) for name in names
        ]
        _check_rising(stamps, names, f"file names in {folder}")
        return stamps
    return None


def _read_times(path: Path, count: int) -> list[int]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    words = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
    if len(words) != count:
        raise DatasetError(
            f"{path} has {len(words)} stamps for {count} images; it needs one line an image"
        )
    times = []
    for word in words:
        try:
            times.append(Decimal(word))
        except InvalidOperation as error:
            raise DatasetError(f"{path}: {word!r} is no stamp in seconds or nanoseconds") from error
    if not all(time.is_finite() for time in times):
        raise DatasetError(f"{path}: a stamp must be a finite number")
    scale = 1 if _are_nanoseconds(words, times) else 1_000_000_000
    return [int(time * scale) for time in times]


def _are_nanoseconds(words: list[str], times: list[Decimal]) -> bool:
    if not all(word.isdigit() for word in words):
        return False
    if len(times) == 1:
        return len(words[0]) > _SECOND_DIGITS
    return median(b - a for a, b in itertools.pairwise(times)) > _LARGEST_SPACING_S


def _check_rising(stamps: list[int], names: list[str], where: str) -> None:
    for (one, name), (two, other) in itertools.pairwise(zip(stamps, names, strict=True)):
        if two <= one:
            raise DatasetError(
                f"{where}: the stamp of {other} ({two} ns) is not after that of {name} ({one} "
                "ns); stamps must rise in the images' order"
            )


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
IMAGE_SUBFOLDERS = ("images", "color", "rgb")


class ImageFolder:
    """Images of one camera in `path`, or in its subfolder `images`, `color` or `rgb`.

    Sorted by name, numbers in a name by value (so that `frame10` follows `frame9`). `K.txt`,
    `camera.yaml` and stamp files are looked for in `path` itself. Teacher maps, where they
    are asked for, are `teacher/<stem>.png`: uint16, metres * 256, 0 = unknown, at any
    resolution of the image's aspect ratio.

    A split file names some of the images, one a line, with or without suffix; their order
    stays the folder's.

    Raises:
        DatasetError: the folder is missing or holds no images, two images share a stem, an
            image of the split file is not there, one has no teacher map though they are asked
            for, or an intrinsics file is there and cannot be right.
    """

    kind = "images"
    map_format = FOLDER_MAPS

    def __init__(self, path: str | Path, options: ReadOptions | None = None) -> None:
        """Read the folder's list of files and its first image.

        Of `options`, `split`, `teacher`, `teacher_maps` and `skip_bad` count here.
        """
        self.path = Path(path).expanduser()
        self.options = options or ReadOptions(truth=False)
        self.report = SkipReport()
        self._listed = _list_images(self.path)
        self.split: Path | None = None
        """The split file that was asked for, where it was found."""
        if self.options.split is not None:
            self.split = find_split(self.path, self.options.split, ())
        self._files = self._with_teacher(self._in_split(self._listed))
        first = self._first_image()
        self._numbered = self._files  # for stamps that are made
        self.names: list[str] = [file.stem for file in self._files]
        self.image_size: tuple[int, int] = (first.shape[1], first.shape[0])
        """(width, height) of every image, in pixels."""
        self._intrinsics = find_intrinsics(self.path, self.image_size)

    @property
    def intrinsics(self) -> Intrinsics | None:
        """The camera's intrinsics in pixels, or None where the folder records none."""
        return self._intrinsics

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._files)

    def file(self, index: int) -> Path:
        """Return the path of image `index`."""
        return self._files[index]

    def image(self, index: int) -> RgbImage:
        """Read one image, uint8 RGB of shape (H, W, 3).

        Raises:
            DatasetError: the file cannot be read or differs in size from the first one.
        """
        image = self._decode(index)
        size = (image.shape[1], image.shape[0])
        if size != self.image_size:
            raise DatasetError(
                f"{self._files[index]} is {size[0]}x{size[1]}, the first image is "
                f"{self.image_size[0]}x{self.image_size[1]}: a folder holds one camera's images "
                "of one size; move the others elsewhere"
            )
        return image

    def view(self, index: int) -> tuple[RgbImage, Intrinsics | None]:
        """Read one image and the camera's intrinsics, as a teacher gets them."""
        return self.image(index), self._intrinsics

    def item(self, index: int) -> DepthItem:
        """Read one image, with its teacher map if they are asked for.

        Raises:
            DatasetError: a file cannot be read, or shows another view than the first image.
        """
        teacher = self.teacher(index) if self.options.teacher else None
        return DepthItem(self.names[index], self.image(index), None, teacher, self._intrinsics)

    def teacher_file(self, index: int) -> str:
        """Return the name of an image's map in a folder of teacher maps."""
        return f"{self._files[index].stem}.png"

    @property
    def teacher_folder(self) -> Path:
        """Folder of the teacher maps, whether or not it exists."""
        return self.options.teacher_maps or self.path / TEACHER_FOLDER

    def teacher(self, index: int) -> DepthMap:
        """Read one teacher map, float32 (h, w) in metres, NaN = unknown.

        Raises:
            DatasetError: the file cannot be read, or shows another view than the image.
        """
        path = self.teacher_folder / self.teacher_file(index)
        depth = self.map_format.read(path)
        check_same_view(path, depth, self.image_size)
        return depth

    def stamps_ns(self, rate_hz: float) -> list[int]:
        """Return one stamp an image in nanoseconds: the recorded ones, else index / rate.

        Recorded are `times.txt` or `timestamps.txt` (seconds or nanoseconds, one line an
        image) and numeric file stems of 16 to 19 digits; see `recorded_stamps_ns`.

        Raises:
            DatasetError: the stamps do not fit the images, or `rate_hz` is not positive.
        """
        recorded = self._recorded_stamps
        if recorded is not None:
            stamps = dict(zip(self._listed, recorded, strict=True))
        elif math.isfinite(rate_hz) and rate_hz > 0:
            stamps = {file: round(i * 1e9 / rate_hz) for i, file in enumerate(self._numbered)}
        else:
            raise DatasetError(
                f"the rate must be a positive number of images a second, got {rate_hz}"
            )
        return [stamps[file] for file in self._files]

    @property
    def has_stamps(self) -> bool:
        """Whether stamps are recorded with the images; DatasetError: wrong ones are."""
        return self._recorded_stamps is not None

    @cached_property
    def _recorded_stamps(self) -> list[int] | None:
        return recorded_stamps_ns(self.path, [file.stem for file in self._listed])

    def _in_split(self, files: list[Path]) -> list[Path]:
        """Return the files that the split file names; all where there is none."""
        if self.split is None:
            return files
        names = read_names(self.split, IMAGE_SUFFIXES)
        there = {file.stem for file in files}
        missing = [name for name in names if name not in there]
        for name in missing:
            self.report.add(name, f"{self.split} names it, and {self.path} has no such image")
        if len(missing) == len(names) or (missing and not self.options.skip_bad):
            raise DatasetError(
                f"{self.split} names {short_list(missing)}, which {self.path} does not hold (it "
                f"holds {short_list([file.stem for file in files], 3)}); write one image name a "
                "line, or leave those out with skip_bad (--skip-bad)"
            )
        wanted = set(names)
        return [file for file in files if file.stem in wanted]

    def _with_teacher(self, files: list[Path]) -> list[Path]:
        """Return the files that have a teacher map, if they are asked for."""
        if not self.options.teacher:
            return list(files)
        folder = self.teacher_folder
        there = [file for file in files if (folder / f"{file.stem}.png").is_file()]
        missing = [file.stem for file in files if file not in there]
        for name in missing:
            self.report.add(name, f"no teacher map {folder / name}.png")
        if not there or (missing and not self.options.skip_bad):
            raise DatasetError(
                f"no teacher map in {folder} for {short_list(missing)}; make them with `tiekd "
                "label`, or leave those images out with skip_bad (--skip-bad)"
            )
        return there

    def _first_image(self) -> RgbImage:
        """Return the first image, which sets the size; with `skip_bad` the first readable one."""
        while True:
            try:
                return self._decode(0)
            except DatasetError as error:
                if not self.options.skip_bad or len(self._files) == 1:
                    raise
                self.report.add(self._files.pop(0).stem, str(error))

    def _decode(self, index: int) -> RgbImage:
        return read_file(self._files[index], decode_image, hint="; replace or remove the file")


def short_list(names: Sequence[str], most: int = 8) -> str:
    """Return the names as a text that stays short."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def check_same_view(path: Path, depth: DepthMap, image_size: tuple[int, int]) -> None:
    """Raise DatasetError unless a depth map has the aspect ratio of its (width, height) image."""
    size = (depth.shape[1], depth.shape[0])
    if not same_shape(size, image_size):
        raise DatasetError(
            f"{path} is {size[0]}x{size[1]}, its image {image_size[0]}x{image_size[1]}: not the "
            "same view; register the depth to the image"
        )


def _list_images(path: Path) -> list[Path]:
    check_folder(path, f"a folder of {', '.join(IMAGE_SUFFIXES)} images")
    for folder in (*(path / name for name in IMAGE_SUBFOLDERS), path):
        files = _images_in(folder)
        if files:
            return files
    raise DatasetError(
        f"no images in {path}: expected {', '.join(IMAGE_SUFFIXES)} files there or in its "
        f"subfolder {IMAGE_SUBFOLDERS[0]}/"
    )


def _images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = [
        file
        for file in folder.iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    ]
    files.sort(key=lambda file: (_natural_key(file.stem), file.name))
    for one, other in itertools.pairwise(files):
        if one.stem == other.stem:
            raise DatasetError(f"{one} and {other.name} share a name; keep one of them")
    return files


def _natural_key(name: str) -> list[tuple[int, str]]:
    parts = re.split(r"([0-9]+)", name)  # text, number, text, number, …
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)]
