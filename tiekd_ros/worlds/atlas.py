"""Texture and light atlases: many small pictures in one, with their places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from tiekd_ros.worlds.materials import Material

LEVELS = 15
"""Mip levels of a texture, each smaller than the one before by the square root of 2."""

_WIDTH = 4096
_PAD = 1  # texels around each picture, so that bilinear look-ups never bleed


@dataclass(frozen=True)
class TextureAtlas:
    """All mip levels of all materials.

    `pixels` is (H, W, 3) uint8; `levels` (4, M * LEVELS) float32 holds x, y, width, height
    of level l of material m at column m * LEVELS + l, in texels; `index` numbers the
    materials by name.
    """

    pixels: npt.NDArray[np.uint8]
    levels: npt.NDArray[np.float32]
    index: dict[str, int]

    @classmethod
    def build(cls, materials: dict[str, Material]) -> TextureAtlas:
        """Shrink every material's picture step by step and pack all."""
        pictures: list[npt.NDArray[np.uint8]] = []
        for material in materials.values():
            border = cv2.BORDER_REPLICATE if material.size_m is None else cv2.BORDER_WRAP
            for level in range(LEVELS):
                small = _shrunk(material.picture, 2.0 ** (-level / 2))
                pictures.append(cv2.copyMakeBorder(small, _PAD, _PAD, _PAD, _PAD, border))
        places, height = pack([(p.shape[1], p.shape[0]) for p in pictures], _WIDTH)
        pixels = np.zeros((height, _WIDTH, 3), np.uint8)
        levels = np.empty((4, len(pictures)), np.float32)
        for i, (picture, (x, y)) in enumerate(zip(pictures, places, strict=True)):
            h, w = picture.shape[:2]
            pixels[y : y + h, x : x + w] = picture
            levels[:, i] = (x + _PAD, y + _PAD, w - 2 * _PAD, h - 2 * _PAD)
        return cls(pixels, levels, {name: i for i, name in enumerate(materials)})


@dataclass(frozen=True)
class LightAtlas:
    """Baked light: `pixels` (H, W, 3) float32, display-referred factors of the albedo.

    `rects` (N, 4) holds width, height, x, y of each rectangle's light map, in texels.
    """

    pixels: npt.NDArray[np.float32]
    rects: npt.NDArray[np.int64]

    @classmethod
    def build(cls, maps: Sequence[npt.NDArray[np.float32]]) -> LightAtlas:
        """Pack light maps (h, w, 3), one a rectangle."""
        padded = [cv2.copyMakeBorder(m, 1, 1, 1, 1, cv2.BORDER_REPLICATE) for m in maps]
        places, height = pack([(p.shape[1], p.shape[0]) for p in padded], 512)
        pixels = np.zeros((height, 512, 3), np.float32)
        rects = np.empty((len(maps), 4), np.int64)
        for i, (picture, (x, y)) in enumerate(zip(padded, places, strict=True)):
            h, w = picture.shape[:2]
            pixels[y : y + h, x : x + w] = picture
            rects[i] = (w - 2, h - 2, x + 1, y + 1)
        return cls(pixels, rects)


def pack(sizes: Sequence[tuple[int, int]], width: int) -> tuple[list[tuple[int, int]], int]:
    """Place rectangles (width, height) in rows; return their (x, y) and the height needed."""
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i][1], i))
    places = [(0, 0)] * len(sizes)
    x = y = row = 0
    for i in order:
        w, h = sizes[i]
        if x + w > width:
            x, y, row = 0, y + row, 0
        places[i] = (x, y)
        x, row = x + w, max(row, h)
    return places, y + row


def _shrunk(picture: npt.NDArray[np.uint8], factor: float) -> npt.NDArray[np.uint8]:
    height, width = picture.shape[:2]
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    if size == (width, height):
        return picture
    small: npt.NDArray[np.uint8] = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return small
