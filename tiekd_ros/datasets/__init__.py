"""Read-only readers of image and depth folders. No ROS, no torch."""

from tiekd_ros.datasets.errors import DatasetError
from tiekd_ros.datasets.image_folder import ImageFolder
from tiekd_ros.datasets.rgbd_folder import RgbdFolder

__all__ = ["DatasetError", "ImageFolder", "RgbdFolder"]
