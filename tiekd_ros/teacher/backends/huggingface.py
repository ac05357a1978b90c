"""A teacher of transformers' `AutoModelForDepthEstimation`: Depth Anything, DPT, GLPN, ..."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from tiekd_ros.camera import Intrinsics
from tiekd_ros.images import RgbImage
from tiekd_ros.teacher.backend import BackendRefusal
from tiekd_ros.teacher.backends.batched import NEEDS_FOCAL, BatchedBackend
from tiekd_ros.teacher.backends.checkpoint import open_checkpoint
from tiekd_ros.teacher.backends.image_recipe import resized
from tiekd_ros.teacher.backends.options import BackendOptions
from tiekd_ros.teacher.backends.outputs import METRIC, answer_size, finished, identity_of
from tiekd_ros.teacher.errors import BackendError
from tiekd_ros.teacher.protocol import DepthAnswer, DepthRequest

_LOG = logging.getLogger(__name__)

_PROBE = (480, 640)  # (height, width) of what the network is tried on before it serves


class HuggingFaceBackend(BatchedBackend):
    """One checkpoint on one device; several images of one size are one batch.

    Metres where the network is metric, else its own numbers (`meaning` says which). Depth Pro's
    numbers become metres by the request's focal length, or by the field of view that it guesses
    itself where the request has none.

    Raises:
        InvalidSettingError: the folder or the device does not exist.
        BackendError: the checkpoint cannot be had, lacks something or does not run.
    """

    def __init__(self, options: BackendOptions) -> None:
        """Load the checkpoint that `options.model` names and try it once."""
        self._checkpoint = open_checkpoint(options)
        self.meaning = self._checkpoint.meaning
        self.identity = identity_of(
            self._checkpoint.name, self._checkpoint.version, self._checkpoint.meaning
        )
        self._canonical = (
            self._checkpoint.config.model_type == "depth_pro" and self.meaning == METRIC
        )
        self._guesses = bool(getattr(self._checkpoint.config, "use_fov_model", False))
        # ZoeDepth's votes for one of its heads with all images of a batch: neighbours would change
        # an image's metres.
        self._alone = len(getattr(self._checkpoint.config, "bin_configurations", None) or ()) > 1
        size = self._try()
        _LOG.info(
            "%s version %s on %s in %s, %s, %dx%d for %dx%d images",
            self.identity.name, self.identity.version, self._checkpoint.device,
            str(self._checkpoint.dtype).removeprefix("torch."), self.meaning, *size[::-1],
            *_PROBE[::-1],
        )  # fmt: skip

    def check(self, request: DepthRequest, height: int, width: int) -> None:
        """Refuse a size that does not suit the network, or a request without its intrinsics."""
        self._checkpoint.recipe.seen_size(height, width)
        if self._canonical and not self._guesses and request.intrinsics is None:
            raise BackendRefusal(NEEDS_FOCAL)

    def seen_focal_px(
        self, intrinsics: Intrinsics, height: int, width: int
    ) -> tuple[float, float] | None:
        """Return (fx, fy) in pixels of the network's input; None where it counts itself."""
        if self._canonical:
            return None
        x, y = self._checkpoint.recipe.magnification(height, width)
        return intrinsics.fx * x, intrinsics.fy * y

    def infer_batch(
        self, images: Sequence[RgbImage], requests: Sequence[DepthRequest]
    ) -> list[DepthAnswer]:
        """Label images of one size in one pass; errors as `check`'s."""
        if self._alone and len(images) > 1:
            return [self.infer(*pair) for pair in zip(images, requests, strict=True)]
        loaded = self._checkpoint
        height, width = images[0].shape[:2]
        with torch.inference_mode():
            prepared = loaded.recipe.prepare(images, loaded.device, loaded.dtype)
            output = loaded.network(pixel_values=prepared.pixels)
            maps = output.predicted_depth.float()  # (B, h, w)
            content = prepared.content_size(maps.shape[1], maps.shape[2])
            maps = resized(prepared.content_of(maps), answer_size((height, width), content))
            if self._canonical:
                maps = self._metres(maps, output.field_of_view, requests, width)
            values = maps.cpu().numpy()
        return [DepthAnswer(finished(depth, self.meaning)) for depth in values]

    def _metres(
        self,
        canonical: torch.Tensor,
        fields_of_view: torch.Tensor | None,
        requests: Sequence[DepthRequest],
        width: int,
    ) -> torch.Tensor:
        """Turn Depth Pro's canonical inverse depth into metres.

        1 / d = canonical * width / focal (arXiv 2410.02073, section 3.2).
        """
        guesses: list[float | None] = [None] * len(requests)
        if fields_of_view is not None:  # horizontal, degrees
            half = torch.deg2rad(fields_of_view.float()) / 2
            guesses = (0.5 * width / torch.tan(half)).tolist()
        focals = []
        for request, guess in zip(requests, guesses, strict=True):
            focal = request.intrinsics.fx if request.intrinsics is not None else guess
            if focal is None or not np.isfinite(focal) or focal <= 0:
                raise BackendRefusal(NEEDS_FOCAL)
            focals.append(focal)
        shape = (-1, 1, 1)
        scale = width / torch.tensor(focals, device=canonical.device).view(shape)
        return 1 / (canonical * scale)  # what is not positive becomes unknown

    def _try(self) -> tuple[int, int]:
        """Run once, so that what cannot work stops the start; returns the input's size."""
        loaded = self._checkpoint
        image = np.full((*_PROBE, 3), 128, np.uint8)
        try:
            with torch.inference_mode():
                prepared = loaded.recipe.prepare([image], loaded.device, loaded.dtype)
                output = loaded.network(pixel_values=prepared.pixels)
                shape = tuple(output.predicted_depth.shape)
                finite = bool(torch.isfinite(output.predicted_depth).any())
        except BackendRefusal as error:
            raise BackendError(f"{loaded.name} cannot serve: {error}") from error
        except Exception as error:
            raise BackendError(
                f"{loaded.name} does not run on {loaded.device} in {loaded.dtype} "
                f"({type(error).__name__}: {error}); try another device or dtype"
            ) from error
        if len(shape) != 3 or shape[0] != 1:
            raise BackendError(f"{loaded.name} answers {shape}, expected (1, height, width)")
        if not finite:
            raise BackendError(
                f"{loaded.name} answers no finite number in {loaded.dtype}: its arithmetic "
                "overflows; say dtype=float32 (--dtype)"
            )
        return prepared.pixels.shape[2], prepared.pixels.shape[3]
