"""Opening what camera_node is to play, by what the parameter `source` looks like."""

from __future__ import annotations

from pathlib import Path

from tiekd_ros.datasets.image_folder import IMAGE_SUFFIXES
from tiekd_ros.frames.bags import require_rosbags
from tiekd_ros.frames.bags.layout import is_bag
from tiekd_ros.nodes.camera_capture import VideoSource, WebcamSource
from tiekd_ros.nodes.camera_sources import CameraSourceError, FolderSource, Source, WorldSource
from tiekd_ros.nodes.settings import CameraSettings

SYNTHETIC, WEBCAM = "synthetic", "webcam"


def open_source(settings: CameraSettings) -> Source:
    """Open what the settings name.

    Raises:
        TiekdError: it is not there, or cannot be used; says what would do.
    """
    source = settings.source
    if source == SYNTHETIC:
        return WorldSource(settings)
    if source == WEBCAM or source.isdigit():
        return WebcamSource(Path(f"/dev/video{source if source.isdigit() else 0}"), settings)
    if source.startswith("/dev/"):
        return WebcamSource(Path(source), settings)
    path = Path(source).expanduser()
    if is_bag(path):
        require_rosbags()
        from tiekd_ros.nodes.camera_bag import BagSource

        return BagSource(path, settings)
    if path.is_dir():
        return FolderSource(settings)
    if path.is_file() and path.suffix.lower() not in IMAGE_SUFFIXES:
        return VideoSource(path, settings)
    what = "is a single image" if path.is_file() else "does not exist"
    raise CameraSourceError(
        f"{path} {what}; source is synthetic, a folder of images, a bag, a video file, or a webcam "
        "(/dev/video0)"
    )
