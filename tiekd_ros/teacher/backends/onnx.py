"""A teacher that was exported to ONNX: AdaBins, BTS, DepthFormer or anything else."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from tiekd_ros.camera import Intrinsics
from tiekd_ros.errors import InvalidSettingError
from tiekd_ros.images import RgbImage, resize_depth
from tiekd_ros.teacher.backend import BackendRefusal
from tiekd_ros.teacher.backends.batched import BatchedBackend, needed_focal
from tiekd_ros.teacher.backends.fingerprint import fingerprint
from tiekd_ros.teacher.backends.onnx_card import card_file, read_card
from tiekd_ros.teacher.backends.onnx_session import DepthSession
from tiekd_ros.teacher.backends.options import BackendOptions
from tiekd_ros.teacher.backends.outputs import (
    METRIC,
    Meaning,
    answer_size,
    finished,
    identity_of,
)
from tiekd_ros.teacher.errors import BackendError
from tiekd_ros.teacher.protocol import DepthAnswer, DepthRequest

_LOG = logging.getLogger(__name__)

_PROBE = (480, 640)  # (height, width) of what the network is tried on before it serves


class OnnxBackend(BatchedBackend):
    """One .onnx file, described by the .yaml of the same name beside it (see `onnx_card`).

    Images of one size are one batch where the graph leaves the batch's size open.

    Raises:
        InvalidSettingError: the file or the device does not exist.
        BackendError: the description is missing or does not fit the graph, or it does not run.
    """

    def __init__(self, options: BackendOptions) -> None:
        """Load the file that `options.model` names and try it once."""
        path = Path(options.model).expanduser()
        if not path.is_file():
            raise InvalidSettingError(f"there is no file {path}; model must name an .onnx file")
        self._card = read_card(path)
        self._session = DepthSession(path, self._card, options.device)
        self._max_pixels = options.max_input_pixels
        self.meaning: Meaning = self._card.output.meaning  # type: ignore[assignment]
        # Large networks keep their weights in files beside the graph: NAME.onnx.data, NAME.data.
        parts = {path, card_file(path), *path.parent.glob(f"{path.name}[._]*")}
        parts |= set(path.parent.glob(f"{path.stem}.data"))
        self.identity = identity_of(self._card.name, fingerprint(parts), self.meaning)
        self._try()
        _LOG.info(
            "%s version %s on %s, %s", self.identity.name, self.identity.version,
            self._session.provider, self.meaning,
        )  # fmt: skip

    def check(self, request: DepthRequest, height: int, width: int) -> None:
        """Refuse a size that does not suit the network, or a request without its intrinsics."""
        self._input_size(height, width)
        self._focal(request, 1.0)

    def seen_focal_px(
        self, intrinsics: Intrinsics, height: int, width: int
    ) -> tuple[float, float] | None:
        """Return (fx, fy) in pixels of the network's input; None where it counts itself."""
        if self._card.needs_focal:
            return None
        inner = self._inner_size((height, width), self._input_size(height, width))
        return intrinsics.fx * inner[1] / width, intrinsics.fy * inner[0] / height

    def infer_batch(
        self, images: Sequence[RgbImage], requests: Sequence[DepthRequest]
    ) -> list[DepthAnswer]:
        """Label images of one size; errors as `check`'s."""
        height, width = images[0].shape[:2]
        size = self._input_size(height, width)
        inner = self._inner_size((height, width), size)
        focals = [self._focal(request, inner[1] / width) for request in requests]
        maps = self._numbers(images, focals, size, inner)
        return [
            self._answer(values, focal, (height, width), size, inner)
            for values, focal in zip(maps, focals, strict=True)
        ]

    def _numbers(
        self,
        images: Sequence[RgbImage],
        focals: Sequence[float],
        size: tuple[int, int],
        inner: tuple[int, int],
    ) -> npt.NDArray[np.float32]:
        """Return what the network answers, (B, h, w)."""
        pixels = np.stack([self._pixels(image, size, inner) for image in images])
        return self._session.run(pixels, np.array(focals, np.float32))

    def _input_size(self, height: int, width: int) -> tuple[int, int]:
        step = self._card.input.multiple_of
        fixed_height, fixed_width = self._session.size
        size = (fixed_height or height // step * step, fixed_width or width // step * step)
        if min(size) < 1 or size[0] * size[1] > self._max_pixels:
            raise BackendRefusal(
                f"an image of {width}x{height} would become {size[1]}x{size[0]} for this network, "
                f"which has to be at least {step}x{step} and at most {self._max_pixels} pixels "
                "(max_input_pixels); send one of another size"
            )
        return size

    def _inner_size(self, image: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) of the image inside the network's input."""
        if self._card.input.fit == "stretch":
            return size
        factor = min(size[0] / image[0], size[1] / image[1])
        return max(1, round(image[0] * factor)), max(1, round(image[1] * factor))

    def _focal(self, request: DepthRequest, factor: float) -> float:
        """Return the focal length in pixels of the network's input; 1 where none counts."""
        if not self._card.needs_focal:
            return 1.0
        return needed_focal(request) * factor

    def _pixels(
        self, image: RgbImage, size: tuple[int, int], inner: tuple[int, int]
    ) -> npt.NDArray[np.float32]:
        card = self._card
        shrinks = inner[0] < image.shape[0]
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        small = cv2.resize(image, inner[::-1], interpolation=method).astype(np.float32)
        normal = (small / card.input.divide_by - card.mean) / card.std
        pixels = np.zeros((*size, 3), np.float32)  # 0 is the mean colour
        pixels[: inner[0], : inner[1]] = normal
        if card.input.channels == "bgr":
            pixels = pixels[..., ::-1]
        return pixels.transpose(2, 0, 1) if card.input.layout == "nchw" else pixels

    def _answer(
        self,
        values: npt.NDArray[np.float32],
        focal: float,
        image: tuple[int, int],
        size: tuple[int, int],
        inner: tuple[int, int],
    ) -> DepthAnswer:
        rows = max(1, round(values.shape[0] * inner[0] / size[0]))
        columns = max(1, round(values.shape[1] * inner[1] / size[1]))
        content = np.ascontiguousarray(values[:rows, :columns])
        depth = resize_depth(content, *answer_size(image, (rows, columns)))
        output = self._card.output
        if self.meaning != METRIC:
            return DepthAnswer(finished(depth, self.meaning))
        depth = depth * np.float32(output.unit_m)
        if output.canonical_focal_px > 0:
            depth = depth * np.float32(focal / output.canonical_focal_px)
        with np.errstate(invalid="ignore"):
            depth[(depth < output.min_depth_m) | (depth > output.max_depth_m)] = np.nan
        return DepthAnswer(finished(depth, self.meaning))

    def _try(self) -> None:
        """Run once, so that what cannot work stops the start."""
        request = DepthRequest(b"", Intrinsics(500.0, 500.0, 319.5, 239.5), 0, "")
        image: Any = np.full((*_PROBE, 3), 128, np.uint8)
        try:
            size = self._input_size(*_PROBE)
        except BackendRefusal as error:
            raise BackendError(f"{self.identity.name} cannot serve: {error}") from error
        inner = self._inner_size(_PROBE, size)
        focal = self._focal(request, inner[1] / _PROBE[1])
        if not np.isfinite(self._numbers([image], [focal], size, inner)).any():
            raise BackendError(
                f"{self.identity.name} answers no finite number: where it was exported in half "
                "precision, its arithmetic overflows; export it with dtype=float32"
            )
