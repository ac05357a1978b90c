"""The painter: the linear colours and the exact depth that a camera sees of a scene.

For a rectangle with corner o and unit edges r (right) and d (down), and a ray z * (X, Y, 1)
in camera coordinates, 1/z, u/z and v/z are linear in the ray's (X, Y, 1) and so in pixel
coordinates (u, v: metres along the edges). A sample lies inside where 0 <= u/z <= w/z and
0 <= v/z <= h/z: four half-planes, no clipping and no projected corners. The same three
linear forms give the depth and the texture coordinates.

Shape letters: K candidate rectangles, R rows and C columns of samples.

A doorway cell opens into two rooms by two rectangles (portals). A room seen through
portals can only show inside their bounding rectangle on the image.
"""

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
from tiekd_ros.worlds.solids import Floats, Reals

Rect = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels

_NEAR_M = 0.05  # a portal that reaches nearer than this may fill the view


@dataclass(frozen=True)
class Portals:
    """`corners` (P, 4, 3) in metres, and the cells that each of the P portals joins."""

    corners: Floats
    cells: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, plan: FloorPlan) -> Portals:
        """Return both faces of every doorway."""
        corners, cells = [], []
        for door in plan.doorways:
            gap = plan.cells[door.cell]
            for end, room in ((gap.low, door.before), (gap.high, door.after)):
                low, high = list(gap.low), list(gap.high)
                low[door.axis] = high[door.axis] = end[door.axis]
                top, bottom = [*low[:2], high[2]], [*high[:2], low[2]]
                corners.append([low, top, high, bottom])
                cells.append((door.cell, room))
        return cls(np.array(corners), tuple(cells))

    def visible_cells(
        self, start: int, to_camera: Floats, camera_matrix: Floats, full: Rect
    ) -> dict[int, Rect]:
        """Return the cells in sight, each with the image rectangle that bounds it.

        `to_camera` is the 4x4 world-to-camera matrix.
        """
        points = self.corners @ to_camera[:3, :3].T + to_camera[:3, 3]
        frames = [_image_rect(p, camera_matrix, full) for p in points]
        seen: dict[int, Rect] = {}
        self._visit(start, full, frames, (start,), seen)
        return seen

    def _visit(
        self,
        cell: int,
        rect: Rect,
        frames: list[Rect | None],
        behind: tuple[int, ...],
        seen: dict[int, Rect],
    ) -> None:
        seen[cell] = _union(seen[cell], rect) if cell in seen else rect
        for frame, (one, two) in zip(frames, self.cells, strict=True):
            if frame is None or cell not in (one, two):
                continue
            beyond = two if cell == one else one
            through = _intersection(rect, frame)
            if beyond not in behind and through is not None:
                self._visit(beyond, through, frames, (*behind, beyond), seen)


def _image_rect(points: Floats, camera_matrix: Floats, full: Rect) -> Rect | None:
    """Return the image rectangle of a portal (4, 3) in camera coordinates, None if behind."""
    if (points[:, 2] < -_NEAR_M).all():
        return None
    if (points[:, 2] < _NEAR_M).any():
        return full
    pixels = points @ camera_matrix.T
    pixels = pixels[:, :2] / pixels[:, 2:]
    (x0, y0), (x1, y1) = pixels.min(axis=0), pixels.max(axis=0)
    return (float(x0), float(y0), float(x1), float(y1))


def _intersection(a: Rect, b: Rect) -> Rect | None:
    rect = (max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    return rect if rect[0] <= rect[2] and rect[1] <= rect[3] else None


def _union(a: Rect, b: Rect) -> Rect:
    return (min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))


Ids = npt.NDArray[np.int16]

_SEAM_PX = 1e-6  # rectangles that share an edge overlap by this much: no cracks
_NO_SLOPE = 1e-12


@dataclass(frozen=True)
class Candidates:
    """Rectangles that may be in view.

    `number` (K,) is their place in the scene; `forms` (K, 3, 3) maps (x, y, 1) in pixels to
    (u/z, v/z, 1/z), u and v as shares of the width and height; `bounds` (K, 4) is the part
    of the image that each may cover: x0, y0, x1, y1 in pixels.
    """

    number: npt.NDArray[np.int64]
    forms: Floats
    bounds: Floats


def candidates(
    scene: Scene, to_camera: Floats, camera_matrix: Floats, cells: dict[int, Rect], full: Rect
) -> Candidates:
    """Return the rectangles in the cells given that face the camera and reach into view."""
    turn, shift = to_camera[:3, :3], to_camera[:3, 3]
    number = np.flatnonzero(np.isin(scene.cell, list(cells)))
    origin = scene.origin[number] @ turn.T + shift
    right, down = scene.right[number] @ turn.T, scene.down[number] @ turn.T
    away = np.cross(right, down)
    distance = (away * origin).sum(axis=1)  # from the camera to the plane, > 0 if it faces us
    keep = (distance > 1e-9) & _in_view(scene, number, origin, right, down, camera_matrix, full)
    number, origin, right, down = number[keep], origin[keep], right[keep], down[keep]
    inverse_z = away[keep] / distance[keep, None]
    across = right - (right * origin).sum(axis=1, keepdims=True) * inverse_z
    along = down - (down * origin).sum(axis=1, keepdims=True) * inverse_z
    size = scene.size[number]
    rays = np.stack([across / size[:, :1], along / size[:, 1:], inverse_z], axis=1)
    forms = rays @ np.linalg.inv(camera_matrix)
    bounds = np.array([cells[c] for c in scene.cell[number].tolist()]).reshape(-1, 4)
    return Candidates(number, forms, bounds)


