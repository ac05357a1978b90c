"""Exact visibility of rectangles on a grid of samples, two a pixel and axis.

For a rectangle with corner o and unit edges r (right) and d (down), and a ray z * (X, Y, 1)
in camera coordinates, 1/z, u/z and v/z are linear in the ray's (X, Y, 1) and so in pixel
coordinates (u, v: metres along the edges). A sample lies inside where 0 <= u/z <= w/z and
0 <= v/z <= h/z: four half-planes, no clipping and no projected corners. The same three
linear forms give the depth and the texture coordinates.

Shape letters: K candidate rectangles, R rows and C columns of samples.

A doorway cell opens into two rooms by two rectangles (portals). A room seen through
portals can only show inside their bounding rectangle on the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tiekd_ros.worlds.plan import FloorPlan
from tiekd_ros.worlds.scene import Scene

Floats = npt.NDArray[np.float64]
Rect = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels

_NEAR_M = 0.05  # a portal that reaches nearer than this may fill the view


@dataclass(frozen=True)
class Portals:
    """`corners` (P, 4, 3) in metres, and the cells that each of the P portals joins."""

    corners: Floats
    cells: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, plan: FloorPlan) -> Portals:
        """Return both faces of every doorway."""
        corners, cells = [], []
        for door in plan.doorways:
            gap = plan.cells[door.cell]
            for end, room in ((gap.low, door.before), (gap.high, door.after)):
                low, high = list(gap.low), list(gap.high)
                low[door.axis] = high[door.axis] = end[door.axis]
                top, bottom = [*low[:2], high[2]], [*high[:2], low[2]]
                corners.append([low, top, high, bottom])
                cells.append((door.cell, room))
        return cls(np.array(corners), tuple(cells))

    def visible_cells(
        self, start: int, to_camera: Floats, camera_matrix: Floats, full: Rect
    ) -> dict[int, Rect]:
        """Return the cells in sight, each with the image rectangle that bounds it.

        `to_camera` is the 4x4 world-to-camera matrix.
        """
        points = self.corners @ to_camera[:3, :3].T + to_camera[:3, 3]
        frames = [_image_rect(p, camera_matrix, full) for p in points]
        seen: dict[int, Rect] = {}
        self._visit(start, full, frames, (start,), seen)
        return seen

    def _visit(
        self,
        cell: int,
        rect: Rect,
        frames: list[Rect | None],
        behind: tuple[int, ...],
        seen: dict[int, Rect],
    ) -> None:
        seen[cell] = _union(seen[cell], rect) if cell in seen else rect
        for frame, (one, two) in zip(frames, self.cells, strict=True):
            if frame is None or cell not in (one, two):
                continue
            beyond = two if cell == one else one
            through = _intersection(rect, frame)
            if beyond not in behind and through is not None:
                self._visit(beyond, through, frames, (*behind, beyond), seen)


def _image_rect(points: Floats, camera_matrix: Floats, full: Rect) -> Rect | None:
    """Return the image rectangle of a portal (4, 3) in camera coordinates, None if behind."""
    if (points[:, 2] < -_NEAR_M).all():
        return None
    if (points[:, 2] < _NEAR_M).any():
        return full
    pixels = points @ camera_matrix.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    (x0, y0), (x1, y1) = pixels.min(axis=0), pixels.max(axis=0)
    return (float(x0), float(y0), float(x1), float(y1))


def _intersection(a: Rect, b: Rect) -> Rect | None:
    rect = (max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    return rect if rect[0] <= rect[2] and rect[1] <= rect[3] else None


def _union(a: Rect, b: Rect) -> Rect:
    return (min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))


Ids = npt.NDArray[np.int16]

_SEAM_PX = 1e-6  # rectangles that share an edge overlap by this much: no cracks
_NO_SLOPE = 1e-12


@dataclass(frozen=True)
class Candidates:
    """Rectangles that may be in view.

    `number` (K,) is their place in the scene; `forms` (K, 3, 3) maps (x, y, 1) in pixels to
    (u/z, v/z, 1/z), u and v as shares of the width and height; `bounds` (K, 4) is the part
    of the image that each may cover: x0, y0, x1, y1 in pixels.
    """

    number: npt.NDArray[np.int64]
    forms: Floats
    bounds: Floats


def candidates(
    scene: Scene, to_camera: Floats, camera_matrix: Floats, cells: dict[int, Rect], full: Rect
) -> Candidates:
    """Return the rectangles in the cells given that face the camera and reach into view."""
    turn, shift = to_camera[:3, :3], to_camera[:3, 3]
    number = np.flatnonzero(np.isin(scene.cell, list(cells)))
    origin = scene.origin[number] @ turn.T + shift
    right, down = scene.right[number] @ turn.T, scene.down[number] @ turn.T
    away = np.cross(right, down)
    distance = (away * origin).sum(axis=1)  # from the camera to the plane, > 0 if it faces us
    keep = (distance > 1e-9) & _in_view(scene, number, origin, right, down, camera_matrix, full)
    number, origin, right, down = number[keep], origin[keep], right[keep], down[keep]
    inverse_z = away[keep] / distance[keep, None]
    across = right - (right * origin).sum(axis=1, keepdims=True) * inverse_z
    along = down - (down * origin).sum(axis=1, keepdims=True) * inverse_z
    size = scene.size[number]
    rays = np.stack([across / size[:, :1], along / size[:, 1:], inverse_z], axis=1)
    forms = rays @ np.linalg.inv(camera_matrix)
    bounds = np.array([cells[c] for c in scene.cell[number].tolist()]).reshape(-1, 4)
    return Candidates(number, forms, bounds)


def _in_view(
    scene: Scene,
    number: npt.NDArray[np.int64],
    origin: Floats,
    right: Floats,
    down: Floats,
    camera_matrix: Floats,
    full: Rect,
) -> npt.NDArray[np.bool_]:
    """Tell which rectangles are not wholly beyond one side of the view."""
    u, v = right * scene.size[number, :1], down * scene.size[number, 1:]
    corners = np.stack([origin, origin + u, origin + v, origin + u + v], axis=1) @ camera_matrix.T
    x, y, z = corners[..., 0], corners[..., 1], corners[..., 2]
    beyond = [z < 0, x < full[0] * z, x > full[2] * z, y < full[1] * z, y > full[3] * z]
    keep: npt.NDArray[np.bool_] = ~np.any([side.all(axis=1) for side in beyond], axis=0)
    return keep


def rasterise(seen: Candidates, width: int, height: int) -> Ids:
    """Return which candidate each sample shows, (2H + 1, 2W + 1); -1 where none does.

    Sample (j, i) lies at pixel ((i - 1) / 2, (j - 1) / 2): the odd ones are the pixels'
    centres, the others lie half-way between them.
    """
    rows, columns = 2 * height + 1, 2 * width + 1
    first, last = _spans(seen, rows, columns)
    shown = np.full((rows, columns), -1, np.int16)
    nearest = np.zeros((rows, columns), np.float32)  # 1/z
    ys, xs = (np.arange(rows) - 1) / 2, (np.arange(columns) - 1) / 2
    form = seen.forms[:, 2]
    by_row = (form[:, 1:2] * ys + form[:, 2:3]).astype(np.float32)
    by_column = (form[:, :1] * xs).astype(np.float32)
    number = np.arange(columns, dtype=np.int16)
    length = last - first
    filled = length >= 0
    for k in np.flatnonzero(filled.any(axis=1)).tolist():
        covered = np.flatnonzero(filled[k])
        y0, y1 = int(covered[0]), int(covered[-1]) + 1
        x0, x1 = int(first[k][covered].min()), int(last[k][covered].max()) + 1
        inverse = by_row[k, y0:y1, None] + by_column[k, x0:x1]
        # one unsigned comparison tests both ends of a row's span; an empty span is length -1
        offset = (number[x0:x1] - first[k, y0:y1, None]).view(np.uint16)
        reach = np.maximum(length[k, y0:y1, None], 0).view(np.uint16)
        hit = offset <= reach
        hit &= filled[k, y0:y1, None]
        depths = nearest[y0:y1, x0:x1]
        hit &= inverse > depths
        np.copyto(depths, inverse, where=hit)
        np.copyto(shown[y0:y1, x0:x1], np.int16(k), where=hit)
    return shown


def _spans(seen: Candidates, rows: int, columns: int) -> tuple[Ids, Ids]:
    """Return the first and the last sample (K, R) that each candidate covers in each row."""
    u, v, w = seen.forms[:, 0], seen.forms[:, 1], seen.forms[:, 2]
    edges = np.stack([u, w - u, v, w - v], axis=1)  # (K, 4, 3): inside where >= 0
    slope = edges[..., 0]
    slope = np.where(np.abs(slope) < _NO_SLOPE, _NO_SLOPE, slope)
    ys = (np.arange(rows) - 1) / 2
    # a x + b y + c >= 0 bounds x from below where a > 0, from above where a < 0
    gain, start = -edges[..., 1] / slope, -edges[..., 2] / slope
    rises = slope > 0
    low = np.broadcast_to(seen.bounds[:, :1], (len(u), rows)).copy()
    high = np.broadcast_to(seen.bounds[:, 2:3], (len(u), rows)).copy()
    for e in range(4):
        crossing = gain[:, e, None] * ys + start[:, e, None]  # (K, R)
        np.maximum(low, crossing, out=low, where=rises[:, e, None])
        np.minimum(high, crossing, out=high, where=~rises[:, e, None])
    outside = (ys < seen.bounds[:, 1:2]) | (ys > seen.bounds[:, 3:4])
    high[outside] = -np.inf
    first = np.ceil(np.clip(2 * (low - _SEAM_PX) + 1, 0, columns))
    last = np.floor(np.clip(2 * (high + _SEAM_PX) + 1, -1, columns - 1))
    return first.astype(np.int16), last.astype(np.int16)
