"""Which cells the camera can see, and in which part of the image: portals.

A doorway cell opens into two rooms by two rectangles (portals). A room seen through
portals can only show inside their bounding rectangle on the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tiekd_ros.worlds.plan import FloorPlan

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
