"""The floor plan of a flat, its walls, and the camera's closed walk through its doorways.

World frame: x east, y north, z up, metres; the floor is z = 0. Every cell is an
axis-aligned box, so a straight line of sight never enters the same cell twice. Doorways are
cells of their own, as thick as the wall that they pierce.

The camera's path is a Fourier series in the phase of one turn. The route's corners are rounded
by a Gaussian along its length, which in the frequency domain is a product; the few harmonics
that survive give position and heading at any phase, smooth in every derivative and exactly
periodic.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tiekd_ros.worlds.solids import Floats

WALL_M = 0.14
DOOR_HEIGHT_M = 2.06
_APPROACH_M = 0.75  # the route is straight this far before and behind a doorway


@dataclass(frozen=True)
class Cell:
    """One convex space: `low` and `high` are the (x, y, z) corners of its box, metres."""

    kind: str  # "corridor", "room" or "doorway"
    low: tuple[float, float, float]
    high: tuple[float, float, float]

    def size(self, axis: int) -> float:
        """Return the extent along an axis in metres."""
        return self.high[axis] - self.low[axis]


@dataclass(frozen=True)
class Doorway:
    """A passage along `axis` (0 = x, 1 = y) from cell `before` (lower side) to `after`."""

    cell: int
    before: int
    after: int
    axis: int


@dataclass(frozen=True)
class FloorPlan:
    """Cells, the doorways between them, and the corners (N, 2) of a closed route, metres.

    The corridor is cell 0, rooms follow, doorways come last.
    """

    cells: tuple[Cell, ...]
    doorways: tuple[Doorway, ...]
    route: Floats

    def doorways_of(self, cell: int) -> list[Doorway]:
        """Return the doorways that open into a cell."""
        return [d for d in self.doorways if cell in (d.before, d.after)]

    def cell_at(self, point: Floats) -> int:
        """Return the cell that holds a point (3,), or the nearest one for a point in a wall."""
        low = np.array([c.low for c in self.cells])
        high = np.array([c.high for c in self.cells])
        outside = np.maximum(np.maximum(low - point, point - high), 0).sum(axis=1)
        return int(np.argmin(outside))


def make_plan(rng: np.random.Generator) -> FloorPlan:
    """Draw a floor plan: two or three rooms a side, chained by doorways, around a corridor."""
    length, width = rng.uniform(9.0, 11.5), rng.uniform(1.55, 2.05)
    draft = _Draft(rng, Cell("corridor", (0, 0, 0), (length, width, rng.uniform(2.35, 2.55))))
    counts = [(2, 2), (2, 3), (3, 2)][int(rng.integers(3))]
    sides = [(sign, draft.add_rooms(sign, n)) for sign, n in zip((+1, -1), counts, strict=True)]
    route = np.array([corner for sign, rooms in sides for corner in draft.join(sign, rooms)])
    if rng.random() < 0.5:
        route = route[::-1].copy()
    return FloorPlan(tuple(draft.cells), tuple(draft.doorways), route)


class _Draft:
    """A plan under construction."""

    def __init__(self, rng: np.random.Generator, corridor: Cell) -> None:
        self._rng = rng
        self._corridor = corridor
        self.cells: list[Cell] = [corridor]
        self.doorways: list[Doorway] = []

    def add_rooms(self, sign: int, count: int) -> list[int]:
        """Add rooms north (+1) or south (-1) of the corridor, from west to east."""
        rng, corridor = self._rng, self._corridor
        shares = rng.uniform(0.85, 1.15, count)
        lengths = shares / shares.sum() * (corridor.size(0) - WALL_M * (count - 1))
        rooms, x = [], 0.0
        for span in lengths:
            depth, height = rng.uniform(3.3, 4.5), rng.uniform(2.45, 2.85)
            near = corridor.high[1] + WALL_M if sign > 0 else -WALL_M
            low_y, high_y = sorted((near, near + sign * depth))
            rooms.append(len(self.cells))
            self.cells.append(Cell("room", (x, low_y, 0.0), (x + float(span), high_y, height)))
            x += float(span) + WALL_M
        return rooms

    def join(self, sign: int, rooms: list[int]) -> list[tuple[float, float]]:
        """Chain the rooms of one side by doorways; return the walk through them."""
        rng, corridor = self._rng, self._corridor
        wall_y = corridor.high[1] if sign > 0 else -WALL_M
        first, last = self.cells[rooms[0]], self.cells[rooms[-1]]
        enter_x = first.low[0] + rng.uniform(0.25, 0.45) * first.size(0)
        leave_x = last.high[0] - rng.uniform(0.25, 0.45) * last.size(0)
        self._add_corridor_door(rooms[0], sign, enter_x, wall_y)
        self._add_corridor_door(rooms[-1], sign, leave_x, wall_y)

        middle = corridor.size(1) / 2
        inner_y = wall_y + WALL_M / 2 + sign * (WALL_M / 2 + _APPROACH_M)
        walk = [(enter_x, middle), (enter_x, inner_y), self._viewpoint(first)]
        for here, after in pairwise(rooms):
            wall_x, y = self._add_room_door(here, after)
            walk += [(wall_x - _APPROACH_M, y), (wall_x + WALL_M + _APPROACH_M, y)]
            if after != rooms[-1]:
                walk.append(self._viewpoint(self.cells[after]))
        walk += [self._viewpoint(last), (leave_x, inner_y), (leave_x, middle)]
        return walk

    def _add_corridor_door(self, room: int, sign: int, x: float, wall_y: float) -> None:
        half = self._rng.uniform(0.48, 0.56)
        low, high = (x - half, wall_y, 0.0), (x + half, wall_y + WALL_M, DOOR_HEIGHT_M)
        before, after = (0, room) if sign > 0 else (room, 0)
        self._add_doorway(Cell("doorway", low, high), before, after, 1)

    def _add_room_door(self, west: int, east: int) -> tuple[float, float]:
        """Join two rooms by a doorway; return its (x of the wall's west face, centre y)."""
        one, two = self.cells[west], self.cells[east]
        low, high = max(one.low[1], two.low[1]), min(one.high[1], two.high[1])
        half = self._rng.uniform(0.48, 0.56)
        y = low + self._rng.uniform(0.38, 0.62) * (high - low)
        wall_x = one.high[0]
        cell = Cell("doorway", (wall_x, y - half, 0), (wall_x + WALL_M, y + half, DOOR_HEIGHT_M))
        self._add_doorway(cell, west, east, 0)
        return wall_x, y

    def _add_doorway(self, cell: Cell, before: int, after: int, axis: int) -> None:
        self.doorways.append(Doorway(len(self.cells), before, after, axis))
        self.cells.append(cell)

    def _viewpoint(self, room: Cell) -> tuple[float, float]:
        x = room.low[0] + self._rng.uniform(0.42, 0.58) * room.size(0)
        y = room.low[1] + self._rng.uniform(0.38, 0.62) * room.size(1)
        return float(x), float(y)


_Series = npt.NDArray[np.complex128]

_POINTS = 2048
_HARMONICS = 128
_CORNER_M = 0.28  # standard deviation of the rounding; doorways are approached straight
_HEADING_M = 0.75  # the head turns before and after the feet do
_HEIGHT_M = 1.22
_PITCH_RAD = -0.07  # slightly down: the floor near the robot matters


class CameraPath:
    """Where the camera is, and where it looks, at a phase in [0, 1) of one turn."""

    def __init__(self, route: Floats, rng: np.random.Generator) -> None:
        """Smooth a closed route of corners (N, 2), metres."""
        dense, self.length_m = _resample(route)
        self._order = np.arange(-_HARMONICS, _HARMONICS + 1)
        self._position = _filtered(dense[:, 0] + 1j * dense[:, 1], _CORNER_M / self.length_m)
        self._winding, self._heading = self._heading_series()
        self._sway_phase = rng.uniform(0, 2 * np.pi, 6)

    def position(self, phase: float) -> Floats:
        """Return the camera centre (3,) in metres."""
        spot = self._evaluate(self._position, phase)
        bob = 0.02 * np.sin(2 * np.pi * 29 * phase + self._sway_phase[0])
        return np.array([spot.real, spot.imag, _HEIGHT_M + bob])

    def footprints(self, count: int = 1024) -> Floats:
        """Return points (count, 2) of the walk at equal phases, metres."""
        return np.array([self.position(i / count)[:2] for i in range(count)])

    def pose(self, phase: float) -> Floats:
        """Return the 4x4 camera-to-world matrix, optical frame (x right, y down, z forward)."""
        turn, sway = 2 * np.pi * phase, self._sway_phase
        pan = 0.34 * np.sin(6 * turn + sway[1]) + 0.22 * np.sin(13 * turn + sway[2])
        yaw = self._winding * turn + self._evaluate(self._heading, phase).real + pan
        pitch = _PITCH_RAD + 0.06 * np.sin(9 * turn + sway[3])
        pitch += 0.012 * np.sin(29 * turn + sway[4])
        roll = 0.022 * np.sin(17 * turn + sway[5])

        return look(self.position(phase), float(yaw), float(pitch), float(roll))

    def _evaluate(self, series: _Series, phase: float) -> complex:
        return complex(np.sum(series * np.exp(2j * np.pi * phase * self._order)))

    def _heading_series(self) -> tuple[int, _Series]:
        """Return the whole turns of one walk, and the series of what is left of the heading."""
        phases = np.arange(_POINTS) / _POINTS
        waves = np.exp(2j * np.pi * np.outer(phases, self._order))
        velocity = (waves * (self._position * 2j * np.pi * self._order)).sum(axis=1)
        heading = np.unwrap(np.angle(velocity))
        closing = np.angle(velocity[0] / velocity[-1])
        winding = round((heading[-1] + closing - heading[0]) / (2 * np.pi))
        rest = heading - 2 * np.pi * winding * phases
        return winding, _filtered(rest, _HEADING_M / self.length_m)


def look(position: Floats, yaw: float, pitch: float, roll: float) -> Floats:
    """Return the 4x4 camera-to-world matrix of a camera (3,) that looks along yaw and pitch.

    Radians: yaw about z from east to north, pitch up, roll about the optical axis.
    """
    flat = np.cos(pitch)
    forward = np.array([np.cos(yaw) * flat, np.sin(yaw) * flat, np.sin(pitch)])
    level = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
    below = np.cross(forward, level)
    pose = np.eye(4)
    pose[:3, 0] = np.cos(roll) * level + np.sin(roll) * below
    pose[:3, 1] = np.cos(roll) * below - np.sin(roll) * level
    pose[:3, 2] = forward
    pose[:3, 3] = position
    return pose


def _resample(route: Floats) -> tuple[Floats, float]:
    """Return points (2048, 2) at equal steps along a closed polyline, and its length."""
    closed = np.vstack([route, route[:1]])
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(closed, axis=0).T))])
    steps = np.arange(_POINTS) / _POINTS * along[-1]
    dense = np.stack([np.interp(steps, along, closed[:, i]) for i in range(2)], axis=1)
    return dense, float(along[-1])


def _filtered(samples: npt.NDArray[np.generic], sigma: float) -> _Series:
    """Return the harmonics of periodic samples after a Gaussian of `sigma` turns."""
    order = np.arange(-_HARMONICS, _HARMONICS + 1)
    series: _Series = np.fft.fft(samples)[order] / len(samples)
    series *= np.exp(-0.5 * (2 * np.pi * order * sigma) ** 2)
    return series


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
