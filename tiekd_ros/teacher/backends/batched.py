"""What backends that label several images at once have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from tiekd_ros.camera import Intrinsics
from tiekd_ros.images import RgbImage
from tiekd_ros.teacher.backend import Backend, BackendRefusal
from tiekd_ros.teacher.protocol import DepthAnswer, DepthRequest

NEEDS_FOCAL = (
    "this network needs the camera's focal length: send `intrinsics` with the image (fx, fy, cx, "
    "cy in pixels)"
)


class BatchedBackend(ABC):
    """Labels images of one size together; one alone is a batch of one."""

    @abstractmethod
    def check(self, request: DepthRequest, height: int, width: int) -> None:
        """Refuse what is known to be refused before the image is decoded.

        Raises:
            BackendRefusal: the image's size does not suit, or the request lacks the intrinsics
                that are needed.
        """

    @abstractmethod
    def infer_batch(
        self, images: Sequence[RgbImage], requests: Sequence[DepthRequest]
    ) -> list[DepthAnswer]:
        """Label images of one size, each with its request; the answers come in their order.

        Raises:
            BackendRefusal: as `check`; none of the images is labelled then.
        """

    def infer(self, image: RgbImage, request: DepthRequest) -> DepthAnswer:
        """Label one image; errors as `infer_batch`'s."""
        return self.infer_batch([image], [request])[0]


def seen_focal_px(
    backend: Backend, intrinsics: Intrinsics, height: int, width: int
) -> tuple[float, float] | None:
    """Return a camera's focal lengths (fx, fy) in pixels of a network's input.

    Args:
        backend: whose network; it says so by a method `seen_focal_px` of the other arguments.
        intrinsics: the camera's, in pixels of the image.
        height: of the image.
        width: of the image.

    Returns:
        Along a row and along a column, which differ where the image is stretched to the input;
        None where the answers do not go with them by themselves: a network that takes the focal
        length, or depth that was measured.

    Raises:
        BackendRefusal: an image of this size does not suit the network.
    """
    method = getattr(backend, "seen_focal_px", None)
    if method is None:
        return None
    focal: tuple[float, float] | None = method(intrinsics, height, width)
    return focal


def needed_focal(request: DepthRequest) -> float:
    """Return a request's focal length along a row, in pixels of its image.

    Raises:
        BackendRefusal: it has none.
    """
    if request.intrinsics is None:
        raise BackendRefusal(NEEDS_FOCAL)
    return request.intrinsics.fx
