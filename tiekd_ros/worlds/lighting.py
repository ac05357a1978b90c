"""The textures of all materials, and the light that is baked into one small map a rectangle.

Lamps are small areas: Lambert's cosines at both ends, inverse square of the distance, and
soft shadows from several points on each lamp. To that comes the light that rooms and open
doorways scatter, darkened in corners and under furniture by a cheap measure of occlusion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from tiekd_ros.worlds.materials import Material
from tiekd_ros.worlds.plan import FloorPlan
from tiekd_ros.worlds.solids import ROOM_BODY, Box, Quad, Reals

_Texel = TypeVar("_Texel", np.uint8, np.float32)

LEVELS = 15
"""Mip levels of a texture, each smaller than the one before by the square root of 2."""

_TEXTURE_WIDTH, _LIGHT_WIDTH = 4096, 512
_PAD = 1  # texels around each picture, so that bilinear look-ups never bleed


@dataclass(frozen=True)
class TextureAtlas:
    """All mip levels of all materials.

    `pixels` is (H, W, 3) uint8; `levels` (4, M * LEVELS) float32 holds x, y, width, height
    of level l of material m at column m * LEVELS + l, in texels; `index` numbers the
    materials by name.
    """

    pixels: npt.NDArray[np.uint8]
    levels: npt.NDArray[np.float32]
    index: dict[str, int]

    @classmethod
    def build(cls, materials: dict[str, Material]) -> TextureAtlas:
        """Shrink every material's picture step by step and pack all."""
        pictures: list[npt.NDArray[np.uint8]] = []
        for material in materials.values():
            border = cv2.BORDER_REPLICATE if material.size_m is None else cv2.BORDER_WRAP
            for level in range(LEVELS):
                small = _shrunk(material.picture, 2.0 ** (-level / 2))
                pictures.append(cv2.copyMakeBorder(small, _PAD, _PAD, _PAD, _PAD, border))
        pixels, rects = _packed(pictures, _TEXTURE_WIDTH)
        levels = rects.T[[2, 3, 0, 1]].astype(np.float32)
        return cls(pixels, levels, {name: i for i, name in enumerate(materials)})


@dataclass(frozen=True)
class LightAtlas:
    """Baked light: `pixels` (H, W, 3) float32, display-referred factors of the albedo.

    `rects` (N, 4) holds width, height, x, y of each rectangle's light map, in texels.
    """

    pixels: npt.NDArray[np.float32]
    rects: npt.NDArray[np.int64]

    @classmethod
    def build(cls, maps: Sequence[npt.NDArray[np.float32]]) -> LightAtlas:
        """Pack light maps (h, w, 3), one a rectangle."""
        border = (*[_PAD] * 4, cv2.BORDER_REPLICATE)
        return cls(*_packed([cv2.copyMakeBorder(m, *border) for m in maps], _LIGHT_WIDTH))


def _packed(
    pictures: Sequence[npt.NDArray[_Texel]], width: int
) -> tuple[npt.NDArray[_Texel], npt.NDArray[np.int64]]:
    """Return an atlas (H, width, 3) of padded pictures in rows, the highest first.

    With it comes the place (N, 4) of each without its padding: width, height, x, y in texels.
    """
    rects = np.empty((len(pictures), 4), np.int64)
    x = y = row = 0
    for i in sorted(range(len(pictures)), key=lambda i: (-pictures[i].shape[0], i)):
        h, w = pictures[i].shape[:2]
        if x + w > width:
            x, y, row = 0, y + row, 0
        rects[i] = (w - 2 * _PAD, h - 2 * _PAD, x + _PAD, y + _PAD)
        x, row = x + w, max(row, h)
    pixels = np.zeros((y + row, width, 3), pictures[0].dtype)
    for picture, (w, h, x, y) in zip(pictures, rects.tolist(), strict=True):
        pixels[y - _PAD : y + h + _PAD, x - _PAD : x + w + _PAD] = picture
    return pixels, rects


def _shrunk(picture: npt.NDArray[np.uint8], factor: float) -> npt.NDArray[np.uint8]:
    height, width = picture.shape[:2]
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    if size == (width, height):
        return picture
    small: npt.NDArray[np.uint8] = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return small


_TEXELS_PER_M = 9.0
_MAX_TEXELS = 64
_GAMMA = 1 / 2.2
_WARM, _COOL = np.array([1.08, 0.94, 0.74]), np.array([0.95, 1.0, 1.04])
_AMBIENT = 0.3  # scattered light, in units of the same white as the display's


