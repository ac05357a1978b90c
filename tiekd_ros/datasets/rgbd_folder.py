"""A folder of images with measured depth."""

from __future__ import annotations

from pathlib import Path

from tiekd_ros.camera import Intrinsics
from tiekd_ros.datasets.calibration import ASPECT_TOLERANCE, K_FILE, read_yaml, same_aspect
from tiekd_ros.datasets.errors import DatasetError
from tiekd_ros.datasets.image_folder import ImageFolder
from tiekd_ros.errors import BadDepthError
from tiekd_ros.images import DepthMap, RgbImage, decode_depth_png

META_FILE = "meta.yaml"
MILLIMETRES_PER_M = 1000.0


class RgbdFolder:
    """Images and depth maps of one camera.

    `images/<stem>.png|jpg|jpeg` (or `color/`, `rgb/`), `depth/<stem>.png` (uint16, 0 =
    unknown, millimetres unless `meta.yaml` says `depth_units_per_m: 256` or the like) and
    `K.txt` (3x3, in pixels of the image). A depth map may have another resolution than its
    image where both have the same aspect ratio within 1 %.

    Args:
        path: the folder.
        skip_missing: leave out images without depth, and name them in `skipped`.

    Raises:
        DatasetError: something is missing or wrong; the first frame is read at once, the
            others when they are asked for.
    """

    def __init__(self, path: str | Path, *, skip_missing: bool = False) -> None:
        """Read the folder's list of files, its intrinsics and its first frame."""
        self._images = ImageFolder(path)
        self.path = self._images.path
        self.depth_units_per_m = _read_units(self.path / META_FILE)
        """Scale of the depth files: stored number = metres * this."""
        depths = self.path / "depth"
        present = [(depths / f"{name}.png").is_file() for name in self._images.names]
        self._indices = [i for i, there in enumerate(present) if there]
        self.skipped: list[str] = [
            name for name, there in zip(self._images.names, present, strict=True) if not there
        ]
        """Stems of the images that have no depth and were left out."""
        if not self._indices or (self.skipped and not skip_missing):
            raise DatasetError(_missing_depth(depths, self.skipped, bool(self._indices)))
        self.names: list[str] = [self._images.names[i] for i in self._indices]
        self.image_size: tuple[int, int] = self._images.image_size
        """(width, height) of every image, in pixels."""
        self.depth(0)

    def __len__(self) -> int:
        """Return the number of frames that have image and depth."""
        return len(self._indices)

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
        size = (depth.shape[1], depth.shape[0])
        if not same_aspect(size, self.image_size, ASPECT_TOLERANCE):
            raise DatasetError(
                f"{path} is {size[0]}x{size[1]}, its image {self.image_size[0]}x"
                f"{self.image_size[1]}: not the same view; register the depth to the image"
            )
        return depth


def _missing_depth(folder: Path, missing: list[str], some: bool) -> str:
    if not folder.is_dir():
        return f"{folder} does not exist; it must hold one 16-bit PNG an image, of the same name"
    listed = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
    hint = ", or leave those images out with skip_missing" if some else ""
    return f"no depth in {folder} for {listed}; add <name>.png as 16-bit PNG{hint}"


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
