"""Training samples: frames at the network's size, augmented without lying about geometry.

Shapes: B batch, Hn and Wn the network's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.images import DepthMap, RgbImage
from tiekd_ros.core.settings import Settings, setting
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.preprocessing import resize_image

_T = TypeVar("_T")

_SURFACE_TOLERANCE = 0.1  # share of a depth by which another one may differ and be on its surface


@dataclass(frozen=True)
class AugmentSettings(Settings):
    """How far a training sample may differ from the frame it came from."""

    flip: float = setting(0.5, "share of samples mirrored left to right", minimum=0.0, maximum=1.0)
    zoom: float = setting(1.1, "largest random magnification", minimum=1.0, maximum=2.0)
    brightness: float = setting(
        0.1, "largest relative change of brightness", minimum=0.0, maximum=0.9
    )
    gamma: float = setting(0.1, "largest relative change of gamma", minimum=0.0, maximum=0.9)
    colour: float = setting(
        0.05, "largest relative change of each channel", minimum=0.0, maximum=0.9
    )


@dataclass(frozen=True)
class Sample:
    """One image with depth: uint8 (Hn, Wn, 3), float32 metres (Hn, Wn), NaN = unknown."""

    image: RgbImage
    depth: DepthMap
    intrinsics: Intrinsics | None = None


def fit_sample(
    image: RgbImage, depth: DepthMap, intrinsics: Intrinsics | None, size: InputSize
) -> Sample:
    """Bring a frame and its label (which may have another resolution) to the network's size."""
    if intrinsics is not None:
        intrinsics = intrinsics.scaled(size.width / image.shape[1], size.height / image.shape[0])
    fitted: DepthMap = cv2.resize(
        depth, (size.width, size.height), interpolation=cv2.INTER_NEAREST_EXACT
    )
    return Sample(resize_image(image, size), fitted, intrinsics)


def spread(items: Sequence[_T], most: int) -> list[_T]:
    """Return at most so many of the items, evenly spread over all of them, in their order."""
    count = min(most, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def augment(sample: Sample, settings: AugmentSettings, rng: np.random.Generator) -> Sample:
    """Return a random variation that is a possible view of a possible scene.

    Mirroring moves the principal point to its mirror image. Magnifying by s is what a lens of
    s times the focal length would show; since the student belongs to one focal length, depth is
    divided by s instead: with the focal length kept, the picture is that of a scene s times
    closer. Colours change by gamma, brightness and channel gains.
    """
    height, width = sample.depth.shape
    zoom = rng.uniform(1.0, settings.zoom)
    left = rng.uniform(0, width - width / zoom)
    top = rng.uniform(0, height - height / zoom)
    mirrored = rng.random() < settings.flip
    sign = -1.0 if mirrored else 1.0
    # x' = sign * zoom * (x + 0.5 - left) - 0.5 (+ width when mirrored)
    shift_x = -sign * zoom * (left - 0.5) - 0.5 + (width if mirrored else 0)
    shift_y = -zoom * (top - 0.5) - 0.5
    moved = _move(sample, np.array([[sign * zoom, 0, shift_x], [0, zoom, shift_y]]))
    closer = (moved.depth / np.float32(zoom)).astype(np.float32)
    return Sample(_recolour(moved.image, settings, rng), closer, moved.intrinsics)


def _move(sample: Sample, matrix: npt.NDArray[np.float64]) -> Sample:
    """Move pixels by a (2, 3) matrix without shear: x' = matrix @ (x, y, 1)."""
    size = sample.depth.shape[::-1]
    image = cv2.warpAffine(
        sample.image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    depth = cv2.warpAffine(
        sample.depth,
        matrix,
        size,
        flags=cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=float("nan"),
    )
    intrinsics = sample.intrinsics
    if intrinsics is not None:
        (scale_x, _, shift_x), (_, scale_y, shift_y) = matrix
        intrinsics = Intrinsics(
            intrinsics.fx,
            intrinsics.fy,
            scale_x * intrinsics.cx + shift_x,
            scale_y * intrinsics.cy + shift_y,
        )
    return Sample(image, depth, intrinsics)


def _recolour(image: RgbImage, settings: AugmentSettings, rng: np.random.Generator) -> RgbImage:
    gamma = 1 + rng.uniform(-settings.gamma, settings.gamma)
    gain = 1 + rng.uniform(-settings.brightness, settings.brightness)
    gains = gain * (1 + rng.uniform(-settings.colour, settings.colour, size=3))
    levels = (np.arange(256) / 255.0) ** gamma
    table = (levels[:, None] * gains * 255).clip(0, 255).astype(np.uint8)  # (256, 3)
    recoloured: RgbImage = cv2.LUT(image, table[None])
    return recoloured


def cell_depth(depth: Tensor, cell: int) -> Tensor:
    """Return depth at a network's output resolution: of each cell, that of one surface.

    It is the mean of the known pixels that are within 10 % of their median: at the edge of an
    object, the mean of all would be the depth of nothing.

    Args:
        depth: metres, (B, 1, Hn, Wn), NaN = unknown.
        cell: side of a cell in pixels, the network's `output_scale`; 1 changes nothing.

    Returns:
        Metres, (B, 1, Hn / cell, Wn / cell); NaN where a cell has no known pixel.
    """
    if cell == 1:
        return depth
    pixels = torch.nn.functional.pixel_unshuffle(depth, cell)  # (B, cell * cell, ...)
    pixels = torch.where(pixels.isfinite(), pixels, torch.nan)
    median = pixels.nanmedian(dim=1, keepdim=True).values
    on_surface = (pixels - median).abs() <= _SURFACE_TOLERANCE * median  # not where it is NaN
    total = torch.where(on_surface, pixels, 0.0).sum(dim=1, keepdim=True)
    return total / on_surface.sum(dim=1, keepdim=True)  # 0 / 0 = NaN: unknown stays unknown