@dataclass(frozen=True)
class _Lamp:
    points: Reals  # (S, 3)
    normal: Reals  # (3,); zero shines every way
    power: Reals  # (3,) per point


def bake(
    plan: FloorPlan,
    boxes: Sequence[Box],
    quads: Sequence[Quad],
    materials: dict[str, Material],
    rng: np.random.Generator,
) -> LightAtlas:
    """Return the light maps of all rectangles; `rng` gives each room its own lamps."""
    tones = [_WARM + rng.random() * (_COOL - _WARM) for _ in plan.cells]
    lamps = [
        _lamps_of(cell, boxes, tone * rng.uniform(1.5, 2.5)) for cell, tone in enumerate(tones)
    ]
    for door in plan.doorways:
        spill = [_spill(plan, door.cell, door.axis, side) for side in (1, -1)]
        lamps[door.cell] += lamps[door.before] + lamps[door.after]
        lamps[door.after].append(spill[0])
        lamps[door.before].append(spill[1])

    maps: list[Reals] = [np.empty((0, 0, 3), np.float32)] * len(quads)
    for cell in range(len(plan.cells)):
        members = [i for i, q in enumerate(quads) if q.cell == cell]
        texels = [_texels(quads[i]) for i in members]
        bodies = [np.full(len(t), quads[i].body) for i, t in zip(members, texels, strict=True)]
        normals = [
            np.tile(_normal(quads[i]), (len(t), 1)) for i, t in zip(members, texels, strict=True)
        ]
        lit = _illuminate(
            np.concatenate(texels),
            np.concatenate(normals),
            np.concatenate(bodies),
            lamps[cell],
            [(i, b) for i, b in enumerate(boxes) if b.cell == cell],
            _closeness_of_walls(plan, cell),
        )
        cuts = np.cumsum([len(t) for t in texels])[:-1]
        for i, part in zip(members, np.split(lit, cuts), strict=True):
            columns, rows = _shape(quads[i])
            maps[i] = np.ascontiguousarray(part.reshape(rows, columns, 3))
            glow = materials[quads[i].material].glow
            if glow > 0:
                maps[i] = np.full_like(maps[i], glow)
    return LightAtlas.build(maps)


def _shape(quad: Quad) -> tuple[int, int]:
    """Return (columns, rows) of a rectangle's light map."""
    sides = [float(np.linalg.norm(e)) for e in (quad.edge_u, quad.edge_v)]
    columns, rows = (min(max(2, round(s * _TEXELS_PER_M)), _MAX_TEXELS) for s in sides)
    return columns, rows


def _texels(quad: Quad) -> Reals:
    """Return the centres (rows * columns, 3) of a rectangle's light map."""
    columns, rows = _shape(quad)
    u = ((np.arange(columns) + 0.5) / columns)[None, :, None]
    v = ((np.arange(rows) + 0.5) / rows)[:, None, None]
    return (quad.origin + u * quad.edge_u + v * quad.edge_v).reshape(-1, 3).astype(np.float32)


def _normal(quad: Quad) -> Reals:
    towards = np.cross(quad.edge_v, quad.edge_u)
    normal: Reals = (towards / np.linalg.norm(towards)).astype(np.float32)
    return normal


def _lamps_of(cell: int, boxes: Sequence[Box], panel: npt.NDArray[np.float64]) -> list[_Lamp]:
    lamps = []
    for box in boxes:
        if box.cell != cell:
            continue
        center = np.array(box.center, np.float32)
        if box.material == "lamp":
            spread = np.array([[i, j, 0] for i in (-0.6, 0.6) for j in (-0.6, 0.6)])
            points = center + spread * box.half - [0, 0, box.half[2] + 0.005]
            lamps.append(_lamp(points, (0, 0, -1), panel))
        elif box.material == "shade":
            lamps.append(_lamp(center[None], (0, 0, 0), np.array([1.0, 0.78, 0.5]) * 0.5))
        elif box.front.startswith("view"):
            inward = np.array([np.sin(box.yaw), -np.cos(box.yaw), 0.0])
            side = np.array([np.cos(box.yaw), np.sin(box.yaw), 0.0])
            spread = np.array([i * 0.5 * side * box.half[0] for i in (-1, 1)])
            points = center + spread + inward * 0.06
            area = 4 * box.half[0] * box.half[2]
            lamps.append(_lamp(points, inward, np.array([0.78, 0.9, 1.0]) * 0.75 * area))
    return lamps


def _lamp(points: npt.ArrayLike, normal: npt.ArrayLike, power: npt.ArrayLike) -> _Lamp:
    spots = np.asarray(points, np.float32)
    share = np.asarray(power, np.float32) / np.float32(len(spots))
    return _Lamp(spots, np.asarray(normal, np.float32), share)


