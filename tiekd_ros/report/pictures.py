"""Pictures: colour-mapped depth, the demo's contact sheet, points seen from aside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from tiekd_ros.core.images import DepthMap, RgbImage

_PANEL = (640, 480)  # width, height
_GRID = (205, 205, 205)
_YAW, _PITCH = np.radians(28.0), np.radians(18.0)
"""How far the view from beside turns to the camera's left and above it."""
_LEVELS_M = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
_MOST_LINES = 12
_POINT_VIEW_TITLE = 36  # pixels

Points = npt.NDArray[np.float32]


def draw_points(xyz: Points, rgb: RgbImage) -> RgbImage:
    """Draw two views of a point cloud side by side.

    Args:
        xyz: metres in the camera's optical frame (x right, y down, z forward), (..., 3); points
            with a NaN are left out.
        rgb: the points' colours, (..., 3).

    Returns:
        RGB, (480, 1280, 3): left the scene from the camera's left and above, right from straight
        above, with a grid in metres and the camera at the bottom, and without what is higher than
        the camera, such as a ceiling.
    """
    known = np.isfinite(xyz).all(axis=-1)
    points, colours = xyz[known].astype(np.float64), rgb[known]
    width, height = _PANEL
    sheet = np.full((height, 2 * width, 3), PAPER, np.uint8)
    if len(points) == 0:
        write_text(sheet, "no points", (width // 2 - 40, height // 2))
        return sheet
    _draw_beside(sheet[:, :width], points, colours)
    _draw_above(sheet[:, width:], points, colours)
    sheet[:, width - 1 : width + 1] = _GRID
    return sheet


def _draw_beside(
    panel: RgbImage, points: npt.NDArray[np.float64], colours: npt.NDArray[np.uint8]
) -> None:
    height, width = panel.shape[:2]
    centre = np.median(points, axis=0)
    reach = np.percentile(np.linalg.norm(points - centre, axis=1), 90) + 1e-6
    away = 1.9 * reach
    seen = (points - centre) @ _turned(_YAW, _PITCH).T + (0, 0, away)
    before = seen[:, 2] > 0.05 * away
    seen, colours = seen[before], colours[before]
    slopes = seen[:, :2] / seen[:, 2:]
    low, high = np.percentile(slopes, (1, 99), axis=0)
    focal = 0.85 * float(np.min((width, height) / (high - low + 1e-6)))
    pixels = (slopes - (low + high) / 2) * focal + (width / 2, height / 2)
    _splat(panel, pixels, -seen[:, 2], colours, 3)
    write_text(panel, "from the camera's left and above", (10, 20))


def _turned(yaw: float, pitch: float) -> npt.NDArray[np.float64]:
    """Return the rotation into a view that looks to the right by yaw and down by pitch, 3 x 3."""
    about_y = np.array([[np.cos(yaw), 0, -np.sin(yaw)], [0, 1, 0], [np.sin(yaw), 0, np.cos(yaw)]])
    about_x = np.array(
        [[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]]
    )
    return np.asarray(about_x @ about_y, np.float64)


def _draw_above(
    panel: RgbImage, points: npt.NDArray[np.float64], colours: npt.NDArray[np.uint8]
) -> None:
    low = points[:, 1] >= 0
    if low.any():
        points, colours = points[low], colours[low]
    height, width = panel.shape[:2]
    foot = height - 30  # where the camera stands
    far = float(np.percentile(points[:, 2], 99)) + 1e-6
    side = float(np.percentile(np.abs(points[:, 0]), 99)) + 1e-6
    scale = min((foot - 40) / far, (width / 2 - 20) / side)  # pixels a metre
    every = next((m for m in _LEVELS_M if foot / scale / m <= _MOST_LINES), _LEVELS_M[-1])
    for metres, row in _steps(every, scale, foot):
        cv2.line(panel, (0, foot - row), (width, foot - row), _GRID, 1)
        for sign in (-1, 1):
            column = width // 2 + sign * row
            cv2.line(panel, (column, 0), (column, height), _GRID, 1)
        if foot - row > _POINT_VIEW_TITLE:
            write_text(panel, f"{metres:g} m", (4, foot - row - 3), 0.4)
    cv2.line(panel, (width // 2, 0), (width // 2, height), _GRID, 1)
    pixels = points[:, [0, 2]] * (scale, -scale) + (width / 2, foot)
    _splat(panel, pixels, -points[:, 1], colours, 2)
    mark = np.add([[0, 0], [-9, 14], [9, 14]], (width // 2, foot))
    cv2.fillPoly(panel, [mark.astype(np.int32)], INK)
    write_text(panel, f"from above, up to the camera's height, a line every {every:g} m", (10, 20))


def _steps(every: float, scale: float, foot: int) -> Iterator[tuple[float, int]]:
    """Yield metres and pixels of the grid's lines; enough for the width too."""
    for number in range(1, 3 * _MOST_LINES):
        pixels = round(number * every * scale)
        if pixels > max(foot, _PANEL[0] // 2):
            return
        yield number * every, pixels


def _splat(
    panel: RgbImage,
    pixels: npt.NDArray[np.float64],
    height: npt.NDArray[np.float64],
    colours: npt.NDArray[np.uint8],
    size: int,
) -> None:
    """Paint squares of `size` pixels at `pixels`, (N, 2) as (x, y); the greatest `height` wins."""
    order = np.argsort(height, kind="stable")  # of several writes to one place, the last one stays
    corners = np.rint(pixels[order]).astype(np.int64) - size // 2
    shifts = np.indices((size, size)).reshape(2, -1).T
    x, y = (corners[:, None, axis] + shifts[None, :, axis] for axis in (0, 1))  # (N, size²)
    rows, columns = panel.shape[:2]
    inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
    panel[y[inside], x[inside]] = np.repeat(colours[order], size * size, axis=0)[inside.ravel()]


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
