"""The contents of the rooms: furniture clear of the camera's walk, and what the walls bear.

A piece stands on z = 0 with its centre at the origin; its front looks along -y, its back
stands against a wall at +y.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from tiekd_ros.worlds.plan import Cell, FloorPlan, Wall, walls_of
from tiekd_ros.worlds.solids import Box, Floats

Spans = list[tuple[float, float]]
_Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Piece:
    """A piece of furniture: footprint and height in metres, and its boxes."""

    width: float
    depth: float
    height: float
    boxes: tuple[Box, ...]

    def placed(self, x: float, y: float, yaw: float, cell: int) -> list[Box]:
        """Return the boxes in the world, turned by `yaw` and moved to (x, y)."""
        cos, sin = np.cos(yaw), np.sin(yaw)
        boxes = []
        for box in self.boxes:
            cx, cy, cz = box.center
            center = (float(x + cos * cx - sin * cy), float(y + sin * cx + cos * cy), cz)
            boxes.append(replace(box, center=center, yaw=box.yaw + yaw, cell=cell))
        return boxes


Maker = Callable[[np.random.Generator], Piece]


def _box(low: _Triple, high: _Triple, material: str, front: str = "") -> Box:
    center = tuple((a + b) / 2 for a, b in zip(low, high, strict=True))
    half = tuple((b - a) / 2 for a, b in zip(low, high, strict=True))
    return Box(
        (center[0], center[1], center[2]), (half[0], half[1], half[2]), material, front=front
    )


def _pick(rng: np.random.Generator, *names: str) -> str:
    return names[int(rng.integers(len(names)))]


def _wood(rng: np.random.Generator) -> str:
    return _pick(rng, "wood0", "wood1", "wood2")


def _legs(width: float, depth: float, height: float, thick: float, material: str) -> list[Box]:
    x, y, h = width / 2 - thick, depth / 2 - thick, thick / 2
    return [
        Box((sx * x, sy * y, height / 2), (h, h, height / 2), material)
        for sx in (-1, 1)
        for sy in (-1, 1)
    ]


def bookshelf(rng: np.random.Generator) -> Piece:
    """An open shelf, its boards filled with rows of books and the odd box."""
    w, d = rng.uniform(0.75, 1.2), rng.uniform(0.28, 0.34)
    levels = int(rng.integers(3, 6))
    gap = rng.uniform(0.33, 0.37)
    height, wood = levels * gap + 0.1, _wood(rng)
    x, y = w / 2, d / 2
    boxes = [
        _box((-x, -y, 0), (-x + 0.03, y, height), wood),
        _box((x - 0.03, -y, 0), (x, y, height), wood),
        _box((-x, y - 0.02, 0), (x, y, height), wood),
    ]
    for level in range(levels + 1):
        z = 0.05 + level * gap
        boxes.append(_box((-x + 0.03, -y, z), (x - 0.03, y - 0.02, z + 0.025), wood))
        if level < levels:
            boxes += _shelf_load(rng, x - 0.04, y, z + 0.025, gap)
    return Piece(w, d, height, tuple(boxes))


def _shelf_load(rng: np.random.Generator, x: float, y: float, z: float, gap: float) -> list[Box]:
    start, end = -x + rng.uniform(0, 0.12), x
    load = []
    while end - start > 0.12:
        length = min(rng.uniform(0.2, 0.6), end - start)
        books = _pick(rng, "books0", "books1", "books2")
        top = z + rng.uniform(0.6, 0.82) * gap
        if rng.random() < 0.25:
            books, length = _pick(rng, "cardboard", "fabric0", "fabric1"), min(length, 0.28)
        front = -y + rng.uniform(0.02, 0.07)
        load.append(_box((start, front, z), (start + length, y - 0.03, top), "paper", front=books))
        start += length + rng.uniform(0.02, 0.2)
    return load


def cabinet(rng: np.random.Generator) -> Piece:
    """A sideboard or a tall cupboard with doors; something may stand on the low one."""
    tall = rng.random() < 0.35
    w, d = (rng.uniform(0.8, 1.1), 0.5) if tall else (rng.uniform(0.9, 1.6), 0.42)
    h = rng.uniform(1.8, 2.0) if tall else rng.uniform(0.7, 0.95)
    wood = _pick(rng, "wood0", "wood1", "paint")
    boxes = [
        _box((-w / 2 + 0.02, -d / 2 + 0.03, 0), (w / 2 - 0.02, d / 2, 0.08), "metal"),
        _box((-w / 2, -d / 2, 0.08), (w / 2, d / 2, h), wood, front="doors"),
    ]
    if not tall:
        x, side = rng.uniform(-0.3, 0.3) * w, rng.uniform(0.08, 0.13)
        top = h + rng.uniform(0.15, 0.4)
        boxes.append(Box((x, 0.04, (h + top) / 2), (side, side * 0.8, (top - h) / 2), "accent"))
    return Piece(w, d, h, tuple(boxes))


def desk(rng: np.random.Generator) -> Piece:
    """A desk with a drawer block, a monitor and a keyboard."""
    w, d, h, wood = rng.uniform(1.2, 1.6), rng.uniform(0.62, 0.72), 0.74, _wood(rng)
    side = 1 if rng.random() < 0.5 else -1
    x0, x1 = sorted((side * (w / 2 - 0.02), side * (w / 2 - 0.42)))
    mx = rng.uniform(-0.25, 0.25)
    boxes = [
        _box((-w / 2, -d / 2, h - 0.035), (w / 2, d / 2, h), wood),
        _box((x0, -d / 2 + 0.04, 0), (x1, d / 2 - 0.04, h - 0.035), "paint", front="drawers"),
        *(b for b in _legs(w, d, h - 0.035, 0.05, "metal") if b.center[0] * side < 0),
        _box((mx - 0.12, 0.08, h), (mx + 0.12, 0.24, h + 0.02), "metal"),
        _box((mx - 0.03, 0.15, h), (mx + 0.03, 0.18, h + 0.2), "metal"),
        _box((mx - 0.3, 0.1, h + 0.12), (mx + 0.3, 0.14, h + 0.48), "metal", front="screen"),
        _box((mx - 0.22, -0.2, h), (mx + 0.2, -0.06, h + 0.02), "metal"),
    ]
    return Piece(w, d, h + 0.48, tuple(boxes))


def table(rng: np.random.Generator) -> Piece:
    """A table with chairs on its long sides."""
    w, d, h = rng.uniform(1.0, 1.4), rng.uniform(0.7, 0.85), rng.uniform(0.72, 0.77)
    wood = _wood(rng)
    boxes = [
        _box((-w / 2, -d / 2, h - 0.04), (w / 2, d / 2, h), wood),
        *_legs(w, d, h - 0.04, 0.06, wood),
        Box((rng.uniform(-0.2, 0.2), 0.05, h + 0.06), (0.11, 0.11, 0.06), "accent"),
    ]
    seats = chair(rng)
    reach = d / 2 + 0.06
    for x in (-0.24 * w, 0.24 * w):
        boxes += seats.placed(x + rng.uniform(-0.04, 0.04), reach, rng.uniform(-0.2, 0.2), 0)
        turn = np.pi + rng.uniform(-0.2, 0.2)
        boxes += seats.placed(x + rng.uniform(-0.04, 0.04), -reach, turn, 0)
    return Piece(w, d + 0.65, h, tuple(boxes))


def chair(rng: np.random.Generator) -> Piece:
    """A chair; its back is at +y."""
    wood, cloth = _wood(rng), _pick(rng, "fabric0", "fabric1", "paint")
    boxes = [
        _box((-0.21, -0.2, 0.42), (0.21, 0.2, 0.46), cloth),
        _box((-0.21, 0.17, 0.62), (0.21, 0.2, 0.9), wood),
        _box((-0.2, 0.17, 0.46), (-0.17, 0.2, 0.62), wood),
        _box((0.17, 0.17, 0.46), (0.2, 0.2, 0.62), wood),
        *_legs(0.44, 0.42, 0.42, 0.04, wood),
    ]
    return Piece(0.42, 0.4, 0.9, tuple(boxes))


def sofa(rng: np.random.Generator) -> Piece:
    """A sofa with cushions."""
    w, d, cloth = rng.uniform(1.5, 2.0), 0.85, _pick(rng, "fabric0", "fabric1")
    x, y = w / 2, d / 2
    boxes = [
        _box((-x, -y + 0.04, 0.1), (x, y, 0.28), cloth),
        _box((-x, y - 0.2, 0.28), (x, y, 0.8), cloth),
        _box((-x, -y + 0.02, 0.1), (-x + 0.16, y, 0.58), cloth),
        _box((x - 0.16, -y + 0.02, 0.1), (x, y, 0.58), cloth),
        _box((-x + 0.17, -y, 0.28), (-0.01, y - 0.2, 0.44), cloth),
        _box((0.01, -y, 0.28), (x - 0.17, y - 0.2, 0.44), cloth),
        *_legs(w, d - 0.1, 0.1, 0.06, "wood0"),
    ]
    for sign in (-1, 1):
        spot = (sign * (x - 0.4), y - 0.28, 0.6)
        boxes.append(Box(spot, (0.19, 0.06, 0.17), "accent", yaw=rng.uniform(-0.3, 0.3)))
    return Piece(w, d, 0.8, tuple(boxes))


def boxes_stack(rng: np.random.Generator) -> Piece:
    """A pile of cardboard boxes and crates, each a little askew."""
    boxes, z = [], 0.0
    for level in range(int(rng.integers(2, 4))):
        size = np.array([0.3, 0.24, 0.17]) * rng.uniform(0.7, 1.0, 3) * (1 - 0.12 * level)
        half = (float(size[0]), float(size[1]), float(size[2]))
        turn = rng.uniform(-0.35, 0.35)
        name = _pick(rng, "cardboard", "cardboard", "crate")
        boxes.append(Box((0, 0, z + half[2]), half, name, yaw=turn, top=name))
        z += 2 * half[2]
    return Piece(0.66, 0.6, z, tuple(boxes))


def floor_lamp(rng: np.random.Generator) -> Piece:
    """A standing lamp with a glowing shade."""
    h = rng.uniform(1.5, 1.7)
    boxes = (
        Box((0, 0, 0.015), (0.15, 0.15, 0.015), "metal"),
        _box((-0.014, -0.014, 0), (0.014, 0.014, h - 0.14), "metal"),
        Box((0, 0, h), (0.17, 0.17, 0.15), "shade", yaw=0.4, casts_shadow=False),
    )
    return Piece(0.4, 0.4, h + 0.15, boxes)


def plant(rng: np.random.Generator) -> Piece:
    """A potted plant: a pot, and leaves as thin boxes turned every way."""
    boxes = [
        Box((0, 0, 0.17), (0.15, 0.15, 0.17), "accent", yaw=rng.uniform(0, 1.5), top="soil"),
        Box((0, 0, 0.5), (0.02, 0.02, 0.2), "wood0"),
    ]
    for i in range(7):
        angle, z = 2.4 * i + rng.uniform(-0.3, 0.3), 0.5 + 0.09 * i
        reach = 0.16 - 0.015 * abs(i - 2)
        spot = (float(reach * np.cos(angle)), float(reach * np.sin(angle)), z)
        half = (reach, 0.045 + 0.004 * i, 0.012)
        boxes.append(Box(spot, half, "leaf", yaw=angle, casts_shadow=i % 2 == 0))
    return Piece(0.5, 0.5, 1.2, tuple(boxes))


def pillar(rng: np.random.Generator) -> Piece:
    """A square pillar; placing it makes it as high as the room."""
    half = rng.uniform(0.14, 0.2)
    material = _pick(rng, "concrete", "brick", "paint")
    return Piece(2 * half, 2 * half, 3.0, (Box((0, 0, 1.5), (half, half, 1.5), material),))


def radiator(rng: np.random.Generator) -> Piece:
    """A ribbed radiator on the wall."""
    w = rng.uniform(0.7, 1.3)
    box = _box((-w / 2, -0.05, 0.14), (w / 2, 0.05, 0.7), "paint", front="ribs")
    return Piece(w, 0.12, 0.7, (box,))


WALL_PIECES: dict[str, tuple[Maker, ...]] = {
    "living": (sofa, bookshelf, cabinet, plant, floor_lamp, radiator),
    "office": (desk, bookshelf, cabinet, desk, plant, radiator),
    "dining": (cabinet, bookshelf, plant, radiator, floor_lamp),
    "store": (bookshelf, boxes_stack, cabinet, boxes_stack, bookshelf),
    "corridor": (plant, radiator, boxes_stack),
}
"""Furniture against the walls by the use of the room, the most telling pieces first."""

FREE_PIECES: dict[str, tuple[Maker, ...]] = {
    "living": (table, plant),
    "office": (pillar, boxes_stack),
    "dining": (table, pillar),
    "store": (boxes_stack, pillar, boxes_stack),
    "corridor": (),
}
"""Furniture that stands free in the room."""

WALL_YAW = {"north": 0.0, "west": np.pi / 2, "south": np.pi, "east": -np.pi / 2}
"""Yaw that turns a piece's back (+y) to the wall of this side."""

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