def _in_view(
    scene: Scene,
    number: npt.NDArray[np.int64],
    origin: Floats,
    right: Floats,
    down: Floats,
    camera_matrix: Floats,
    full: Rect,
) -> npt.NDArray[np.bool_]:
    """Tell which rectangles are not wholly beyond one side of the view."""
    u, v = right * scene.size[number, :1], down * scene.size[number, 1:]
    corners = np.stack([origin, origin + u, origin + v, origin + u + v], axis=1) @ camera_matrix.T
    x, y, z = corners[..., 0], corners[..., 1], corners[..., 2]
    beyond = [z < 0, x < full[0] * z, x > full[2] * z, y < full[1] * z, y > full[3] * z]
    keep: npt.NDArray[np.bool_] = ~np.any([side.all(axis=1) for side in beyond], axis=0)
    return keep


def rasterise(seen: Candidates, width: int, height: int) -> Ids:
    """Return which candidate each sample shows, (2H + 1, 2W + 1); -1 where none does.

    Sample (j, i) lies at pixel ((i - 1) / 2, (j - 1) / 2): the odd ones are the pixels'
    centres, the others lie half-way between them.
    """
    rows, columns = 2 * height + 1, 2 * width + 1
    first, last = _spans(seen, rows, columns)
    shown = np.full((rows, columns), -1, np.int16)
    nearest = np.zeros((rows, columns), np.float32)  # 1/z
    ys, xs = (np.arange(rows) - 1) / 2, (np.arange(columns) - 1) / 2
    form = seen.forms[:, 2]
    by_row = (form[:, 1:2] * ys + form[:, 2:3]).astype(np.float32)
    by_column = (form[:, :1] * xs).astype(np.float32)
    number = np.arange(columns, dtype=np.int16)
    length = last - first
    filled = length >= 0
    for k in np.flatnonzero(filled.any(axis=1)).tolist():
        covered = np.flatnonzero(filled[k])
        y0, y1 = int(covered[0]), int(covered[-1]) + 1
        x0, x1 = int(first[k][covered].min()), int(last[k][covered].max()) + 1
        inverse = by_row[k, y0:y1, None] + by_column[k, x0:x1]
        # one unsigned comparison tests both ends of a row's span; an empty span is length -1
        offset = (number[x0:x1] - first[k, y0:y1, None]).view(np.uint16)
        reach = np.maximum(length[k, y0:y1, None], 0).view(np.uint16)
        hit = offset <= reach
        hit &= filled[k, y0:y1, None]
        depths = nearest[y0:y1, x0:x1]
        hit &= inverse > depths
        np.copyto(depths, inverse, where=hit)
        np.copyto(shown[y0:y1, x0:x1], np.int16(k), where=hit)
    return shown


def _spans(seen: Candidates, rows: int, columns: int) -> tuple[Ids, Ids]:
    """Return the first and the last sample (K, R) that each candidate covers in each row."""
    u, v, w = seen.forms[:, 0], seen.forms[:, 1], seen.forms[:, 2]
    edges = np.stack([u, w - u, v, w - v], axis=1)  # (K, 4, 3): inside where >= 0
    slope = edges[..., 0]
    slope = np.where(np.abs(slope) < _NO_SLOPE, _NO_SLOPE, slope)
    ys = (np.arange(rows) - 1) / 2
    # a x + b y + c >= 0 bounds x from below where a > 0, from above where a < 0
    gain, start = -edges[..., 1] / slope, -edges[..., 2] / slope
    rises = slope > 0
    low = np.broadcast_to(seen.bounds[:, :1], (len(u), rows)).copy()
    high = np.broadcast_to(seen.bounds[:, 2:3], (len(u), rows)).copy()
    for e in range(4):
        crossing = gain[:, e, None] * ys + start[:, e, None]  # (K, R)
        np.maximum(low, crossing, out=low, where=rises[:, e, None])
        np.minimum(high, crossing, out=high, where=~rises[:, e, None])
    outside = (ys < seen.bounds[:, 1:2]) | (ys > seen.bounds[:, 3:4])
    high[outside] = -np.inf
    first = np.ceil(np.clip(2 * (low - _SEAM_PX) + 1, 0, columns))
    last = np.floor(np.clip(2 * (high + _SEAM_PX) + 1, -1, columns - 1))
    return first.astype(np.int16), last.astype(np.int16)


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
