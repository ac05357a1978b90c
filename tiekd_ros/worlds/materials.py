"""The materials of one world by name: pattern, colours, size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tiekd_ros.worlds import patterns
from tiekd_ros.worlds.patterns import Colour, Picture, hsv

_WALL_KINDS = (*["plaster"] * 3, *["two-tone"] * 2, *["wallpaper"] * 2, "brick")
_FLOOR_KINDS = ("boards", "boards", "herringbone", "tiles", "tiles", "carpet", "carpet")


@dataclass(frozen=True)
class Material:
    """A picture and how it lies on a surface.

    `size_m` is (width, height) of one repeat in metres, or None where the picture is
    stretched over the whole face. `glow` > 0 is the brightness of a surface that gives
    light itself, in units of a fully lit white wall.
    """

    picture: Picture
    size_m: tuple[float, float] | None = None
    glow: float = 0.0


def make_materials(rng: np.random.Generator, rooms: int) -> dict[str, Material]:
    """Draw all materials of a world with `rooms` cells that have walls and floors."""
    materials: dict[str, Material] = {}
    mood = rng.random()
    wall_kinds = rng.permutation(_WALL_KINDS)  # dealt like cards: neighbours differ
    floor_kinds = rng.permutation(_FLOOR_KINDS)
    for i in range(rooms):
        materials[f"wall{i}"] = _wall(rng, mood, str(wall_kinds[i % len(wall_kinds)]))
        materials[f"floor{i}"] = _floor(rng, str(floor_kinds[i % len(floor_kinds)]))
    pale = hsv(mood, 0.03, 0.95)
    materials["ceiling0"] = Material(patterns.ceiling_grid(rng, pale), (1.2, 1.2))
    materials["ceiling1"] = Material(patterns.plaster(rng, pale), (1.6, 1.6))
    materials.update(_joinery(rng, mood))
    materials.update(_soft(rng))
    materials.update(_faces(rng, materials))
    return materials


def _wall(rng: np.random.Generator, mood: float, kind: str) -> Material:
    hue = mood + rng.normal(0, 0.18)
    colour = hsv(hue, rng.uniform(0.06, 0.42), rng.uniform(0.72, 0.93))
    if kind == "plaster":
        return Material(patterns.plaster(rng, colour), (1.6, 1.6))
    if kind == "two-tone":
        lower = hsv(hue + rng.normal(0, 0.1), rng.uniform(0.25, 0.55), rng.uniform(0.4, 0.65))
        return Material(patterns.two_tone(rng, lower, colour), (1.0, 4.0))
    if kind == "wallpaper":
        ink = hsv(hue + rng.normal(0, 0.12), rng.uniform(0.2, 0.5), rng.uniform(0.5, 0.75))
        size = float(rng.uniform(0.5, 0.9))
        return Material(patterns.wallpaper(rng, colour, ink), (size, size))
    red = hsv(rng.uniform(0.01, 0.07), rng.uniform(0.3, 0.6), rng.uniform(0.55, 0.8))
    return Material(patterns.brick(rng, red), (1.04, 1.2))


def _floor(rng: np.random.Generator, kind: str) -> Material:
    timber = hsv(rng.uniform(0.05, 0.1), rng.uniform(0.3, 0.6), rng.uniform(0.45, 0.8))
    if kind == "boards":
        return Material(patterns.boards(rng, timber), (2.4, 2.2))
    if kind == "herringbone":
        return Material(patterns.herringbone(rng, timber), (2.4, 2.4))
    if kind == "tiles":
        stone = hsv(rng.random(), rng.uniform(0.02, 0.2), rng.uniform(0.65, 0.88))
        other = hsv(rng.random(), rng.uniform(0.05, 0.4), rng.uniform(0.35, 0.6))
        size = float(rng.uniform(2.0, 2.6))
        return Material(patterns.tiles(rng, stone, other), (size, size))
    cloth = hsv(rng.random(), rng.uniform(0.15, 0.45), rng.uniform(0.4, 0.65))
    return Material(patterns.carpet(rng, cloth), (0.9, 0.9))


def _joinery(rng: np.random.Generator, mood: float) -> dict[str, Material]:
    browns: list[Colour] = [
        hsv(rng.uniform(0.04, 0.08), rng.uniform(0.5, 0.65), rng.uniform(0.3, 0.5)),
        hsv(rng.uniform(0.07, 0.11), rng.uniform(0.3, 0.5), rng.uniform(0.7, 0.85)),
        hsv(rng.uniform(0.02, 0.1), rng.uniform(0.3, 0.6), rng.uniform(0.5, 0.7)),
    ]
    woods = {f"wood{i}": Material(patterns.wood(rng, c), (0.8, 0.8)) for i, c in enumerate(browns)}
    paint = hsv(mood + rng.normal(0, 0.2), rng.uniform(0.0, 0.25), rng.uniform(0.8, 0.95))
    accent = hsv(mood + 0.5 + rng.normal(0, 0.1), rng.uniform(0.5, 0.85), rng.uniform(0.5, 0.85))
    plain: dict[str, tuple[Colour, float]] = {
        "trim": (hsv(mood, rng.uniform(0.0, 0.08), rng.uniform(0.82, 0.96)), 1.0),
        "paint": (paint, 1.0),
        "accent": (accent, 0.6),
        "metal": (hsv(0.6, 0.06, rng.uniform(0.25, 0.6)), 0.6),
        "paper": ((222.0, 214.0, 196.0), 0.5),
        "leaf": (hsv(rng.uniform(0.25, 0.38), 0.6, rng.uniform(0.35, 0.55)), 0.3),
        "soil": ((74.0, 54.0, 40.0), 0.3),
    }
    for name, (colour, size) in plain.items():
        woods[name] = Material(patterns.plaster(rng, colour, 128), (size, size))
    return woods


def _soft(rng: np.random.Generator) -> dict[str, Material]:
    cloths = {
        f"fabric{i}": Material(
            patterns.carpet(rng, hsv(rng.random(), rng.uniform(0.2, 0.65), rng.uniform(0.4, 0.8))),
            (0.6, 0.6),
        )
        for i in range(2)
    }
    stone = patterns.concrete(rng, hsv(0.1, 0.06, rng.uniform(0.5, 0.7)))
    red = hsv(rng.uniform(0.01, 0.06), rng.uniform(0.35, 0.55), rng.uniform(0.55, 0.75))
    cloths["concrete"] = Material(stone, (1.2, 1.2))
    cloths["brick"] = Material(patterns.brick(rng, red), (1.04, 1.2))
    return cloths


def _faces(rng: np.random.Generator, made: dict[str, Material]) -> dict[str, Material]:
    makers = (patterns.abstract_poster, patterns.landscape, patterns.text_poster)
    faces = {f"poster{i}": Material(makers[i % 3](rng)) for i in range(6)}
    faces |= {f"books{i}": Material(patterns.book_row(rng)) for i in range(3)}
    faces |= {f"rug{i}": Material(patterns.rug(rng)) for i in range(2)}
    faces |= {f"view{i}": Material(patterns.window_view(rng), glow=1.15) for i in range(2)}
    timber, paint = made["wood1"].picture, made["paint"].picture
    faces["doors"] = Material(patterns.panelled(rng, timber, 1, int(rng.integers(2, 4))))
    faces["drawers"] = Material(patterns.panelled(rng, paint, 4, 1))
    faces["screen"] = Material(patterns.screen(rng), glow=0.9)
    faces["cardboard"] = Material(patterns.cardboard(rng))
    faces["crate"] = Material(patterns.crate(rng, timber))
    faces["ribs"] = Material(patterns.ribs())
    warm = np.array([[[255, 250, 238]]], np.uint8).repeat(32, 0).repeat(32, 1)
    shade = np.array([[[255, 226, 176]]], np.uint8).repeat(32, 0).repeat(32, 1)
    faces["lamp"] = Material(warm, glow=1.6)
    faces["shade"] = Material(shade, glow=1.2)
    return faces
