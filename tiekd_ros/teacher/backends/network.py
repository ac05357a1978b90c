"""Parts of the backends that run a network: settings, units, sizes, versions."""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.images import DepthMap, RgbImage
from tiekd_ros.core.settings import setting
from tiekd_ros.teacher.backend import Backend, BackendSettings
from tiekd_ros.teacher.errors import BackendRefusal
from tiekd_ros.teacher.protocol import DepthAnswer, DepthRequest, TeacherIdentity

Meaning = Literal["metric", "relative_depth", "inverse_depth"]
"""metric: metres. relative_depth: depth in an unknown unit. inverse_depth: grows towards the
camera, in an unknown unit and from an unknown zero."""

METRIC: Meaning = "metric"
INVERSE_DEPTH: Meaning = "inverse_depth"

FARTHEST_M = 1000.0
"""Beyond this a network means the sky, not a distance; it becomes unknown."""

PROBE = (480, 640)
"""(height, width) of what a network is tried on before it serves."""

_VERSION_DIGITS = 12  # hexadecimal: 48 bits tell a fleet's teachers apart
_BLOCK = 1 << 20
_SAME_VIEW = 0.01  # relative difference of aspect ratios that needs no resizing

NEEDS_FOCAL = (
    "this network needs the camera's focal length: send `intrinsics` with the image (fx, fy, cx, "
    "cy in pixels)"
)


@dataclass(frozen=True)
class NetworkSettings(BackendSettings):
    """Settings of a backend that runs a network; `align` fits its numbers to metres."""

    ARGUMENT = "model"

    model: str = setting("", "the network")
    device: str = setting("auto", "cpu, cuda or cuda:N; auto takes a GPU where there is one")
    max_input_pixels: int = setting(
        4_000_000,
        "largest image that the network itself is given; bounds its memory",
        unit="pixels",
        minimum=1024,
        maximum=1 << 28,
    )
    align: str = setting(
        "",
        "fit the network's numbers to metres once, on this folder of images/, depth/ and K.txt of "
        "the robots' camera; empty serves them as they are",
    )
    align_max_error: float = setting(
        0.25,
        "largest median relative error of the fit of --align, on parts of the folder that did not "
        "make it",
        minimum=0.0,
        maximum=10.0,
    )

    def build(self) -> Backend:
        """Load the network, and fit it to metres where `align` names a folder."""
        self.check_source()
        backend = self.load()
        if not self.align:
            return backend
        from tiekd_ros.teacher.backends.alignment import AlignedBackend

        return AlignedBackend(backend, self.align, self.align_max_error)

    @abstractmethod
    def load(self) -> Backend:
        """Load the network as it is.

        Raises:
            TiekdError: it cannot be had or does not run.
        """


def fingerprint(files: Iterable[Path], extra: Any = None) -> str:
    """Return a hash of files' names and contents, and of `extra` (fit for JSON).

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    digest.update(json.dumps(extra, sort_keys=True).encode())
    return digest.hexdigest()[:_VERSION_DIGITS]


def identity_of(name: str, version: str, meaning: Meaning) -> TeacherIdentity:
    """Return a network's identity; where it is not metric, the name says what its numbers are."""
    metric = meaning == METRIC
    return TeacherIdentity(name if metric else f"{name} ({meaning})", version, metric)


def meaning_of(backend: Backend) -> Meaning | None:
    """Return what a backend's numbers are; None where it does not say."""
    if backend.identity.metric:
        return METRIC
    meaning: Meaning | None = getattr(backend, "meaning", None)
    return meaning


def answer_size(image: tuple[int, int], output: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) of the answer for an image and a network's output of these.

    It has the image's aspect ratio, and no more pixels than either: more would carry nothing.
    """
    aspect = (output[1] * image[0]) / (output[0] * image[1])
    smaller = output[0] * output[1] <= image[0] * image[1]
    if smaller and abs(aspect - 1) <= _SAME_VIEW:
        return output
    factor = min(1.0, math.sqrt((output[0] * output[1]) / (image[0] * image[1])))
    return max(1, round(image[0] * factor)), max(1, round(image[1] * factor))


def finished(values: npt.NDArray[np.float32], meaning: Meaning) -> DepthMap:
    """Return a network's numbers as an answer's depth map, NaN where they say nothing.

    That is what is not finite or negative, and of metres also 0 and beyond `FARTHEST_M`.
    """
    with np.errstate(invalid="ignore"):
        known = np.isfinite(values) & (values >= 0)
        if meaning == METRIC:
            known &= (values > 0) & (values <= FARTHEST_M)
    depth: DepthMap = np.where(known, values, np.nan).astype(np.float32)
    return depth


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
