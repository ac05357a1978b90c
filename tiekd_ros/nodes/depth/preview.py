"""Depth in colours, to be looked at: near to far along a colour map, unknown in grey."""

from __future__ import annotations

import functools
import re

import cv2
import numpy as np
import numpy.typing as npt
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from tiekd_ros.core.images import DepthMap, RgbImage
from tiekd_ros.nodes.common.conversions import ImageCanvas
from tiekd_ros.nodes.common.settings import DepthSettings
from tiekd_ros.student.bins import DepthBins

UNKNOWN = (128, 128, 128)
"""The colour of pixels without depth; in none of the colour maps on offer."""

_LEAST_SPAN_M = 0.01
_RANGE = re.compile(r"(\S+) m \(near\) to (\S+) m \(far\) in (\w+),")
_SCALE, _BAR, _LEAST_WIDTH = 32, 12, 160  # pixels: below the picture, of it coloured, wide
_PAPER, _INK = (250, 250, 250), (40, 40, 40)
_FONT, _FONT_SIZE = cv2.FONT_HERSHEY_SIMPLEX, 0.42


def preview_range(settings: DepthSettings, bins: DepthBins) -> tuple[float, float]:
    """Return the depths in metres of the colour map's ends, nearest first."""
    near = settings.preview_min_m or max(bins.min_depth_m, settings.min_range_m)
    far = settings.preview_max_m or min(bins.max_depth_m, settings.max_range_m or np.inf)
    return near, max(far, near + _LEAST_SPAN_M)


def describe_range(near: float, far: float, colormap: str) -> str:
    """Say for people, and for `read_range`, what the colours mean; depths in metres."""
    return f"{near:g} m (near) to {far:g} m (far) in {colormap}, unknown grey"


def read_range(text: str) -> tuple[float, float, str] | None:
    """Return near, far and colour map of what `describe_range` said; None for anything else."""
    found = _RANGE.match(text)
    return None if found is None else (float(found[1]), float(found[2]), found[3])


def with_scale(preview: RgbImage, near: float, far: float, colormap: str) -> RgbImage:
    """Return a preview with its colours below it, near on the left, and their depths.

    Args:
        preview: (H, W, 3).
        near: depth in metres of the map's last colour.
        far: depth in metres of its first.
        colormap: OpenCV's name of the map, in lower case.

    Returns:
        RGB, (H + 32, W or more, 3).
    """
    height, width = preview.shape[:2]
    wide = max(width, _LEAST_WIDTH)
    sheet = np.full((height + _SCALE, wide, 3), _PAPER, np.uint8)
    sheet[:height, :width] = preview
    levels = np.linspace(255, 1, wide).round().astype(np.uint8)
    sheet[height + 2 : height + 2 + _BAR] = _table(colormap)[levels, 0]
    for share in (0.0, 0.5, 1.0):
        text = f"{near + share * (far - near):.3g} m"
        (long, _), _ = cv2.getTextSize(text, _FONT, _FONT_SIZE, 1)
        at = (2 + round(share * (wide - long - 4)), height + _SCALE - 5)
        cv2.putText(sheet, text, at, _FONT, _FONT_SIZE, _INK, 1, cv2.LINE_AA)
    return sheet


class PreviewCanvas:
    """An `rgb8` message of depth in colours, painted in place, image after image."""

    def __init__(self) -> None:
        self._canvas = ImageCanvas()
        self._colours: RgbImage = np.empty((0, 0, 3), np.uint8)

    def paint(
        self, depth: DepthMap, header: Header, ends: tuple[float, float], colormap: str
    ) -> Image:
        """Return the message, valid until the next call.

        Args:
            depth: metres, (H, W); NaN = unknown; nearer and farther than the ends, infinite too,
                takes the ends' colours.
            header: of the message.
            ends: depth in metres of the map's last colour (near) and of its first (far).
            colormap: OpenCV's name of the map, in lower case.
        """
        if self._colours.shape[:2] != depth.shape:
            self._colours = np.empty((*depth.shape, 3), np.uint8)
        near, far = ends
        # Level 255 = near, 1 = far, 0 = unknown.
        slope = -254.0 / (far - near)
        levels = depth.clip(near, far)
        levels *= np.float32(slope)
        levels += np.float32(255.5 - slope * near)
        cv2.patchNaNs(levels, 0.0)
        cv2.applyColorMap(levels.astype(np.uint8), _table(colormap), self._colours)
        return self._canvas.paint(self._colours, header)


@functools.lru_cache(maxsize=8)
def _table(colormap: str) -> npt.NDArray[np.uint8]:
    """Return RGB by level, (256, 1, 3)."""
    number = getattr(cv2, f"COLORMAP_{colormap.upper()}")
    bgr = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], number)
    table: npt.NDArray[np.uint8] = np.ascontiguousarray(bgr[..., ::-1])
    table[0] = UNKNOWN
    return table
