"""Read-only readers of image and depth data sets. No ROS, no torch."""

from tiekd_ros.core.errors import DatasetError
from tiekd_ros.datasets.image_folder import ImageFolder
from tiekd_ros.datasets.items import (
    DepthDataset,
    DepthItem,
    LabelSource,
    ReadOptions,
    SkipReport,
    readable_items,
)
from tiekd_ros.datasets.kitti import KittiDataset
from tiekd_ros.datasets.map_format import MapFormat
from tiekd_ros.datasets.nyu import NyuDataset
from tiekd_ros.datasets.opening import AUTO, DATASET_KINDS, detect_kind, open_dataset, open_images
from tiekd_ros.datasets.rgbd_folder import RgbdFolder

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
