"""KITTI: raw images, annotated depth and Eigen's split, as depth estimation uses them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.errors import BadImageError, DatasetError
from tiekd_ros.core.images import DEPTH_UNITS_PER_M, KB_SIZE, DepthMap, RgbImage, kb_window
from tiekd_ros.datasets.calibration import plausible
from tiekd_ros.datasets.items import KITTI_MAPS
from tiekd_ros.datasets.split_dataset import EntryFiles, SplitDataset, SplitLayout

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
