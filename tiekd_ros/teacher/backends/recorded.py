"""Depth that was recorded with the images, from a folder, as a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tiekd_ros.core.errors import DatasetError
from tiekd_ros.core.images import RgbImage, thumbnail, thumbnail_distances
from tiekd_ros.core.settings import setting
from tiekd_ros.datasets import RgbdFolder
from tiekd_ros.teacher.backend import Backend, BackendSettings
from tiekd_ros.teacher.errors import BackendRefusal
from tiekd_ros.teacher.protocol import DepthAnswer, DepthRequest, TeacherIdentity

# Mean grey-level differences of thumbnails, measured on 45 consecutive frames of a walk: a
# frame after JPEG at quality 30, halving or noise of 8 grey levels is 0.2 to 0.9 from itself
# (1.6 when halved without smoothing), and at least 2.1 from its neighbour.
LARGEST_DISTANCE = 2.0
# The best frame must beat the next different one by this factor: a picture taken between two
# recorded ones is about equally far from both.
LARGEST_RATIO = 0.7
# Recorded frames this close to each other show the same: either will do.
SAME_PICTURE = 0.5
_ASPECT_TOLERANCE = 0.02


@dataclass(frozen=True)
class RecordedSettings(BackendSettings):
    """The folder that a `RecordedBackend` answers from."""

    ARGUMENT = "frames"
    MISSING = (
        "the recorded backend needs a folder of frames: give frames=DIR (--frames DIR), with "
        "images/, depth/ and K.txt in it"
    )

    frames: str = setting("", "folder of images/, depth/ and K.txt that it answers from")

    def check_source(self) -> None:
        """Check that the folder is there."""
        if not Path(self.frames).is_dir():
            raise DatasetError(f"the folder of frames {self.frames} does not exist")

    def build(self) -> Backend:
        """Read the folder."""
        self.check_source()
        return RecordedBackend(Path(self.frames))


class RecordedBackend:
    """Answers from an RGB-D folder; finds the frame by its picture and refuses unknown ones.

    The depth keeps the resolution at which it was recorded.

    Raises:
        DatasetError: the folder cannot be read.
    """

    def __init__(self, folder: str | Path) -> None:
        """Read all images of `folder` once, to know them again."""
        self._frames = RgbdFolder(folder)
        self._thumbnails: npt.NDArray[np.float32] = np.stack(
            [thumbnail(self._frames.image(index)) for index in range(len(self._frames))]
        )
        name = self._frames.path.resolve().name
        self.identity = TeacherIdentity(
            name="recorded", version=f"{name}-{len(self._frames)}", metric=True
        )

    def check(self, request: DepthRequest, height: int, width: int) -> None:
        """Refuse a picture of another shape than the folder's; see `infer`."""
        self._check_aspect(height, width)

    def infer(self, image: RgbImage, request: DepthRequest) -> DepthAnswer:
        """Return the recorded depth of this picture, metres, NaN = unknown.

        Raises:
            BackendRefusal: the picture is none of the folder's.
            DatasetError: the folder has changed on disk and cannot be read any more.
        """
        return DepthAnswer(self._frames.depth(self.find(image)))

    def find(self, image: RgbImage) -> int:
        """Return the index of the recorded frame that `image` is.

        Raises:
            BackendRefusal: the picture is none of the folder's, or cannot be told from two.
        """
        self._check_aspect(*image.shape[:2])
        distances = thumbnail_distances(thumbnail(image), self._thumbnails)
        best = int(distances.argmin())
        if distances[best] > LARGEST_DISTANCE:
            raise BackendRefusal(
                f"unknown image: the most similar of {len(self._frames)} recorded frames, "
                f"{self._frames.names[best]}, differs by {distances[best]:.1f} grey levels "
                f"(at most {LARGEST_DISTANCE:g} for the same picture)"
            )
        others = thumbnail_distances(self._thumbnails[best], self._thumbnails) > SAME_PICTURE
        if others.any() and distances[best] > LARGEST_RATIO * distances[others].min():
            second = int(np.flatnonzero(others)[distances[others].argmin()])
            raise BackendRefusal(
                f"unknown image: it lies between the recorded frames {self._frames.names[best]} "
                f"and {self._frames.names[second]}"
            )
        return best

    def _check_aspect(self, height: int, width: int) -> None:
        recorded_width, recorded_height = self._frames.image_size
        aspect = (width * recorded_height) / (height * recorded_width)
        if abs(aspect - 1.0) > _ASPECT_TOLERANCE:
            raise BackendRefusal(
                f"unknown image: it is {width}x{height}, the recorded ones are "
                f"{recorded_width}x{recorded_height}, of another aspect ratio"
            )
