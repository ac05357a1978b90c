"""A folder of images with measured depth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.errors import DatasetError
from tiekd_ros.core.images import DepthMap, decode_depth_png
from tiekd_ros.datasets.calibration import K_FILE, read_yaml
from tiekd_ros.datasets.image_folder import ImageFolder, check_same_view, short_list
from tiekd_ros.datasets.items import DepthItem, ReadOptions, read_file

META_FILE = "meta.yaml"
MILLIMETRES_PER_M = 1000.0


class RgbdFolder(ImageFolder):
    """Images and depth maps of one camera.

    `images/<stem>.png|jpg|jpeg` (or `color/`, `rgb/`), `depth/<stem>.png` (uint16, 0 =
    unknown, millimetres unless `meta.yaml` says `depth_units_per_m: 256` or the like) and
    `K.txt` (3x3, in pixels of the image). A depth map may have another resolution than its
    image where both have the same aspect ratio within 1 %.

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
        super().__init__(path, options or ReadOptions())
        self.depth_units_per_m = _read_units(self.path / META_FILE)
        """Scale of the depth files: stored number = metres * this."""
        self._depths = self.path / "depth"
        self._files = [file for file in self._files if self._depth_file(file).is_file()]
        found = [file.stem for file in self._files]
        missing = sorted(set(self.names) - set(found))
        for name in missing:
            self.report.add(name, f"no depth map {self._depths / name}.png")
        if not found or (missing and not self.options.skip_bad):
            raise DatasetError(_missing_depth(self._depths, missing, bool(found)))
        self.names = found
        if not self.options.skip_bad:
            self.depth(0)

    @property
    def files(self) -> list[Path]:
        """The files that are read: of each frame image and depth, K.txt and meta.yaml if there."""
        found = [*self._files, *map(self._depth_file, self._files)]
        return found + [file for name in (K_FILE, META_FILE) if (file := self.path / name).exists()]

    @property
    def intrinsics(self) -> Intrinsics:
        """The camera's intrinsics, in pixels of the image.

        Raises:
            DatasetError: the folder has none.
        """
        if self._intrinsics is None:
            raise DatasetError(
                f"{self.path / K_FILE} is missing: write the camera matrix there, three rows "
                "of three numbers: fx 0 cx / 0 fy cy / 0 0 1, in pixels"
            )
        return self._intrinsics

    def depth(self, index: int) -> DepthMap:
        """Read one depth map, float32 (H, W) in metres, NaN = unknown.

        Raises:
            DatasetError: the file is no 16-bit PNG or shows another view than the image.
        """
        path = self._depth_file(self._files[index])
        depth = read_file(path, lambda data: decode_depth_png(data, self.depth_units_per_m))
        check_same_view(path, depth, self.image_size)
        return depth

    def item(self, index: int) -> DepthItem:
        """Read one frame, with its teacher map if they are asked for.

        Raises:
            DatasetError: a file cannot be read, or shows another view than the image.
        """
        return replace(super().item(index), truth=self.depth(index))

    def _depth_file(self, image: Path) -> Path:
        return self._depths / f"{image.stem}.png"


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
