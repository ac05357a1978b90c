"""A folder of images from one camera, with intrinsics and stamps where they are recorded."""

from __future__ import annotations

import itertools
import math
import re
from functools import cached_property
from pathlib import Path

from tiekd_ros.camera import Intrinsics
from tiekd_ros.datasets.calibration import find_intrinsics
from tiekd_ros.datasets.errors import DatasetError
from tiekd_ros.datasets.stamps import recorded_stamps_ns
from tiekd_ros.errors import BadImageError
from tiekd_ros.images import RgbImage, decode_image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
IMAGE_SUBFOLDERS = ("images", "color", "rgb")


class ImageFolder:
    """Images of one camera in `path`, or in its subfolder `images`, `color` or `rgb`.

    Sorted by name, numbers in a name by value (so that `frame10` follows `frame9`). `K.txt`,
    `camera.yaml` and stamp files are looked for in `path` itself.

    Raises:
        DatasetError: the folder is missing or holds no images, two images share a stem, or
            an intrinsics file is there and cannot be right.
    """

    def __init__(self, path: str | Path) -> None:
        """Read the folder's list of files and its first image."""
        self.path = Path(path).expanduser()
        self._files = _list_images(self.path)
        self.names: list[str] = [file.stem for file in self._files]
        first = self._decode(0)
        self.image_size: tuple[int, int] = (first.shape[1], first.shape[0])
        """(width, height) of every image, in pixels."""
        self.intrinsics: Intrinsics | None = find_intrinsics(self.path, self.image_size)
        """The camera's intrinsics in pixels, or None where the folder records none."""

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

    def stamps_ns(self, rate_hz: float) -> list[int]:
        """Return one stamp an image in nanoseconds: the recorded ones, else index / rate.

        Recorded are `times.txt` or `timestamps.txt` (seconds or nanoseconds, one line an
        image) and numeric file stems of 16 to 19 digits; see `datasets.stamps`.

        Raises:
            DatasetError: the stamps do not fit the images, or `rate_hz` is not positive.
        """
        recorded = self._recorded_stamps
        if recorded is not None:
            return list(recorded)
        if not (math.isfinite(rate_hz) and rate_hz > 0):
            raise DatasetError(
                f"the rate must be a positive number of images a second, got {rate_hz}"
            )
        return [round(index * 1e9 / rate_hz) for index in range(len(self))]

    @cached_property
    def _recorded_stamps(self) -> list[int] | None:
        return recorded_stamps_ns(self.path, self.names)

    def _decode(self, index: int) -> RgbImage:
        file = self._files[index]
        try:
            return decode_image(file.read_bytes())
        except OSError as error:
            raise DatasetError(f"cannot read {file}: {error.strerror}") from error
        except BadImageError as error:
            raise DatasetError(f"{file}: {error}; replace or remove the file") from error


def _list_images(path: Path) -> list[Path]:
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise DatasetError(f"{path} {what}; give a folder of {', '.join(IMAGE_SUFFIXES)} images")
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
