"""What is fixed to the building: windows, pictures, skirting, architraves, light panels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tiekd_ros.worlds.plan import Cell, FloorPlan
from tiekd_ros.worlds.solids import Box

Floats = npt.NDArray[np.float64]
Spans = list[tuple[float, float]]

WALL_YAW = {"north": 0.0, "west": np.pi / 2, "south": np.pi, "east": -np.pi / 2}
"""Yaw that turns a piece's back (+y) to the wall of this side."""


@dataclass(frozen=True)
class Wall:
    """A wall seen from inside a cell: `start` + t * `along` runs left to right, metres."""

    cell: int
    side: str
    height: float
    is_outer: bool  # the open air lies behind it
    start: Floats  # (2,)
    along: Floats  # (2,), unit
    inward: Floats  # (2,), unit
    length: float
    openings: tuple[tuple[float, float], ...]  # intervals of t where doorways are

    def at(self, t: float, inward: float) -> Floats:
        """Return the point (2,) at `t` metres along the wall and `inward` metres off it."""
        spot: Floats = self.start + t * self.along + inward * self.inward
        return spot


def walls_of(plan: FloorPlan, index: int) -> list[Wall]:
    """Return the four walls of a corridor or room with the doorways in them."""
    cell = plan.cells[index]
    (x0, y0, _), (x1, y1, height) = cell.low, cell.high
    corners = {"north": (x0, y1), "east": (x1, y1), "south": (x1, y0), "west": (x0, y0)}
    steps = {"north": (1, 0), "east": (0, -1), "south": (-1, 0), "west": (0, 1)}
    walls = []
    for side, corner in corners.items():
        along, start = np.array(steps[side], float), np.array(corner)
        inward = np.array([along[1], -along[0]])
        length = cell.size(0 if side in ("north", "south") else 1)
        behind = [start + share * length * along - 0.3 * inward for share in (0.3, 0.7)]
        is_outer = not any(_is_indoors(plan, spot) for spot in behind)
        openings = _openings(plan, index, side, start, along)
        walls.append(Wall(index, side, height, is_outer, start, along, inward, length, openings))
    return walls


def _is_indoors(plan: FloorPlan, spot: Floats) -> bool:
    return any(
        c.low[0] <= spot[0] <= c.high[0] and c.low[1] <= spot[1] <= c.high[1] for c in plan.cells
    )


def _openings(
    plan: FloorPlan, index: int, side: str, start: Floats, along: Floats
) -> tuple[tuple[float, float], ...]:
    axis = 1 if side in ("north", "south") else 0
    openings = []
    for door in plan.doorways_of(index):
        if door.axis == axis and (door.before == index) == (side in ("north", "east")):
            gap = plan.cells[door.cell]
            ends = [float((np.array(p[:2]) - start) @ along) for p in (gap.low, gap.high)]
            openings.append((min(ends), max(ends)))
    return tuple(sorted(openings))


def hang(wall: Wall, hidden: Spans, rng: np.random.Generator) -> list[Box]:
    """Return windows on an outer wall, pictures on others; `hidden` spans stay empty."""
    boxes: list[Box] = []
    blocked = [*wall.openings, *hidden]
    t = float(rng.uniform(0.3, 0.7))
    while t < wall.length - 0.75:
        width = float(rng.uniform(0.9, 1.5) if wall.is_outer else rng.uniform(0.4, 0.9))
        width = min(width, wall.length - t - 0.3)
        start, stop = t - 0.12, t + width + 0.12
        if any(start < end and stop > begin for begin, end in blocked):
            t += 0.3
            continue
        make = _window if wall.is_outer else _picture
        boxes += make(wall, t + width / 2, width, rng)
        t = stop + float(rng.uniform(0.3, 1.2))
    return boxes


def _on_wall(wall: Wall, span: tuple[float, float, float, float], thick: float, name: str) -> Box:
    """Return a flat box on a wall; `span` is (t0, t1, z0, z1), its front bears the material."""
    t0, t1, z0, z1 = span
    x, y = wall.at((t0 + t1) / 2, thick / 2)
    half = ((t1 - t0) / 2, thick / 2, (z1 - z0) / 2)
    plain = name if name in ("trim", "metal", "wood0", "wood1") else "trim"
    front = "" if plain == name else name
    yaw = WALL_YAW[wall.side]
    center = (float(x), float(y), (z0 + z1) / 2)
    return Box(center, half, plain, yaw, front, cell=wall.cell, casts_shadow=False)


