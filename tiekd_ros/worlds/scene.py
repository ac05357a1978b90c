"""The scene: a world's rectangles, with their materials and baked light, as plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tiekd_ros.worlds.lighting import LightAtlas, TextureAtlas, bake
from tiekd_ros.worlds.materials import Material
from tiekd_ros.worlds.plan import DOOR_HEIGHT_M, FloorPlan, walls_of
from tiekd_ros.worlds.solids import Box, Floats, Quad, box_quads, face


@dataclass(frozen=True)
class Scene:
    """N rectangles, ready to draw. Metres, world frame.

    `origin`, `right` and `down` (N, 3) are the top-left corner and unit vectors, `size`
    (N, 2) the width and height, `cell` (N,) the cell that each belongs to; `material` (N,)
    its number in the texture atlas, `mapping` (4, N) the repeats and offsets of the texture
    along u and v, `texels_per_m` (N,) its density; `light_rect` (4, N) the place of its
    light map: width, height, x, y in texels.
    """

    origin: Floats
    right: Floats
    down: Floats
    size: Floats
    cell: npt.NDArray[np.int64]
    material: npt.NDArray[np.int64]
    mapping: Floats
    texels_per_m: Floats
    light_rect: Floats
    textures: TextureAtlas
    light: LightAtlas


def assemble(
    plan: FloorPlan,
    boxes: Sequence[Box],
    materials: dict[str, Material],
    rng: np.random.Generator,
    loose: Sequence[Quad] = (),
) -> Scene:
    """Build the scene of a furnished plan; `loose` rectangles belong to no box."""
    quads = [*building_quads(plan), *loose]
    for body, box in enumerate(boxes):
        quads += box_quads(box, body)
    origin = np.array([q.origin for q in quads])
    edges = np.array([[q.edge_u, q.edge_v] for q in quads])  # (N, 2, 3)
    size = np.linalg.norm(edges, axis=2)
    units = edges / size[..., None]

    textures = TextureAtlas.build(materials)
    chosen = [materials[q.material] for q in quads]
    light = bake(plan, boxes, quads, materials, rng)
    mapping = np.array(
        [_mapping(q, m, s, rng) for q, m, s in zip(quads, chosen, size, strict=True)]
    )
    pixels = np.array([m.picture.shape[1::-1] for m in chosen], float)
    density = np.sqrt((pixels * mapping[:, :2] / size).prod(axis=1))
    return Scene(
        origin=origin,
        right=units[:, 0],
        down=units[:, 1],
        size=size,
        cell=np.array([q.cell for q in quads]),
        material=np.array([textures.index[q.material] for q in quads]),
        mapping=mapping.T.copy(),
        texels_per_m=density,
        light_rect=light.rects.T.astype(float).copy(),
        textures=textures,
        light=light,
    )


def _mapping(
    quad: Quad, material: Material, size: Floats, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Return (repeats in u, in v, offset in u, in v) of a material on a rectangle."""
    if material.size_m is None:
        return (1.0, 1.0, 0.0, 0.0)
    tile = np.array(material.size_m)
    repeats = size / tile
    if quad.aligned:
        units = np.array([quad.edge_u, quad.edge_v]) / size[:, None]
        offset = (units @ quad.origin) / tile % 1.0
    else:
        offset = rng.random(2)
    return (float(repeats[0]), float(repeats[1]), float(offset[0]), float(offset[1]))


def building_quads(plan: FloorPlan) -> list[Quad]:
    """Return floors, ceilings, walls with their openings, and the linings of doorways."""
    quads: list[Quad] = []
    for index, cell in enumerate(plan.cells):
        low, high = np.array(cell.low), np.array(cell.high)
        doorway = cell.kind == "doorway"
        floor_of = index
        if doorway:
            door = next(d for d in plan.doorways if d.cell == index)
            floor_of = min(door.before, door.after)
            sides = ("north", "south") if door.axis == 0 else ("east", "west")
            for side in sides:
                lining = face(low, high, side, inside=True)
                quads.append(Quad(*lining, "trim", index, aligned=True))
        else:
            quads += _wall_quads(plan, index)
        ceiling = "trim" if doorway else f"ceiling{min(index, 1)}"
        top, bottom = (face(low, high, look, inside=True) for look in ("up", "down"))
        quads.append(Quad(*top, ceiling, index, aligned=True))
        quads.append(Quad(*bottom, f"floor{floor_of}", index, aligned=True))
    return quads


def _wall_quads(plan: FloorPlan, index: int) -> list[Quad]:
    quads = []
    height = plan.cells[index].high[2]
    down = np.array([0.0, 0.0, -1.0])
    for wall in walls_of(plan, index):
        along = np.array([*wall.along, 0.0])
        marks = [0.0, *(t for span in wall.openings for t in span), wall.length]
        for number, (t0, t1) in enumerate(pairwise(marks)):
            below = DOOR_HEIGHT_M if number % 2 else 0.0
            origin = np.array([*wall.at(t0, 0.0), height])
            edge_u, edge_v = along * (t1 - t0), down * (height - below)
            quads.append(Quad(origin, edge_u, edge_v, f"wall{index}", index, aligned=True))
    return quads
