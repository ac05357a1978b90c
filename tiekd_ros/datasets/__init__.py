"""Read-only readers of image and depth data sets, one file a layout. No ROS, no torch."""

from __future__ import annotations

import re
from pathlib import Path

from tiekd_ros.core.errors import DatasetError
from tiekd_ros.datasets.image_folder import IMAGE_SUBFOLDERS, IMAGE_SUFFIXES, ImageFolder
from tiekd_ros.datasets.items import (
    DepthDataset,
    DepthItem,
    LabelSource,
    MapFormat,
    ReadOptions,
    SkipReport,
    check_folder,
    readable_items,
)
from tiekd_ros.datasets.rgbd_folder import RgbdFolder
from tiekd_ros.datasets.split_dataset import SPLIT_FOLDERS, KittiDataset, NyuDataset

__all__ = [
    "AUTO",
    "DATASET_KINDS",
    "DatasetError",
    "DepthDataset",
    "DepthItem",
    "ImageFolder",
    "KittiDataset",
    "LabelSource",
    "MapFormat",
    "NyuDataset",
    "ReadOptions",
    "RgbdFolder",
    "SkipReport",
    "detect_kind",
    "open_dataset",
    "open_images",
    "readable_items",
]

DATASET_KINDS = ("kitti", "nyu", "rgbd", "images")
AUTO = "auto"

_SPLIT_KINDS: dict[str, type[KittiDataset | NyuDataset | ImageFolder]] = {
    "kitti": KittiDataset,
    "nyu": NyuDataset,
}
_DAY = re.compile(r"20\d\d_\d\d_\d\d")
_KITTI_FOLDERS = ("gt_depth", "data_depth_annotated", "input")
_NYU_FOLDERS = ("official_splits", "sync")


def open_dataset(kind: str, path: str | Path, options: ReadOptions | None = None) -> DepthDataset:
    """Open a data set of a layout: 'kitti', 'nyu', 'rgbd', 'images', or 'auto'.

    A folder of images without depth has teacher maps at most; an RGB-D folder of whose depth
    nothing is wanted (`options.truth` off) is read as one.

    Raises:
        DatasetError: there is no such layout, the folder has another one, or files are missing.
    """
    options = options or ReadOptions()
    kind = _kind(kind, path)
    if kind in _SPLIT_KINDS or not options.truth:
        return _SPLIT_KINDS.get(kind, ImageFolder)(path, options)
    return RgbdFolder(path, options)  # names what is missing where there is no depth


def open_images(kind: str, path: str | Path, options: ReadOptions | None = None) -> LabelSource:
    """Open the images of a data set for a teacher to label; its depth is not looked at.

    Raises:
        DatasetError: as `open_dataset`.
    """
    options = options or ReadOptions(truth=False)
    return _SPLIT_KINDS.get(_kind(kind, path), ImageFolder)(path, options)


def detect_kind(path: str | Path) -> str:
    """Return the layout that a folder has.

    Raises:
        DatasetError: the folder is missing, looks like none, or like more than one.
    """
    path = Path(path).expanduser()
    check_folder(path, "the folder of a data set")
    inside = sorted(child.name for child in path.iterdir())
    folders = {name for name in inside if (path / name).is_dir()}
    has_images = bool(folders & set(IMAGE_SUBFOLDERS)) or any(
        name.lower().endswith(IMAGE_SUFFIXES) for name in inside
    )
    looks = {
        "kitti": bool(folders & set(_KITTI_FOLDERS))
        or any(_DAY.fullmatch(name) for name in folders)
        or _has_split(path, "kitti_"),
        "nyu": bool(folders & set(_NYU_FOLDERS)) or _has_split(path, "nyu"),
        "rgbd": has_images and "depth" in folders,
        "images": has_images and "depth" not in folders,
    }
    found = [kind for kind, looks_like in looks.items() if looks_like]
    if len(found) == 1:
        return found[0]
    what = f"like {' and '.join(found)}" if found else "like no data set that is known"
    raise DatasetError(
        f"{path} looks {what} (it holds {', '.join(inside[:8]) or 'nothing'}); say which it is "
        f"with kind (--kind): {', '.join(DATASET_KINDS)}"
    )


def _kind(kind: str, path: str | Path) -> str:
    if kind == AUTO:
        return detect_kind(path)
    if kind not in DATASET_KINDS:
        raise DatasetError(
            f"unknown kind of data set {kind!r}: there are {', '.join((AUTO, *DATASET_KINDS))}"
        )
    return kind


def _has_split(path: Path, prefix: str) -> bool:
    return any(
        next((path / place).glob(f"{prefix}*.txt"), None) is not None for place in SPLIT_FOLDERS
    )
