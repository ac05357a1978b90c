"""The indoor world: image, exact depth and pose of its walking camera at any time."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.images import DepthMap, RgbImage
from tiekd_ros.core.settings import Settings, setting
from tiekd_ros.worlds.furniture import furnish
from tiekd_ros.worlds.materials import make_materials
from tiekd_ros.worlds.painter import Painter
from tiekd_ros.worlds.plan import CameraPath, make_plan
from tiekd_ros.worlds.scene import assemble

_HALF_VIEW_RAD = math.radians(75.0) / 2
_MAX_SIDE = 4096


@dataclass(frozen=True)
class WorldSettings(Settings):
    """The settings that make one world differ from another."""

    seed: int = setting(0, "which world: floor plan, furniture, textures, light", minimum=0)
    period_s: float = setting(
        60.0,
        "duration of one turn of the camera's closed walk of about 40 m",
        unit="s",
        minimum=1.0,
        maximum=86400.0,
    )
    noise: float = setting(
        1.5,
        "standard deviation of the sensor noise in the image; 0 = none",
        unit="grey levels",
        minimum=0.0,
        maximum=50.0,
    )


@dataclass(frozen=True)
class WorldView:
    """The camera's image and depth at one time.

    `image` is uint8 RGB (H, W, 3); `depth` float32 (H, W), metres along the optical axis,
    finite everywhere; `pose` the 4x4 camera-to-world matrix of the optical frame (x right,
    y down, z forward; the world's z points up), metres.
    """

    image: RgbImage
    depth: DepthMap
    pose: npt.NDArray[np.float64]


class IndoorWorld:
    """A flat of textured rooms along a corridor, and a camera that walks through it.

    The same settings, time, size and intrinsics give the same view in every process. A
    world never changes once it is built: any number of threads may render at once.
    """

    def __init__(
        self, settings: WorldSettings = WorldSettings(), furniture: int | None = None
    ) -> None:
        """Build the world; takes about a second.

        Args:
            settings: which one.
            furniture: seed of another arrangement of furniture in the same rooms.
        """
        self.settings = settings
        self._period_ns = round(settings.period_s * 1e9)
        plan_rng, path_rng, piece_rng, paint_rng, lay_rng = (
            np.random.default_rng(s) for s in np.random.SeedSequence(settings.seed).spawn(5)
        )
        self._plan = make_plan(plan_rng)
        self._path = CameraPath(self._plan.route, path_rng)
        if furniture is not None:
            piece_rng = np.random.default_rng([settings.seed, furniture])
        boxes = furnish(self._plan, self._path.footprints(), piece_rng)
        rooms = sum(cell.kind != "doorway" for cell in self._plan.cells)
        materials = make_materials(paint_rng, rooms)
        self._scene = assemble(self._plan, boxes, materials, lay_rng)
        self._painter = Painter(self._plan, self._scene)

    @staticmethod
    def default_intrinsics(width: int, height: int) -> Intrinsics:
        """Return square pixels with a horizontal field of view of 75 degrees."""
        width, height = _checked_size(width, height)
        focal = width / 2 / math.tan(_HALF_VIEW_RAD)
        return Intrinsics(focal, focal, (width - 1) / 2, (height - 1) / 2)

    def pose(self, time_ns: int) -> npt.NDArray[np.float64]:
        """Return the 4x4 camera-to-world matrix at a time in integer nanoseconds."""
        # whole nanoseconds, reduced before they become a float: exact for any stamp
        return self._path.pose(operator.index(time_ns) % self._period_ns / self._period_ns)

    def render(
        self, time_ns: int, width: int, height: int, intrinsics: Intrinsics | None = None
    ) -> WorldView:
        """Return the view at a time in integer nanoseconds, any epoch.

        Args:
            time_ns: the time; views repeat after the period, but for the sensor noise.
            width: image width in pixels, 1 to 4096.
            height: image height in pixels, 1 to 4096.
            intrinsics: of an image of this size; `default_intrinsics` where none are given.

        Raises:
            InvalidSettingError: the size is not one that can be drawn.
        """
        width, height = _checked_size(width, height)
        camera = intrinsics or self.default_intrinsics(width, height)
        pose = self.pose(time_ns)
        linear, depth = self._painter.paint(pose, camera, width, height)
        return WorldView(self._exposed(linear, operator.index(time_ns)), depth, pose)

    def _exposed(self, linear: npt.NDArray[np.float32], time_ns: int) -> RgbImage:
        if self.settings.noise > 0:
            rng = np.random.default_rng([self.settings.seed, time_ns % 2**64])
            grain = rng.standard_normal(linear.shape, np.float32)
            linear += np.float32(self.settings.noise) * grain
        np.clip(linear, 0, 255, out=linear)
        linear += np.float32(0.5)
        image: RgbImage = linear.astype(np.uint8)
        return image


def _checked_size(width: int, height: int) -> tuple[int, int]:
    for name, value in (("width", width), ("height", height)):
        is_whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not is_whole or not 1 <= value <= _MAX_SIDE:
            raise InvalidSettingError(
                f"image {name} must be a whole number of pixels between 1 and {_MAX_SIDE}, "
                f"got {value!r}"
            )
    return int(width), int(height)
