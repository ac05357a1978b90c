"""How a network wants its images, done in torch.

The same steps as transformers' image processors, which need torchvision for some models and
work on one image at a time without it: here they run in torch, on the network's device, for a
whole batch. Normalising and interpolating commute, so that one order of steps serves all.

Shapes: B images, H x W pixels of an image, h x w pixels of the network's input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from tiekd_ros.images import RgbImage
from tiekd_ros.teacher.backend import BackendRefusal

_ZOE_MARGIN = 3  # Zoe pads each side by 3 sqrt(side / 2) pixels of the image


@dataclass(frozen=True)
class Prepared:
    """A batch as the network takes it, and where in it the images are."""

    pixels: torch.Tensor
    """(B, 3, h, w)."""
    canvas: tuple[int, int]
    """(height, width) at which `margin` counts."""
    margin: tuple[int, int, int, int]
    """Padding at top, bottom, left and right of the canvas."""

    def content_of(self, maps: torch.Tensor) -> torch.Tensor:
        """Cut the padding off the network's output, (B, any height, any width)."""
        if not any(self.margin):
            return maps
        top, bottom, left, right = self.margin
        whole = resized(maps, self.canvas)
        return whole[:, top : self.canvas[0] - bottom, left : self.canvas[1] - right]

    def content_size(self, height: int, width: int) -> tuple[int, int]:
        """Return how much of an output of this size shows the image."""
        top, bottom, left, right = self.margin
        rows = height * (self.canvas[0] - top - bottom) / self.canvas[0]
        columns = width * (self.canvas[1] - left - right) / self.canvas[1]
        return max(1, round(rows)), max(1, round(columns))


@dataclass(frozen=True)
class ImageRecipe:
    """What happens to an image before the network."""

    size: tuple[int, int] | None
    """(height, width) that images are fitted to; None: their own, rounded down."""
    keep_aspect: bool
    multiple: int
    filter: str
    antialias: bool
    align_corners: bool
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    zoe_margin: bool
    divisor: int
    """Both sides are padded to multiples of this; 0 pads nothing."""
    max_pixels: int

    def prepare(
        self, images: Sequence[RgbImage], device: torch.device, dtype: torch.dtype
    ) -> Prepared:
        """Return the network's input for images of one size.

        Raises:
            BackendRefusal: the network's input would be too large, or smaller than a pixel.
        """
        height, width = images[0].shape[:2]
        rows, columns = self._zoe_margin(height, width)
        size = self.seen_size(height, width)
        batch = torch.from_numpy(np.stack(images)).to(device)  # (B, H, W, 3)
        x = batch.permute(0, 3, 1, 2)  # (B, 3, H, W)
        if rows or columns:
            x = F.pad(x.float(), (columns, columns, rows, rows), mode="reflect")
        x = self._normalised(self._resized(x, size))
        if rows or columns:
            padded = (height + 2 * rows, width + 2 * columns)
            return Prepared(x.to(dtype), padded, (rows, rows, columns, columns))
        margin = self._divisor_margin(size)
        if any(margin):
            x = F.pad(x, (margin[2], margin[3], margin[0], margin[1]))
        return Prepared(x.to(dtype), (x.shape[2], x.shape[3]), margin)

    def seen_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (h, w) of an image, and its margin, at the network; refuses as `prepare`."""
        rows, columns = self._zoe_margin(height, width)
        return self.input_size(height + 2 * rows, width + 2 * columns)

    def magnification(self, height: int, width: int) -> tuple[float, float]:
        """Return how many of the network's pixels one of the image's becomes: (in x, in y)."""
        rows, columns = self._zoe_margin(height, width)
        h, w = self.seen_size(height, width)
        return w / (width + 2 * columns), h / (height + 2 * rows)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (h, w) that an image of this size is resized to."""
        if self.size is None:
            sides = (height // self.multiple, width // self.multiple)
        else:
            scales = [self.size[0] / height, self.size[1] / width]
            if self.keep_aspect:
                scales = [min(scales, key=lambda scale: abs(1 - scale))] * 2
            sides = (
                round(scales[0] * height / self.multiple),
                round(scales[1] * width / self.multiple),
            )
        h, w = sides[0] * self.multiple, sides[1] * self.multiple
        if min(h, w) < 1 or h * w > self.max_pixels:
            raise BackendRefusal(
                f"an image of {width}x{height} would become {w}x{h} for this network, which has "
                f"to be at least {self.multiple}x{self.multiple} and at most {self.max_pixels} "
                "pixels (max_input_pixels); send one of another size"
            )
        return h, w

    def _resized(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Resize bytes, or floats of 0 to 255, (B, 3, any height, any width)."""
        if x.shape[2:] == size:
            return x
        if self.filter == "nearest":
            return F.interpolate(x.float(), size, mode="nearest-exact")
        # Of bytes a CPU is ten times as fast as of floats; a GPU cannot do it, nor need it.
        if not self.antialias or x.device.type != "cpu":
            x = x.float().contiguous()
        x = F.interpolate(
            x,
            size,
            mode=self.filter,
            align_corners=self.align_corners,
            antialias=self.antialias,
        )
        return x.clamp_(0, 255)  # bicubic overshoots; what works on bytes cuts that off

    def _normalised(self, x: torch.Tensor) -> torch.Tensor:
        # A copy, of bytes anyway, so that what follows may change it in place.
        x = x.to(torch.float32, memory_format=torch.contiguous_format)
        if not self.mean:
            return x.mul_(self.scale)
        shape = (1, 3, 1, 1)
        mean = torch.tensor(self.mean, device=x.device).view(shape)
        std = torch.tensor(self.std, device=x.device).view(shape)
        return x.mul_(self.scale / std).sub_(mean / std)  # (scale x - mean) / std, in place

    def _zoe_margin(self, height: int, width: int) -> tuple[int, int]:
        if not self.zoe_margin:
            return 0, 0
        rows, columns = (int(math.sqrt(side / 2) * _ZOE_MARGIN) for side in (height, width))
        if rows >= height or columns >= width:
            raise BackendRefusal(f"an image of {width}x{height} is too small for this network")
        return rows, columns

    def _divisor_margin(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        if not self.divisor:
            return 0, 0, 0, 0
        rows, columns = (-side % self.divisor for side in size)
        return rows // 2, rows - rows // 2, columns // 2, columns - columns // 2


def resized(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bring maps (B, any height, any width) to a (height, width), bilinearly."""
    if maps.shape[1:] == size:
        return maps
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
