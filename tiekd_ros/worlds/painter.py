"""Paints what a camera sees of a scene: linear colours and exact depth."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from tiekd_ros.camera import Intrinsics
from tiekd_ros.images import DepthMap
from tiekd_ros.worlds.plan import FloorPlan
from tiekd_ros.worlds.raster import Candidates, Ids, candidates, rasterise
from tiekd_ros.worlds.scene import Scene
from tiekd_ros.worlds.shading import Reals, Shader, shade
from tiekd_ros.worlds.visibility import Portals


class Painter:
    """Paints one scene from any pose; never changes, so any number of threads may paint."""

    def __init__(self, plan: FloorPlan, scene: Scene) -> None:
        self._plan = plan
        self._scene = scene
        self._portals = Portals.of(plan)

    def paint(
        self, pose: npt.NDArray[np.float64], camera: Intrinsics, width: int, height: int
    ) -> tuple[Reals, DepthMap]:
        """Return the colours (H, W, 3), 0..255 and above where overexposed, and the depth (H, W).

        Args:
            pose: 4x4 camera-to-world matrix of the optical frame, inside a cell of the plan.
            camera: intrinsics of an image of this size.
            width: image width in pixels.
            height: image height in pixels.
        """
        seen = self._candidates(pose, camera, width, height)
        shown = rasterise(seen, width, height)
        depth = _depth(seen, shown)
        shader = Shader.of(self._scene, seen, math.sqrt(camera.fx * camera.fy))
        return shade(shader, shown), depth

    def _candidates(
        self, pose: npt.NDArray[np.float64], camera: Intrinsics, width: int, height: int
    ) -> Candidates:
        to_camera: npt.NDArray[np.float64] = np.linalg.inv(pose).astype(np.float64)
        full = (-0.5, -0.5, width - 0.5, height - 0.5)
        start = self._plan.cell_at(pose[:3, 3])
        cells = self._portals.visible_cells(start, to_camera, camera.matrix(), full)
        return candidates(self._scene, to_camera, camera.matrix(), cells, full)


def _depth(seen: Candidates, shown: Ids) -> DepthMap:
    """Return the depth (H, W) at the pixels' centres, computed in double precision."""
    center = shown[1::2, 1::2]
    form = seen.forms[:, 2][center]  # (H, W, 3)
    height, width = center.shape
    inverse_z = form[..., 0] * np.arange(width) + form[..., 2]
    inverse_z += form[..., 1] * np.arange(height)[:, None]
    return (1 / inverse_z).astype(np.float32)
