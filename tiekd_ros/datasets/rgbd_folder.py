"""A folder of images with measured depth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.errors import BadDepthError, DatasetError
from tiekd_ros.core.images import DepthMap, RgbImage, decode_depth_png
from tiekd_ros.datasets.calibration import K_FILE, read_yaml
from tiekd_ros.datasets.image_folder import ImageFolder, check_same_view, short_list
from tiekd_ros.datasets.items import DepthItem, ReadOptions

META_FILE = "meta.yaml"
MILLIMETRES_PER_M = 1000.0


class RgbdFolder:
    """Images and depth maps of one camera.

    `images/<stem>.png|jpg|jpeg` (or `color/`, `rgb/`), `depth/<stem>.png` (uint16, 0 =
    unknown, millimetres unless `meta.yaml` says `depth_units_per_m: 256` or the like) and
    `K.txt` (3x3, in pixels of the image). A depth map may have another resolution than its
    image where both have the same aspect ratio within 1 %.

    Teacher maps and split files, where they are asked for: see `ImageFolder`.

    Raises:
        DatasetError: something is missing or wrong; the first frame is read at once, the
            others when they are asked for.
    """

    kind = "rgbd"

    def __init__(self, path: str | Path, options: ReadOptions | None = None) -> None:
        """Read the folder's list of files, its intrinsics and its first frame.

        Of `options`, `split`, `teacher`, `teacher_maps` and `skip_bad` count here: images without
        depth or teacher map are left out and named in `report`, or refused.
        """
        self.options = options or ReadOptions()
        self._images = ImageFolder(path, self.options)
        self.report = self._images.report
        self.path = self._images.path
        self.split = self._images.split
        """The split file that was asked for, where it was found."""
        self.depth_units_per_m = _read_units(self.path / META_FILE)
        """Scale of the depth files: stored number = metres * this."""
        depths = self.path / "depth"
        stems = self._images.names
        self._indices = [i for i, name in enumerate(stems) if (depths / f"{name}.png").is_file()]
        missing = sorted(set(stems) - {stems[i] for i in self._indices})
        for name in missing:
            self.report.add(name, f"no depth map {depths / name}.png")
        if not self._indices or (missing and not self.options.skip_bad):
            raise DatasetError(_missing_depth(depths, missing, bool(self._indices)))
        self.names: list[str] = [stems[i] for i in self._indices]
        self.image_size: tuple[int, int] = self._images.image_size
        """(width, height) of every image, in pixels."""
        if not self.options.skip_bad:
            self.depth(0)

    def __len__(self) -> int:
        """Return the number of frames that have image and depth."""
        return len(self._indices)

    @property
    def files(self) -> list[Path]:
        """The files that are read: of each frame image and depth, K.txt and meta.yaml if there."""
        found = [self._images.file(index) for index in self._indices]
        found += [self.path / "depth" / f"{name}.png" for name in self.names]
        return found + [file for name in (K_FILE, META_FILE) if (file := self.path / name).exists()]

    @property
    def intrinsics(self) -> Intrinsics:
        """The camera's intrinsics, in pixels of the image.

        Raises:
            DatasetError: the folder has none.
        """
        found = self._images.intrinsics
        if found is None:
            raise DatasetError(
                f"{self.path / K_FILE} is missing: write the camera matrix there, three rows "
                "of three numbers: fx 0 cx / 0 fy cy / 0 0 1, in pixels"
            )
        return found

    def image(self, index: int) -> RgbImage:
        """Read one image, uint8 RGB of shape (H, W, 3).

        Raises:
            DatasetError: the file cannot be read or differs in size from the first one.
        """
        return self._images.image(self._indices[index])

    def depth(self, index: int) -> DepthMap:
        """Read one depth map, float32 (H, W) in metres, NaN = unknown.

        Raises:
            DatasetError: the file is no 16-bit PNG or shows another view than the image.
        """
        path = self.path / "depth" / f"{self.names[index]}.png"
        try:
            depth = decode_depth_png(path.read_bytes(), self.depth_units_per_m)
        except OSError as error:
            raise DatasetError(f"cannot read {path}: {error.strerror}") from error
        except BadDepthError as error:
            raise DatasetError(f"{path}: {error}") from error
        check_same_view(path, depth, self.image_size)
        return depth

    @property
    def recorded_stamps(self) -> bool:
        """Whether stamps are recorded with the images."""
        return self._images.has_stamps

    def stamps_ns(self, rate_hz: float) -> list[int]:
        """Return one stamp a frame in nanoseconds: recorded ones, else index / rate.

        Raises:
            DatasetError: as `ImageFolder.stamps_ns`.
        """
        stamps = self._images.stamps_ns(rate_hz)
        return [stamps[index] for index in self._indices]

    def item(self, index: int) -> DepthItem:
        """Read one frame, with its teacher map if they are asked for.

        Raises:
            DatasetError: a file cannot be read, or shows another view than the image.
        """
        frame = self._images.item(self._indices[index])
        return replace(frame, truth=self.depth(index))


def _missing_depth(folder: Path, missing: list[str], some: bool) -> str:
    if not folder.is_dir():
        return f"{folder} does not exist; it must hold one 16-bit PNG an image, of the same name"
    hint = ", or leave those images out with skip_bad (--skip-bad)" if some else ""
    return f"no depth in {folder} for {short_list(missing)}; add <name>.png as 16-bit PNG{hint}"


def _read_units(path: Path) -> float:
    if not path.exists():
        return MILLIMETRES_PER_M
    content = read_yaml(path)
    unknown = sorted(str(key) for key in set(content) - {"depth_units_per_m"})
    if unknown:
        raise DatasetError(f"{path}: unknown key {unknown[0]!r}; known is depth_units_per_m")
    units = content.get("depth_units_per_m", MILLIMETRES_PER_M)
    if isinstance(units, bool) or not isinstance(units, int | float) or not 1 <= units <= 1e6:
        raise DatasetError(
            f"{path}: depth_units_per_m must be a number between 1 and 1000000 (1000 for "
            f"millimetres, 256 for KITTI's), got {units!r}"
        )
    return float(units)