def _spill(plan: FloorPlan, cell: int, axis: int, side: int) -> _Lamp:
    """Return an open doorway as a weak lamp that shines to its high (+1) or low side (-1)."""
    gap = plan.cells[cell]
    middle = [(a + b) / 2 for a, b in zip(gap.low, gap.high, strict=True)]
    normal = [0.0, 0.0, 0.0]
    normal[axis] = float(side)
    return _lamp([middle], normal, np.array([0.5, 0.48, 0.44]))


def _closeness_of_walls(plan: FloorPlan, cell: int) -> list[tuple[int, float]]:
    """Return (axis, coordinate) of the planes that close a cell in."""
    box = plan.cells[cell]
    planes = [(axis, end[axis]) for axis in range(3) for end in (box.low, box.high)]
    door = next((d for d in plan.doorways if d.cell == cell), None)
    return [p for p in planes if door is None or p[0] != door.axis]


def _illuminate(
    points: Reals,
    normals: Reals,
    bodies: npt.NDArray[np.int64],
    lamps: Sequence[_Lamp],
    boxes: Sequence[tuple[int, Box]],
    planes: Sequence[tuple[int, float]],
) -> Reals:
    """Return display-referred light (T, 3) at points (T, 3)."""
    spots = np.concatenate([lamp.points for lamp in lamps])
    clear = _unblocked(points + np.float32(0.01) * normals, spots, [b for _, b in boxes])
    direct = np.zeros_like(points)
    seen = 0
    for lamp in lamps:
        for spot in lamp.points:
            to_lamp = spot - points
            square = (to_lamp * to_lamp).sum(axis=1) + np.float32(0.05)
            cosine = np.maximum((to_lamp * normals).sum(axis=1), 0)
            facing = np.maximum(-(to_lamp @ lamp.normal), 0) if lamp.normal.any() else 1.0
            gain = cosine * facing / square / (square if lamp.normal.any() else np.sqrt(square))
            direct += (gain * clear[seen])[:, None] * lamp.power
            seen += 1
    open_sky = _openness(points, normals, bodies, boxes, planes)
    mean = direct.mean(axis=0)
    tint = 0.45 + 0.55 * mean / max(float(mean.mean()), 0.05)
    scattered = (_AMBIENT * tint).astype(np.float32)
    lit = direct + open_sky[:, None] * scattered
    light: Reals = np.power(lit, np.float32(_GAMMA))
    return light


def _unblocked(points: Reals, spots: Reals, boxes: Sequence[Box]) -> Reals:
    """Return (S, T): 1 where the line from a point to a lamp's spot meets no box, else 0."""
    clear = np.ones((len(spots), len(points)), np.float32)
    for box in boxes:
        if not box.casts_shadow:
            continue
        starts, ends = box.to_local(points).T.copy(), box.to_local(spots)  # (3, T), (S, 3)
        for row, end in zip(clear, ends, strict=True):
            enter, leave = np.zeros_like(row), np.ones_like(row)
            for start, stop, half in zip(starts, end, box.half, strict=True):
                pace = stop - start
                pace[np.abs(pace) < 1e-6] = 1e-6
                middle, reach = -start / pace, np.float32(half) / np.abs(pace)
                np.maximum(enter, middle - reach, out=enter)
                np.minimum(leave, middle + reach, out=leave)
            row[enter < leave] = 0
    return clear


def _openness(
    points: Reals,
    normals: Reals,
    bodies: npt.NDArray[np.int64],
    boxes: Sequence[tuple[int, Box]],
    planes: Sequence[tuple[int, float]],
) -> Reals:
    """Return (T,) in 0..1: how little walls and furniture close a point in."""
    openness = np.ones(len(points), np.float32)
    for axis, coordinate in planes:
        away = np.abs(points[:, axis] - np.float32(coordinate))
        own = (np.abs(normals[:, axis]) > 0.9) & (bodies == ROOM_BODY)
        openness *= np.where(own, 1, 1 - 0.42 * np.exp(-away / np.float32(0.22)))
    for number, box in boxes:
        if not box.casts_shadow:
            continue
        gap = np.abs(box.to_local(points)) - np.array(box.half, np.float32)
        away = np.linalg.norm(np.maximum(gap, 0), axis=1)
        reach = np.float32(0.04 + 0.5 * min(box.half))
        openness *= np.where(bodies == number, 1, 1 - 0.5 * np.exp(-away / reach))
    return openness
