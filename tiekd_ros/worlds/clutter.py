"""Strange materials and things in the way: what keeps a student from learning a world by heart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt

from tiekd_ros.worlds.materials import Material
from tiekd_ros.worlds.patterns import Colour, Picture, coloured, finish, grid, hsv, noise
from tiekd_ros.worlds.plan import FloorPlan
from tiekd_ros.worlds.solids import Box, Floats, Quad, face

_SIZE = 128  # texels of a made-up pattern
_TURNED_BODY = 1_000_000  # number of the first turned box: no furniture has so high a one
_LOOKS = ("east", "west", "north", "south", "up", "down")
_NOT_ON_CLUTTER = ("lamp", "shade", "view", "screen")  # they give light


def scrambled_materials(
    materials: dict[str, Material], rng: np.random.Generator
) -> dict[str, Material]:
    """Return the same names with other pictures: recoloured, resized, swapped or made up."""
    tiled = [name for name, m in materials.items() if m.size_m is not None]
    scrambled: dict[str, Material] = {}
    for name, material in materials.items():
        picture, size = material.picture, material.size_m
        if size is not None:
            draw = rng.random()
            if draw < 0.3:  # what lay on another surface
                other = materials[tiled[int(rng.integers(len(tiled)))]]
                picture, size = other.picture, other.size_m or size
            elif draw < 0.55:
                side = float(np.exp(rng.uniform(np.log(0.1), np.log(3.0))))
                picture, size = _made_up(rng), (side, side)
            scale = float(np.exp(rng.normal(0, 0.35)))
            size = (size[0] * scale, size[1] * scale)
        if material.glow == 0 and rng.random() < 0.7:
            picture = _recoloured(picture, rng)
        scrambled[name] = replace(material, picture=picture, size_m=size)
    return scrambled


def _recoloured(picture: Picture, rng: np.random.Generator) -> Picture:
    """Return a picture about another mean colour, with more or less contrast, at times inverted."""
    values = picture.astype(np.float32)
    mean = values.mean(axis=(0, 1))
    contrast = np.exp(rng.normal(0, 0.5)) * (-1.0 if rng.random() < 0.15 else 1.0)
    target = np.array(_colour(rng), np.float32)
    share = np.float32(rng.uniform(0, 1))
    return finish((values - mean) * np.float32(contrast) + mean + share * (target - mean))


def _colour(rng: np.random.Generator) -> Colour:
    return hsv(rng.random(), float(rng.beta(1.2, 2.5)), float(rng.uniform(0.1, 1.0)))


def _made_up(rng: np.random.Generator) -> Picture:
    """Return a pattern that tiles and means nothing."""
    makers: tuple[Callable[[np.random.Generator], Picture], ...] = (
        _plain,
        _clouds,
        _clouds,
        _stripes,
        _checks,
        _spots,
    )
    return makers[int(rng.integers(len(makers)))](rng)


def _plain(rng: np.random.Generator) -> Picture:
    return coloured(_colour(rng), np.float32(1) + np.float32(0.01) * noise(rng, _SIZE, 0.5))


def _clouds(rng: np.random.Generator) -> Picture:
    slope, stretch = float(rng.uniform(0.2, 1.8)), float(np.exp(rng.uniform(0, 2)))
    share = 0.5 + rng.uniform(0.1, 0.5) * noise(rng, _SIZE, slope, stretch)
    return _between(_colour(rng), _colour(rng), share.astype(np.float32))


def _stripes(rng: np.random.Generator) -> Picture:
    rows, cols = grid(_SIZE)
    along = rows if rng.random() < 0.5 else cols
    step = int(rng.choice([8, 16, 32, 64]))
    share = (along % step < step * rng.uniform(0.1, 0.9)).astype(np.float32)
    return _between(_colour(rng), _colour(rng), share)


def _checks(rng: np.random.Generator) -> Picture:
    rows, cols = grid(_SIZE)
    step = int(rng.choice([16, 32, 64]))
    share = ((rows // step + cols // step) % 2).astype(np.float32)
    return _between(_colour(rng), _colour(rng), share)


def _spots(rng: np.random.Generator) -> Picture:
    blank = np.zeros((_SIZE, _SIZE), np.float32)
    for x, y in rng.integers(12, _SIZE - 12, (int(rng.integers(3, 30)), 2)):
        cv2.circle(blank, (int(x), int(y)), int(rng.integers(3, 12)), float(rng.random()), -1)
    return _between(_colour(rng), _colour(rng), blank)


def _between(one: Colour, other: Colour, share: npt.NDArray[np.float32]) -> Picture:
    a, b = np.array(one, np.float32), np.array(other, np.float32)
    return finish(a + share[..., None] * (b - a))


def obstacles(
    plan: FloorPlan, walk: Floats, materials: dict[str, Material], rng: np.random.Generator
) -> tuple[list[Box], list[Quad], Floats]:
    """Return boxes, turned boxes' faces, and the spheres (N, 4: x, y, z, radius) that hold them.

    They stand or hover 0.3 to 1.2 m beside the walk (M, 2): a robot meets such things, and
    without them nothing in a furnished world is nearer than half a metre.
    """
    names = [n for n in materials if not n.startswith(_NOT_ON_CLUTTER)]
    boxes: list[Box] = []
    quads: list[Quad] = []
    spheres: list[tuple[float, float, float, float]] = []
    for _ in range(int(rng.integers(10, 30))):
        half = np.exp(rng.uniform(np.log(0.03), np.log(0.28), 3))
        radius = float(np.linalg.norm(half))
        spot = walk[int(rng.integers(len(walk)))]
        angle, away = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.2)
        x, y = spot + away * np.array([np.cos(angle), np.sin(angle)])
        stands = rng.random() < 0.4
        z = float(half[2]) if stands else float(rng.uniform(radius, 2.0 + radius))
        cell = _cell_that_holds(plan, np.array([x, y, max(z, radius)]), radius)
        if cell is None:
            continue
        material = names[int(rng.integers(len(names)))]
        center = (float(x), float(y), z)
        if stands:
            size = (float(half[0]), float(half[1]), float(half[2]))
            yaw = float(rng.uniform(-np.pi, np.pi))
            boxes.append(Box(center, size, material, yaw, cell=cell))
        else:
            body = _TURNED_BODY + len(quads)
            quads += _turned_box(np.array(center), half, _rotation(rng), (material, cell, body))
        spheres.append((*center, radius))
    return boxes, quads, np.array(spheres).reshape(-1, 4)


def _cell_that_holds(plan: FloorPlan, spot: Floats, radius: float) -> int | None:
    for index, cell in enumerate(plan.cells):
        if (spot - radius >= np.array(cell.low)).all() and (
            spot + radius <= np.array(cell.high)
        ).all():
            return index
    return None


def _rotation(rng: np.random.Generator) -> Floats:
    q = rng.normal(size=4)
    w, x, y, z = q / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _turned_box(
    center: Floats, half: Floats, turn: Floats, kind: tuple[str, int, int]
) -> list[Quad]:
    """Return the six faces of a box turned by a 3x3 rotation; `kind`: material, cell, body."""
    quads = []
    for way in _LOOKS:
        origin, edge_u, edge_v = (turn @ e for e in face(-half, half, way, inside=False))
        quads.append(Quad(origin + center, edge_u, edge_v, *kind))
    return quads
