"""Random views of random worlds with exact depth: what the base student is trained on.

Where `IndoorWorld` is one believable flat with one camera on its walk, a `RandomisedWorld`
varies everything that a student must not rely on: materials, colours, light, things in the
way, the camera's place, height, attitude, lens and sensor. Depth stays exact: nothing that
blurs or distorts the image touches it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tiekd_ros.camera import Intrinsics
from tiekd_ros.images import DepthMap, RgbImage
from tiekd_ros.worlds.clutter import obstacles, scrambled_materials
from tiekd_ros.worlds.furnish import furnish
from tiekd_ros.worlds.materials import make_materials
from tiekd_ros.worlds.painter import Painter
from tiekd_ros.worlds.path import CameraPath, look
from tiekd_ros.worlds.plan import FloorPlan, make_plan
from tiekd_ros.worlds.scene import assemble
from tiekd_ros.worlds.sensor import random_exposure

TRAINING_SEEDS_FROM = 100_000
"""Training uses world seeds from here on; demos, tests and benchmarks stay below."""

HELD_OUT_SEEDS_FROM = 900_000
"""Seeds from here on judge a base student and are never trained on."""

_MIN_VIEW_DEG, _MAX_VIEW_DEG = 50.0, 100.0  # horizontal field of view
_MIN_HEIGHT_M, _MAX_HEIGHT_M = 0.3, 1.9
_BESIDE_M = 0.35  # furniture stays 0.52 m off the walk
_WALL_GAP_M = 0.08
_THING_GAP_M = 0.12
_TOO_CLOSE_M = 0.35  # half of the view nearer than this, ...
_FLAT_RATIO = 1.8  # ... or hardly any depth in it: ...
_DULL_SHARE = 0.15  # ... such views of a bare wall are kept this often
_TRIES = 30


@dataclass(frozen=True)
class RandomView:
    """One view: image uint8 RGB (H, W, 3), depth float32 (H, W) in metres, finite everywhere.

    `pose` is the 4x4 camera-to-world matrix of the optical frame, metres.
    """

    image: RgbImage
    depth: DepthMap
    pose: npt.NDArray[np.float64]
    intrinsics: Intrinsics


class RandomisedWorld:
    """A flat with scrambled materials and things in the way, seen from anywhere near its walk.

    The same seed and index give the same view in every process.
    """

    def __init__(self, seed: int) -> None:
        """Build the world; takes about a second."""
        self.seed = seed
        plan_rng, path_rng, piece_rng, paint_rng, lay_rng, chaos = (
            np.random.default_rng(s) for s in np.random.SeedSequence([seed, 1]).spawn(6)
        )
        self._plan = make_plan(plan_rng)
        self._walk = CameraPath(self._plan.route, path_rng).footprints()
        boxes = furnish(self._plan, self._walk, piece_rng)
        rooms = sum(cell.kind != "doorway" for cell in self._plan.cells)
        materials = make_materials(paint_rng, rooms)
        if chaos.random() < 0.85:  # the rest looks as it was meant to
            materials = scrambled_materials(materials, chaos)
        things, turned, self._spheres = obstacles(self._plan, self._walk, materials, chaos)
        scene = assemble(self._plan, [*boxes, *things], materials, lay_rng, turned)
        self._painter = Painter(self._plan, scene)

    def view(self, index: int, width: int, height: int) -> RandomView:
        """Return view number `index` at an image size in pixels."""
        rng = np.random.default_rng([self.seed, index])
        for _ in range(_TRIES):
            camera = random_camera(width, height, rng)
            pose = look(self._random_place(rng), *_random_attitude(rng))
            linear, depth = self._painter.paint(pose, camera, width, height)
            if _is_worth_seeing(depth) or rng.random() < _DULL_SHARE:
                break
        return RandomView(random_exposure(linear, rng), depth, pose, camera)

    def _random_place(self, rng: np.random.Generator) -> npt.NDArray[np.float64]:
        """Return a free point (3,) near the walk."""
        for _ in range(_TRIES):
            spot = self._walk[int(rng.integers(len(self._walk)))]
            angle, away = rng.uniform(0, 2 * np.pi), _BESIDE_M * math.sqrt(rng.random())
            x, y = spot + away * np.array([np.cos(angle), np.sin(angle)])
            place = np.array([x, y, rng.uniform(_MIN_HEIGHT_M, _MAX_HEIGHT_M)])
            if self._is_free(place):
                return place
        return np.array([*self._walk[0], 1.2])

    def _is_free(self, place: npt.NDArray[np.float64]) -> bool:
        away = np.linalg.norm(self._spheres[:, :3] - place, axis=1)
        if (away < self._spheres[:, 3] + _THING_GAP_M).any():
            return False
        return _in_the_open(self._plan, place)


def _in_the_open(plan: FloorPlan, place: npt.NDArray[np.float64]) -> bool:
    """Tell whether a point (3,) keeps its distance from walls, door frames and ceilings."""
    for index, cell in enumerate(plan.cells):
        gap = np.full(3, _WALL_GAP_M)
        for door in plan.doorways:
            if door.cell == index:
                gap[door.axis] = -_WALL_GAP_M  # open on both sides: reaches into the rooms
        if (place >= np.array(cell.low) + gap).all() and (place <= np.array(cell.high) - gap).all():
            return True
    return False


def _is_worth_seeing(depth: DepthMap) -> bool:
    near, middle, far = np.percentile(depth[::4, ::4], [5, 50, 95])
    return bool(middle > _TOO_CLOSE_M and far > _FLAT_RATIO * near)


def random_camera(width: int, height: int, rng: np.random.Generator) -> Intrinsics:
    """Return square pixels, a field of view of 50 to 100 degrees, a centre somewhat off."""
    half = math.radians(rng.uniform(_MIN_VIEW_DEG, _MAX_VIEW_DEG)) / 2
    focal = width / 2 / math.tan(half)
    off_x, off_y = rng.normal(0, 0.02, 2).clip(-0.05, 0.05)
    return Intrinsics(
        focal, focal, (width - 1) / 2 + off_x * width, (height - 1) / 2 + off_y * height
    )


def _random_attitude(rng: np.random.Generator) -> tuple[float, float, float]:
    """Return yaw, pitch and roll in radians: mostly level, at times as a hand would hold it."""
    yaw = rng.uniform(-np.pi, np.pi)
    pitch = np.clip(rng.normal(-0.12, 0.25), -0.9, 0.7)
    roll = rng.normal(0, 0.05) if rng.random() < 0.85 else rng.uniform(-0.5, 0.5)
    return float(yaw), float(pitch), float(roll)
