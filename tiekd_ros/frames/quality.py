"""Scores of one image: how sharp, how well exposed; and its thumbnail."""

from __future__ import annotations

from dataclasses import dataclass

import cv2

from tiekd_ros.images import RgbImage, Thumbnail, thumbnail

_LONGER_SIDE_PX = 320  # sharpness depends on scale: compare cameras at one size
_BLACK = 5  # grey levels; JPEG and sensor noise move a clipped pixel this far
_WHITE = 250


@dataclass(frozen=True)
class Look:
    """What an image looks like, in numbers."""

    thumbnail: Thumbnail
    sharpness: float
    """Variance of the Laplacian of the grey image, at most 320 pixels on the longer side."""
    black_share: float
    """Share of pixels that are clipped dark, 0..1."""
    white_share: float
    """Share of pixels that are clipped bright, 0..1."""
    brightness: float
    """Mean grey level, 0..255."""

    @property
    def exposure(self) -> float:
        """Share of pixels that are not clipped, 0..1."""
        return 1.0 - self.black_share - self.white_share


def look_at(image: RgbImage) -> Look:
    """Measure an RGB image, uint8 (H, W, 3).

    Raises:
        BadImageError: it is no such array.
    """
    small = thumbnail(image)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    factor = _LONGER_SIDE_PX / max(height, width)
    if factor < 1:  # never enlarge: that would only blur
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return Look(
        thumbnail=small,
        sharpness=float(cv2.Laplacian(grey, cv2.CV_32F).var()),
        black_share=float((grey <= _BLACK).mean()),
        white_share=float((grey >= _WHITE).mean()),
        brightness=float(grey.mean()),
    )
