"""The painter: the linear colours and the exact depth that a camera sees of a scene."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.images import DepthMap
from tiekd_ros.worlds.lighting import LEVELS
from tiekd_ros.worlds.plan import FloorPlan
from tiekd_ros.worlds.scene import Scene
from tiekd_ros.worlds.visibility import Candidates, Ids, Portals, candidates, rasterise

Reals = npt.NDArray[np.float32]
_Texel = TypeVar("_Texel", np.uint8, np.float32)

_CHUNK = 16384  # samples a time: the working set stays in the cache
_COLUMNS = 256
_ALONG = 0.72  # mip level between a footprint's short (0) and long (1) side: sharp, yet calm
_NEIGHBOURS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
_KERNEL = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], np.float32).reshape(9) / 16


@dataclass(frozen=True)
class Shader:
    """Everything that colours K candidates: one column of `table` (18, K) each."""

    scene: Scene
    table: Reals
    first_level: npt.NDArray[np.int64]

    @classmethod
    def of(cls, scene: Scene, seen: Candidates, focal: float) -> Shader:
        """Prepare the candidates of one view; `focal` is the focal length in pixels."""
        forms, number = seen.forms, seen.number
        area = np.abs(np.linalg.det(forms)) * scene.size[number].prod(axis=1)
        # A pixel's footprint: area / w^3 square metres for w = 1/z, short side 1 / (w focal).
        # All that does not depend on w goes into one constant a candidate.
        constant = _ALONG * np.log2(np.maximum(area, 1e-12) * focal) - (1 - _ALONG) * np.log2(focal)
        constant = constant + np.log2(scene.texels_per_m[number])
        table = np.vstack(
            [
                forms.reshape(-1, 9).T,  # 0..8
                scene.mapping[:, number],  # 9..12
                scene.light_rect[:, number],  # 13..16
                constant[None],  # 17
            ]
        ).astype(np.float32)
        return cls(scene, table, scene.material[number] * LEVELS)

    def colours(self, x: Reals, y: Reals, ids: Ids) -> Reals:
        """Return RGB (N, 3), 0..255 and above where overexposed, of samples (N,) in pixels."""
        total = len(ids)
        out = np.empty((total, 3), np.float32)
        for start in range(0, total, _CHUNK):
            part = slice(start, min(start + _CHUNK, total))
            padding = -(part.stop - part.start) % _COLUMNS
            px, py = (np.pad(a[part], (0, padding), mode="edge") for a in (x, y))
            shown = np.pad(ids[part], (0, padding), mode="edge")
            out[part] = self._chunk(px, py, shown)[: part.stop - part.start]
        return out

    def _chunk(self, x: Reals, y: Reals, ids: Ids) -> Reals:
        t = np.take(self.table, ids, axis=1, mode="clip")
        inverse_z = t[6] * x + t[7] * y + t[8]
        z = 1 / inverse_z
        u = (t[0] * x + t[1] * y + t[2]) * z
        v = (t[3] * x + t[4] * y + t[5]) * z
        np.clip(u, 0, 1, out=u)
        np.clip(v, 0, 1, out=v)
        level = 2 * (t[17] - (1 + _ALONG) * np.log2(inverse_z)) + np.float32(0.5)
        level = np.clip(level, 0, LEVELS - 1).astype(np.int64)
        place = np.take(self.scene.textures.levels, self.first_level[ids] + level, axis=1)
        repeat_u, repeat_v = u * t[9] + t[11], v * t[10] + t[12]
        repeat_u -= np.floor(repeat_u)
        repeat_v -= np.floor(repeat_v)
        half = np.float32(0.5)
        albedo = _look_up(
            self.scene.textures.pixels,
            place[0] + repeat_u * place[2] - half,
            place[1] + repeat_v * place[3] - half,
        )
        light = _look_up(
            self.scene.light.pixels, t[15] + u * t[13] - half, t[16] + v * t[14] - half
        )
        lit: Reals = albedo * light
        return lit


def _look_up(picture: npt.NDArray[_Texel], x: Reals, y: Reals) -> npt.NDArray[_Texel]:
    shape = (-1, _COLUMNS)
    found = cv2.remap(picture, x.reshape(shape), y.reshape(shape), cv2.INTER_LINEAR)
    colours: npt.NDArray[_Texel] = found.reshape(-1, 3).astype(picture.dtype, copy=False)
    return colours


def shade(shader: Shader, shown: Ids) -> Reals:
    """Return the image (H, W, 3) of a sample grid (2H + 1, 2W + 1), 0..255 and above.

    A pixel that shows one rectangle is shaded once, at its centre; one that shows several
    is the weighted mean of its nine samples, which smooths the edges of things.
    """
    height, width = (shown.shape[0] - 1) // 2, (shown.shape[1] - 1) // 2
    center = shown[1::2, 1::2]
    ys, xs = np.indices((height, width), np.float32)
    image = shader.colours(xs.ravel(), ys.ravel(), center.ravel())

    mixed = np.zeros((height, width), bool)
    shifted = {}
    for dy, dx in _NEIGHBOURS:
        view = shown[1 + dy : 2 * height + 1 + dy : 2, 1 + dx : 2 * width + 1 + dx : 2]
        shifted[dy, dx] = view
        mixed |= view != center
    spots = np.flatnonzero(mixed)
    row, column = np.divmod(spots, width)
    ids = np.stack([shifted[n][row, column] for n in _NEIGHBOURS])  # (9, M)
    offsets: Reals = np.array(_NEIGHBOURS, np.float32) * np.float32(0.5)
    sample_y: Reals = (offsets[:, :1] + row.astype(np.float32)).ravel()
    sample_x: Reals = (offsets[:, 1:] + column.astype(np.float32)).ravel()
    fine = shader.colours(sample_x, sample_y, ids.ravel()).reshape(9, -1, 3)
    np.clip(fine, 0, 255, out=fine)
    image[spots] = np.tensordot(_KERNEL, fine, axes=1)
    return image.reshape(height, width, 3)


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
