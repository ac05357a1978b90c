"""What camera_node plays: the interface, the synthetic world, and folders of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tiekd_ros.core.camera import CameraModel
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.images import RgbImage
from tiekd_ros.datasets.calibration import read_camera_model
from tiekd_ros.datasets.image_folder import ImageFolder
from tiekd_ros.nodes.common.settings import CameraSettings
from tiekd_ros.worlds import IndoorWorld, WorldSettings

RATE, RECORDED, LIVE = "rate", "recorded", "live"


class CameraSourceError(TiekdError):
    """Images that cannot be had from where the parameter `source` says."""


@dataclass(frozen=True)
class Shot:
    """One image of a source."""

    image: RgbImage
    camera: CameraModel | None
    """Its calibration, where it is known."""
    recorded_ns: int | None = None
    """When it was recorded; None where it is being taken now."""
    taken_ns: int | None = None
    """The moment that it shows, of those that were given; None = any."""
    frame_id: str = ""
    """As recorded; '' = nothing was."""


class Source(Protocol):
    """Where images come from."""

    pace: str
    """RATE, RECORDED or LIVE: what 'auto' means for it."""

    @property
    def notes(self) -> list[str]:
        """What was odd about it, for people."""

    def read(self, now_ns: int) -> Shot | None:
        """Return the next image; None after the last one.

        Raises:
            TiekdError: this image is of no use; the next call goes on with the one after it.
        """

    def rewind(self) -> None:
        """Go back to the first image."""

    def close(self) -> None:
        """Let go of files and devices."""


class WorldSource:
    """The synthetic world; its time is the stamp."""

    pace = RATE

    def __init__(self, settings: CameraSettings) -> None:
        self.notes: list[str] = []
        self._world = IndoorWorld(WorldSettings(seed=settings.seed, period_s=settings.period_s))
        self._size = (settings.width, settings.height)
        self._intrinsics = IndoorWorld.default_intrinsics(*self._size)
        self._model = CameraModel.pinhole(self._intrinsics, *self._size)

    def read(self, now_ns: int) -> Shot | None:
        """Return the world's view at this moment."""
        view = self._world.render(now_ns, *self._size, self._intrinsics)
        return Shot(view.image, self._model, taken_ns=now_ns)

    def rewind(self) -> None:
        """Nothing to do: it has no end."""

    def close(self) -> None:
        """Nothing to do."""


class FolderSource:
    """A folder of images, one after the other."""

    pace = RATE

    def __init__(self, settings: CameraSettings) -> None:
        self.notes: list[str] = []
        self._folder = ImageFolder(Path(settings.source).expanduser())
        self._stamps = self._folder.stamps_ns(settings.rate_hz)
        intrinsics = self._folder.intrinsics
        size = self._folder.image_size
        self._model = CameraModel.pinhole(intrinsics, *size) if intrinsics is not None else None
        self._next = 0

    def read(self, now_ns: int) -> Shot | None:
        """Return the next image."""
        index, self._next = self._next, self._next + 1
        if index >= len(self._folder):
            return None
        return Shot(self._folder.image(index), self._model, self._stamps[index])

    def rewind(self) -> None:
        """Go back to the first image."""
        self._next = 0

    def close(self) -> None:
        """Nothing to do."""


def calibration_of(settings: CameraSettings) -> Callable[[tuple[int, int]], CameraModel] | None:
    """Return what reads the calibration file for images of (width, height); None where none is.

    Raises:
        CameraSourceError: a file is named that is not there.
    """
    file = Path(settings.camera_info).expanduser()
    if settings.camera_info and file.is_file():
        return lambda size: read_camera_model(file, size)
    if file.suffix in (".txt", ".yaml", ".yml"):
        raise CameraSourceError(f"camera_info: there is no file {file}")
    return None
