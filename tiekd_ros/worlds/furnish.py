"""Fills the rooms so that the camera's walk stays clear."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from tiekd_ros.worlds.furniture import FREE_PIECES, WALL_PIECES, Piece, pillar
from tiekd_ros.worlds.joinery import (
    WALL_YAW,
    Spans,
    Wall,
    ceiling_panels,
    hang,
    joinery,
    rug,
    walls_of,
)
from tiekd_ros.worlds.plan import Cell, FloorPlan
from tiekd_ros.worlds.solids import Box

Floats = npt.NDArray[np.float64]

_CLEAR_M = 0.52  # between the walk and anything that stands on the floor
_TRIES = 40
_USES = ("living", "office", "dining", "store")


@dataclass
class _Room:
    """One cell while it is being filled."""

    index: int
    cell: Cell
    boxes: list[Box] = field(default_factory=list)
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)  # x0 y0 x1 y1
    hidden: dict[str, Spans] = field(default_factory=dict)  # wall behind tall furniture


def furnish(plan: FloorPlan, walk: Floats, rng: np.random.Generator) -> list[Box]:
    """Return every box of the world; none comes within 0.5 m of the walk (N, 2).

    Joinery and pictures on the walls are flat and lie outside the walk by the plan's making.
    """
    uses = [*rng.permutation(_USES), *rng.permutation(_USES)]
    boxes: list[Box] = []
    for index, cell in enumerate(plan.cells):
        if cell.kind == "doorway":
            continue
        room = _Room(index, cell)
        use = "corridor" if cell.kind == "corridor" else str(uses[index])
        walls = walls_of(plan, index)
        for make in WALL_PIECES[use]:
            _stand_at_wall(room, walls, make(rng), walk, rng)
        for make in FREE_PIECES[use]:
            _stand_free(room, make(rng), make is pillar, walk, rng)
        for wall in walls:
            room.boxes += hang(wall, room.hidden.get(wall.side, []), rng) + joinery(wall)
        if use in ("living", "office", "dining"):
            room.boxes.append(rug(cell, index, rng))
        room.boxes += ceiling_panels(cell, index)
        boxes += room.boxes
    return boxes


def _stand_at_wall(
    room: _Room, walls: list[Wall], piece: Piece, walk: Floats, rng: np.random.Generator
) -> None:
    off = piece.depth / 2 + 0.03
    for _ in range(_TRIES):
        wall = walls[int(rng.integers(len(walls)))]
        if wall.length < piece.width + 0.1:
            continue
        t = rng.uniform(piece.width / 2 + 0.04, wall.length - piece.width / 2 - 0.04)
        span = (t - piece.width / 2 - 0.12, t + piece.width / 2 + 0.12)
        if any(span[0] < end and span[1] > begin for begin, end in wall.openings):
            continue
        x, y = wall.at(t, off)
        if _put(room, piece, (x, y, WALL_YAW[wall.side]), walk):
            if piece.height > 0.9:
                room.hidden.setdefault(wall.side, []).append(span)
            return


def _stand_free(
    room: _Room, piece: Piece, to_ceiling: bool, walk: Floats, rng: np.random.Generator
) -> None:
    if to_ceiling:
        height = room.cell.high[2] / 2
        column = piece.boxes[0]
        half = (column.half[0], column.half[1], height)
        piece = replace(piece, boxes=(replace(column, center=(0, 0, height), half=half),))
    reach = float(np.hypot(piece.width, piece.depth)) / 2 + 0.05
    low, high = np.array(room.cell.low[:2]) + reach, np.array(room.cell.high[:2]) - reach
    if (low >= high).any():
        return
    for _ in range(_TRIES):
        x, y = rng.uniform(low, high)
        yaw = 0.0 if to_ceiling else float(rng.uniform(-np.pi, np.pi))
        if _put(room, piece, (float(x), float(y), yaw), walk):
            return


def _put(room: _Room, piece: Piece, spot: tuple[float, float, float], walk: Floats) -> bool:
    """Place a piece at (x, y, yaw) unless it would touch another one or the walk."""
    x, y, yaw = spot
    cos, sin = np.cos(yaw), np.sin(yaw)
    moved = walk - np.array([x, y])
    local = np.abs(np.stack([moved @ [cos, sin], moved @ [-sin, cos]], axis=1))
    gap = np.maximum(local - np.array([piece.width, piece.depth]) / 2, 0)
    if np.hypot(*gap.T).min() < _CLEAR_M:
        return False
    half_x = (abs(cos) * piece.width + abs(sin) * piece.depth) / 2 + 0.03
    half_y = (abs(sin) * piece.width + abs(cos) * piece.depth) / 2 + 0.03
    area = (x - half_x, y - half_y, x + half_x, y + half_y)
    if any(_overlap(area, other) for other in room.taken):
        return False
    room.taken.append(area)
    room.boxes += piece.placed(x, y, yaw, room.index)
    return True


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
