"""Boxes and the textured rectangles that everything in the world is made of."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Reals = npt.NDArray[np.float32]

ROOM_BODY = -1
"""`Quad.body` of a surface that belongs to the building and to no box."""


@dataclass(frozen=True)
class Box:
    """A box on its own yaw: centre and half sizes in metres, `yaw` in radians about z.

    `front` and `top` name other materials for the local -y and +z faces.
    """

    center: tuple[float, float, float]
    half: tuple[float, float, float]
    material: str
    yaw: float = 0.0
    front: str = ""
    top: str = ""
    cell: int = 0
    casts_shadow: bool = True

    def to_local(self, points: Reals) -> Reals:
        """Return world points (..., 3) in the box's own frame, float32."""
        moved = points - np.array(self.center, np.float32)
        cos, sin = np.float32(np.cos(self.yaw)), np.float32(np.sin(self.yaw))
        x = cos * moved[..., 0] + sin * moved[..., 1]
        y = cos * moved[..., 1] - sin * moved[..., 0]
        return np.stack([x, y, moved[..., 2]], axis=-1)


@dataclass(frozen=True)
class Quad:
    """A rectangle seen from its front: `origin` top left, `edge_u` right, `edge_v` down.

    The cross product edge_u x edge_v points away from the viewer. Metres, world frame.
    """

    origin: Floats
    edge_u: Floats
    edge_v: Floats
    material: str
    cell: int
    body: int = ROOM_BODY
    aligned: bool = False  # pattern follows world coordinates, so that it runs on past joints

    def turned(self) -> Quad:
        """Return the same rectangle with its pattern turned by a quarter."""
        origin = self.origin + self.edge_v
        return replace(self, origin=origin, edge_u=-self.edge_v, edge_v=self.edge_u)


_LOOKS: dict[str, tuple[int, tuple[int, int, int], tuple[int, int, int]]] = {
    # viewing direction: (axis it follows, right, down)
    "east": (0, (0, -1, 0), (0, 0, -1)),
    "west": (0, (0, 1, 0), (0, 0, -1)),
    "north": (1, (1, 0, 0), (0, 0, -1)),
    "south": (1, (-1, 0, 0), (0, 0, -1)),
    "up": (2, (1, 0, 0), (0, 1, 0)),
    "down": (2, (1, 0, 0), (0, -1, 0)),
}
_FORWARD = {"east", "north", "up"}


def face(low: Floats, high: Floats, look: str, *, inside: bool) -> tuple[Floats, Floats, Floats]:
    """Return (origin, edge_u, edge_v) of one face of an axis-aligned box.

    `look` is the direction in which a viewer faces the surface; from `inside` that is the
    far face (a room's wall), from outside the near one (a cupboard's front).
    """
    axis, right, down = _LOOKS[look]
    at_high = (look in _FORWARD) == inside
    size = high - low
    u, v = np.array(right, float), np.array(down, float)
    origin = np.where((u + v) > 0, low, high).astype(float)
    origin[axis] = high[axis] if at_high else low[axis]
    return origin, u * size, v * size


def box_quads(box: Box, body: int) -> list[Quad]:
    """Return the faces of a box that can be seen: all but one that lies on the floor."""
    half = np.array(box.half)
    center = np.array(box.center)
    cos, sin = np.cos(box.yaw), np.sin(box.yaw)
    spin = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    quads = []
    for look in _LOOKS:
        if look == "up" and center[2] - half[2] < 1e-6:
            continue
        origin, edge_u, edge_v = (spin @ e for e in face(-half, half, look, inside=False))
        material = box.material
        if look == "north" and box.front:
            material = box.front
        if look == "down" and box.top:
            material = box.top
        quad = Quad(origin + center, edge_u, edge_v, material, box.cell, body)
        upright = np.linalg.norm(edge_v) > np.linalg.norm(edge_u)
        has_grain = material.startswith("wood")
        quads.append(quad.turned() if upright and has_grain else quad)
    return quads
