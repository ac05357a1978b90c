"""Random views of random worlds with exact depth, the base student's training set.

Where `IndoorWorld` is one believable flat with one camera on its walk, a `RandomisedWorld`
varies everything that a student must not rely on: materials, colours, light, things in the
way, the camera's place, height, attitude, lens and sensor. Depth stays exact: nothing that
blurs or distorts the image touches it, or moves a pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.images import DepthMap, RgbImage
from tiekd_ros.worlds import WorldView
from tiekd_ros.worlds.furniture import furnish
from tiekd_ros.worlds.materials import Material, make_materials
from tiekd_ros.worlds.painter import Painter
from tiekd_ros.worlds.patterns import Colour, Picture, coloured, finish, grid, hsv, noise
from tiekd_ros.worlds.plan import CameraPath, FloorPlan, look, make_plan
from tiekd_ros.worlds.scene import assemble
from tiekd_ros.worlds.solids import Box, Floats, Quad, face

Reals = npt.NDArray[np.float32]


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

_SIZE = 128  # texels of a made-up pattern
_TURNED_BODY = 1_000_000  # number of the first turned box: no furniture has so high a one
_NOT_ON_CLUTTER = ("lamp", "shade", "view", "screen")  # they give light


def random_exposure(linear: Reals, rng: np.random.Generator) -> RgbImage:
    """Return a random camera's image, uint8 (H, W, 3), of colours (H, W, 3) in 0..255 and above."""
    image = _toned(linear, rng)
    if rng.random() < 0.4:
        image = _blurred(image, rng)
    if rng.random() < 0.85:
        image = _noisy(image, rng)
    out: RgbImage = np.clip(image + np.float32(0.5), 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        out = _compressed(out, rng)
    return out


def _toned(linear: Reals, rng: np.random.Generator) -> Reals:
    """Return the image after exposure, white balance, saturation, vignette and gamma."""
    gains = np.exp(rng.normal(0, 0.3) + rng.normal(0, 0.08, 3))
    mixing = np.diag(gains)
    grey = np.full((3, 3), 1 / 3)
    keep = 0.0 if rng.random() < 0.08 else float(rng.uniform(0.3, 1.5))  # 0: a grey image
    mixing = mixing @ (keep * np.eye(3) + (1 - keep) * grey)
    if rng.random() < 0.3:  # another palette: colours must not mean a thing
        mixing = mixing @ _swapped_palette(rng)
    toned: Reals = np.clip(linear @ mixing.T.astype(np.float32), 0, 400) / np.float32(255)
    if rng.random() < 0.5:
        toned *= _vignette(toned.shape, rng)[..., None]
    toned = np.power(toned, np.float32(np.exp(rng.normal(0, 0.2))))
    lift = float(rng.uniform(-0.05, 0.12))
    toned = np.float32(lift) + np.float32(1 - lift) * toned
    return toned * np.float32(255)


def _swapped_palette(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return a 3x3 colour matrix whose rows sum to 1, part of the way to swapped channels."""
    swapped = np.eye(3)[rng.permutation(3)]
    share = rng.uniform(0.2, 1.0)
    return share * swapped + (1 - share) * np.eye(3)


def _vignette(shape: tuple[int, ...], rng: np.random.Generator) -> Reals:
    height, width = shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    off = np.hypot(x - width / 2, y - height / 2) / np.float32(np.hypot(width, height) / 2)
    return 1 - np.float32(rng.uniform(0.05, 0.5)) * off * off


def _blurred(image: Reals, rng: np.random.Generator) -> Reals:
    """Return the image out of focus, or smeared by motion; about one in two each."""
    scale = image.shape[1] / 320
    if rng.random() < 0.5:
        sigma = float(rng.uniform(0.3, 1.6)) * scale
        return cv2.GaussianBlur(image, (0, 0), max(sigma, 0.2))
    reach = max(1, round(float(rng.uniform(1, 5)) * scale))
    size = 2 * reach + 1
    kernel = np.zeros((size, size), np.float32)
    angle = rng.uniform(0, np.pi)
    shift = reach * np.array([np.cos(angle), np.sin(angle)])
    ends = [tuple((reach + sign * shift).round().astype(int).tolist()) for sign in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 1.0)
    return cv2.filter2D(image, -1, kernel / kernel.sum())


def _noisy(image: Reals, rng: np.random.Generator) -> Reals:
    """Add read and shot noise, coarse-grained at times as demosaicing makes it."""
    read, shot = np.float32(rng.uniform(0, 6)), np.float32(rng.uniform(0, 0.6))
    grain = rng.standard_normal(image.shape, np.float32)
    if rng.random() < 0.5:
        grain = cv2.GaussianBlur(grain, (3, 3), 0.7) * np.float32(2.2)
    strength = read + shot * np.sqrt(np.clip(image, 0, 255))
    return image + grain * strength


def _compressed(image: RgbImage, rng: np.random.Generator) -> RgbImage:
    quality = int(rng.integers(30, 96))
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


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
    makers = (_plain, _clouds, _clouds, _stripes, _checks, _spots)
    return makers[int(rng.integers(len(makers)))](rng)


def _plain(rng: np.random.Generator) -> Picture:
    return coloured(_colour(rng), np.float32(1) + np.float32(0.01) * noise(rng, _SIZE, 0.5))


def _clouds(rng: np.random.Generator) -> Picture:
    slope, stretch = float(rng.uniform(0.2, 1.8)), float(np.exp(rng.uniform(0, 2)))
    share = 0.5 + rng.uniform(0.1, 0.5) * noise(rng, _SIZE, slope, stretch)
    return _between(_colour(rng), _colour(rng), share.astype(np.float32))


def _stripes(rng: np.random.Generator) -> Picture:
    along = grid(_SIZE)[0 if rng.random() < 0.5 else 1]
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
    for way in ("east", "west", "north", "south", "up", "down"):
        origin, edge_u, edge_v = (turn @ e for e in face(-half, half, way, inside=False))
        quads.append(Quad(origin + center, edge_u, edge_v, *kind))
    return quads


@dataclass(frozen=True)
class RandomView(WorldView):
    """The image, exact depth and pose of a random camera, with its intrinsics."""

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
        touches = (away < self._spheres[:, 3] + _THING_GAP_M).any()
        return not touches and _in_the_open(self._plan, place)


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