def _window(wall: Wall, t: float, width: float, rng: np.random.Generator) -> list[Box]:
    low, high, half = 0.92, min(2.1, wall.height - 0.2), width / 2
    frame = 0.06
    outer = (t - half, t + half)
    return [
        _on_wall(wall, (*outer, low, high), 0.015, "view" + str(rng.integers(2))),
        _on_wall(wall, (outer[0] - frame, outer[0], low, high), 0.05, "trim"),
        _on_wall(wall, (outer[1], outer[1] + frame, low, high), 0.05, "trim"),
        _on_wall(wall, (outer[0] - frame, outer[1] + frame, high, high + frame), 0.05, "trim"),
        _on_wall(wall, (outer[0] - 0.1, outer[1] + 0.1, low - 0.05, low), 0.14, "trim"),
        _on_wall(wall, (t - 0.02, t + 0.02, low, high), 0.04, "trim"),
    ]


def _picture(wall: Wall, t: float, width: float, rng: np.random.Generator) -> list[Box]:
    height = width * rng.uniform(0.7, 1.35)
    middle = rng.uniform(1.4, 1.6)
    low, high, half = middle - height / 2, middle + height / 2, width / 2
    name = "poster" + str(rng.integers(6))
    rim = 0.035
    wide = (t - half - rim, t + half + rim, low - rim, high + rim)
    frame = _on_wall(wall, wide, 0.02, "wood" + str(rng.integers(2)))
    return [frame, _on_wall(wall, (t - half, t + half, low, high), 0.028, name)]


def joinery(wall: Wall) -> list[Box]:
    """Return skirting boards, and architraves around the doorways of one wall."""
    boxes, t = [], 0.0
    for begin, end in (*wall.openings, (wall.length + 0.07, wall.length)):
        if begin - 0.07 > t:
            boxes.append(_on_wall(wall, (t, begin - 0.07, 0.0, 0.09), 0.016, "trim"))
        t = end + 0.07
    for begin, end in wall.openings:
        boxes += [
            _on_wall(wall, (begin - 0.07, begin, 0.0, 2.13), 0.025, "trim"),
            _on_wall(wall, (end, end + 0.07, 0.0, 2.13), 0.025, "trim"),
            _on_wall(wall, (begin, end, 2.06, 2.13), 0.025, "trim"),
        ]
    return boxes


def rug(cell: Cell, index: int, rng: np.random.Generator) -> Box:
    """Return a rug near the middle of a room."""
    x = (cell.low[0] + cell.high[0]) / 2 + rng.uniform(-0.3, 0.3)
    y = (cell.low[1] + cell.high[1]) / 2 + rng.uniform(-0.3, 0.3)
    half = (rng.uniform(0.7, 1.0), rng.uniform(0.5, 0.75), 0.006)
    name = "rug" + str(rng.integers(2))
    turn = float(rng.uniform(-0.3, 0.3))
    return Box((x, y, 0.006), half, name, turn, top=name, cell=index, casts_shadow=False)


def ceiling_panels(cell: Cell, index: int) -> list[Box]:
    """Return the light panels of a cell, spread along its longer side."""
    axis = 0 if cell.size(0) > cell.size(1) else 1
    count = max(1, round(cell.size(axis) / 2.4))
    boxes = []
    for i in range(count):
        spot = [(a + b) / 2 for a, b in zip(cell.low, cell.high, strict=True)]
        spot[axis] = cell.low[axis] + (i + 0.5) / count * cell.size(axis)
        center = (spot[0], spot[1], cell.high[2] - 0.02)
        half = (0.5, 0.16, 0.02) if axis == 0 else (0.16, 0.5, 0.02)
        boxes.append(Box(center, half, "lamp", cell=index, casts_shadow=False))
    return boxes
