"""What a teacher network looks like to the server."""

from __future__ import annotations

from typing import Protocol

from tiekd_ros.images import RgbImage
from tiekd_ros.teacher.errors import BackendRefusal
from tiekd_ros.teacher.protocol import DepthAnswer, DepthRequest, TeacherIdentity

__all__ = ["Backend", "BackendRefusal"]


class Backend(Protocol):
    """One teacher. The server calls `infer` from up to `ServerSettings.workers` threads."""

    @property
    def identity(self) -> TeacherIdentity:
        """Who this teacher is; fixed while the server runs."""
        ...

    def infer(self, image: RgbImage, request: DepthRequest) -> DepthAnswer:
        """Label one image.

        Args:
            image: the decoded image, uint8 RGB (H, W, 3).
            request: what came with it: intrinsics, stamp, frame.

        Returns:
            Depth of the same view, at any resolution of the image's aspect ratio.

        Raises:
            BackendRefusal: this image cannot be labelled, whoever asks again.
        """
        ...
