"""A point cloud drawn from two sides: from the camera's left, and from above."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt

from tiekd_ros.core.images import RgbImage
from tiekd_ros.report.pictures import INK, PAPER, write_text

_PANEL = (640, 480)  # width, height
_GRID = (205, 205, 205)
_YAW, _PITCH = np.radians(28.0), np.radians(18.0)
"""How far the view from beside turns to the camera's left and above it."""
_LEVELS_M = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
_MOST_LINES = 12
_TITLE = 36  # pixels

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
        if foot - row > _TITLE:
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
