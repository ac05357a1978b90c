"""Colour-mapped depth and the demo's contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from tiekd_ros.core.images import DepthMap, RgbImage

_CELL_WIDTH = 300
_GAP = 6
_HEADER = 30
_TITLE = 62
_SCALE = 44
PAPER = (250, 250, 250)
INK = (40, 40, 40)
_UNKNOWN = (205, 205, 205)
_MAX_ERROR_SHARE = 0.25
"""The error's colours end at this share of the depth range."""


@dataclass(frozen=True)
class SheetRow:
    """One line of a contact sheet; depth in metres, None = there was none."""

    image: RgbImage
    depths: Sequence[DepthMap | None]
    truth: DepthMap


def colour_depth(depth: DepthMap, near_m: float, far_m: float) -> RgbImage:
    """Map depth to colours, near = bright yellow, far = dark violet; unknown = grey.

    Args:
        depth: metres, (H, W); NaN = unknown, infinite values take the ends' colours.
        near_m: depth of the brightest colour.
        far_m: depth of the darkest colour.
    """
    share = (depth.clip(near_m, far_m) - near_m) / (far_m - near_m)
    levels = np.nan_to_num(255 * (1 - share)).astype(np.uint8)
    return _mapped(levels, cv2.COLORMAP_INFERNO, np.isnan(depth))


def colour_error(predicted: DepthMap, truth: DepthMap, largest_m: float) -> RgbImage:
    """Map the absolute error to colours, white = none, dark red = `largest_m` or more."""
    error = np.abs(predicted - truth)
    levels = (255 * (np.nan_to_num(error, nan=0, posinf=1e6) / largest_m).clip(0, 1)).astype(
        np.uint8
    )
    fade = levels.astype(np.float32)[..., None] / 255
    colours: RgbImage = (255 * (1 - fade) + np.array([165, 15, 21]) * fade).astype(np.uint8)
    colours[np.isnan(truth) | np.isnan(predicted)] = _UNKNOWN
    return colours


def _mapped(
    levels: npt.NDArray[np.uint8], colormap: int, unknown: npt.NDArray[np.bool_]
) -> RgbImage:
    colours: RgbImage = cv2.cvtColor(cv2.applyColorMap(levels, colormap), cv2.COLOR_BGR2RGB)
    colours[unknown] = _UNKNOWN
    return colours


def contact_sheet(
    rows: Sequence[SheetRow], columns: Sequence[str], title: str, subtitle: str
) -> RgbImage:
    """Draw image, depths, truth and the last depth's error, one row a view.

    Args:
        rows: the views; all depth maps of a row have its image's aspect ratio.
        columns: names of the depth columns, as many as `depths` of each row.
        title: first line.
        subtitle: second line, smaller.
    """
    truths = np.concatenate([r.truth[np.isfinite(r.truth)] for r in rows])
    near, far = np.percentile(truths, (1, 99)) if truths.size else (0.0, 1.0)
    far = max(float(far), float(near) + 0.1)
    largest = _MAX_ERROR_SHARE * far
    height = round(_CELL_WIDTH * rows[0].image.shape[0] / rows[0].image.shape[1])
    names = ["image", *columns, "truth", f"error (0 to {largest:.1f} m)"]
    sheet_width = len(names) * (_CELL_WIDTH + _GAP) + _GAP
    sheet_height = _TITLE + _HEADER + len(rows) * (height + _GAP) + _SCALE
    sheet = np.full((sheet_height, sheet_width, 3), PAPER, np.uint8)
    write_text(sheet, title, (_GAP + 4, 26), 0.75, 2)
    write_text(sheet, subtitle, (_GAP + 4, 52), 0.5, 1)
    for column, name in enumerate(names):
        write_text(sheet, name, (_left(column) + 4, _TITLE + 20), 0.52, 1)
    for index, row in enumerate(rows):
        top = _TITLE + _HEADER + index * (height + _GAP)
        for column, cell in enumerate(_cells(row, float(near), far, largest)):
            _paste(sheet, cell, _left(column), top, height)
    _draw_scale(sheet, float(near), far)
    return sheet


def _cells(row: SheetRow, near: float, far: float, largest: float) -> list[RgbImage | None]:
    depths = [None if d is None else colour_depth(d, near, far) for d in row.depths]
    last = next((d for d in reversed(row.depths) if d is not None), None)
    error = None
    if last is not None:
        truth = row.truth
        if last.shape != truth.shape:
            last = cv2.resize(last, truth.shape[::-1], interpolation=cv2.INTER_NEAREST)
        error = colour_error(last, truth, largest)
    return [row.image, *depths, colour_depth(row.truth, near, far), error]


def _paste(sheet: RgbImage, cell: RgbImage | None, left: int, top: int, height: int) -> None:
    place = sheet[top : top + height, left : left + _CELL_WIDTH]
    if cell is None:
        place[:] = (235, 235, 235)
        write_text(sheet, "no depth", (left + _CELL_WIDTH // 2 - 36, top + height // 2), 0.5, 1)
        return
    place[:] = cv2.resize(cell, (_CELL_WIDTH, height), interpolation=cv2.INTER_AREA)


def _draw_scale(sheet: RgbImage, near: float, far: float) -> None:
    top = sheet.shape[0] - _SCALE + 8
    ramp = np.linspace(near, far, 2 * _CELL_WIDTH, dtype=np.float32)[None].repeat(14, axis=0)
    left = _left(1)
    sheet[top : top + 14, left : left + ramp.shape[1]] = colour_depth(ramp, near, far)
    write_text(sheet, "depth", (_left(0) + _CELL_WIDTH - 52, top + 12), 0.45, 1)
    for share in (0.0, 0.5, 1.0):
        x = left + round(share * ramp.shape[1]) - (0 if share == 0 else 22 if share < 1 else 44)
        write_text(sheet, f"{near + share * (far - near):.1f} m", (x, top + 30), 0.42, 1)


def _left(column: int) -> int:
    return _GAP + column * (_CELL_WIDTH + _GAP)


def write_text(
    picture: RgbImage, text: str, at: tuple[int, int], size: float = 0.5, weight: int = 1
) -> None:
    """Write a line of text into a picture; `at` is its lower left corner (x, y)."""
    cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, INK, weight, cv2.LINE_AA)
