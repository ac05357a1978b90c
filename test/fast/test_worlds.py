"""The synthetic world: exact depth, the same everywhere, a clear walk, views worth seeing."""

from __future__ import annotations

import hashlib
import threading
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pytest

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.worlds import IndoorWorld, WorldSettings, WorldView

SECOND = 1_000_000_000
PERIOD = 60 * SECOND
SEEDS = (0, 1)
DEPTH_TOLERANCE = 2e-7  # relative: one rounding to float32, and what the caster itself rounds
MIN_DEPTH_M = 0.2
MIN_CLEARANCE_M = 0.3
MAX_DEPTH_M = 14.0


@lru_cache(maxsize=len(SEEDS))
def world(seed: int) -> IndoorWorld:
    """Return one world a seed, without noise; it is never changed."""
    return IndoorWorld(WorldSettings(seed=seed, noise=0.0))


def digest(view: WorldView) -> str:
    """Return one hash of all that a view holds."""
    parts = view.image.tobytes() + view.depth.tobytes() + view.pose.tobytes()
    return hashlib.sha256(parts).hexdigest()


def cast(
    room: IndoorWorld, pose: npt.NDArray[np.float64], camera: Intrinsics, size: tuple[int, int]
) -> npt.NDArray[np.float64]:
    """Return depth (H, W) by meeting every pixel's ray with every rectangle, plane by plane.

    Where a ray meets an edge closely, rounding may decide otherwise than in the world.
    """
    width, height = size
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    rays = np.stack([(x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy, np.ones(x.shape)])
    rays = pose[:3, :3] @ rays.reshape(3, -1)  # (3, rays), depth 1 along the optical axis
    nearest = np.full(rays.shape[1], np.inf)
    scene = room._scene
    widths, heights = scene.right * scene.size[:, :1], scene.down * scene.size[:, 1:]
    for origin, right, down in zip(scene.origin, widths, heights, strict=True):
        towards = np.cross(down, right)
        slope = towards @ rays
        with np.errstate(divide="ignore", invalid="ignore"):
            depth = towards @ (origin - pose[:3, 3]) / slope
            spot = pose[:3, 3] + depth[:, None] * rays.T - origin
            u, v = spot @ right / (right @ right), spot @ down / (down @ down)
        inside = (u >= -1e-9) & (u <= 1 + 1e-9) & (v >= -1e-9) & (v <= 1 + 1e-9)
        hit = inside & (slope < 0) & (depth > 0)
        nearest[hit] = np.minimum(nearest[hit], depth[hit])
    return nearest.reshape(height, width)


@pytest.mark.parametrize("seed", SEEDS)
def test_depth_equals_that_of_an_independent_ray_caster(seed: int) -> None:
    default = IndoorWorld.default_intrinsics(60, 45)
    for share, size, camera, most in (
        (0.07, (60, 45), default, 0),
        (0.33, (60, 45), default, 0),
        (0.08, (80, 40), Intrinsics(61.0, 47.0, 30.2, 24.7), 1),
    ):
        view = world(seed).render(int(share * PERIOD), *size, camera)
        truth = cast(world(seed), view.pose, camera, size)
        error = np.abs(view.depth - truth) / truth
        assert (error > DEPTH_TOLERANCE).sum() <= most


def test_a_view_has_the_shapes_and_types_promised() -> None:
    view = world(0).render(0, 64, 48)
    assert view.image.shape == (48, 64, 3)
    assert view.image.dtype == np.uint8
    assert view.depth.shape == (48, 64)
    assert view.depth.dtype == np.float32
    assert np.allclose(view.pose[:3, :3].T @ view.pose[:3, :3], np.eye(3))
    assert np.linalg.det(view.pose[:3, :3]) == pytest.approx(1.0)
    assert np.array_equal(view.pose, world(0).pose(0))
    assert view.pose[2, 1] < -0.9, "the optical frame's y points down"


def test_threads_that_render_at_once_get_the_views_of_one_alone() -> None:
    times = [i * 7 * SECOND for i in range(4)]
    alone = [digest(world(1).render(t, 96, 72)) for t in times]
    together = [""] * len(times)

    def work(i: int) -> None:
        together[i] = digest(world(1).render(times[i], 96, 72))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(times))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_views_repeat_after_the_period_however_late() -> None:
    first = world(1).render(12_345_678_901, 64, 48)
    turns = 30_000_000  # about 1.8e18 ns, where a double's step is 256 ns
    for later in (12_345_678_901 + PERIOD, 12_345_678_901 + turns * PERIOD):
        assert digest(world(1).render(later, 64, 48)) == digest(first)


def test_one_millisecond_moves_the_camera_at_a_stamp_of_today() -> None:
    now = 1_800_000_000_123_456_789
    step = np.linalg.norm(world(0).pose(now + 1_000_000)[:3, 3] - world(0).pose(now)[:3, 3])
    early = now % PERIOD
    same = np.linalg.norm(world(0).pose(early + 1_000_000)[:3, 3] - world(0).pose(early)[:3, 3])
    assert step == same
    assert 1e-4 < step < 1.2e-3


@pytest.mark.parametrize("seed", SEEDS)
def test_the_walk_is_smooth_closed_and_at_walking_speed(seed: int) -> None:
    step_s = 0.1
    poses = np.array([world(seed).pose(i * SECOND // 10) for i in range(601)])
    assert np.array_equal(poses[0], poses[-1])
    velocity = np.diff(poses[:, :3, 3], axis=0) / step_s
    speed = np.linalg.norm(velocity, axis=1)
    assert 0.5 < speed.mean() < 1.0
    assert speed.max() < 1.2
    acceleration = np.linalg.norm(np.diff(velocity, axis=0), axis=1) / step_s
    assert acceleration.max() < 3.0
    turned = np.einsum("ni,ni->n", poses[1:, :3, 2], poses[:-1, :3, 2])
    assert np.degrees(np.arccos(np.clip(turned, -1, 1))).max() < 20


@pytest.mark.parametrize("seed", SEEDS)
def test_the_walk_visits_every_cell_and_keeps_clear_of_everything(seed: int) -> None:
    plan, scene = world(seed)._plan, world(seed)._scene
    spots = [world(seed).pose(i * PERIOD // 600)[:3, 3] for i in range(600)]
    assert {plan.cell_at(s) for s in spots} == set(range(len(plan.cells)))
    for spot in spots[::8]:
        rest = spot - scene.origin
        u = np.clip((rest * scene.right).sum(axis=1), 0, scene.size[:, 0])
        v = np.clip((rest * scene.down).sum(axis=1), 0, scene.size[:, 1])
        nearest = scene.origin + u[:, None] * scene.right + v[:, None] * scene.down
        assert np.linalg.norm(nearest - spot, axis=1).min() > MIN_CLEARANCE_M


@pytest.mark.parametrize("seed", SEEDS)
def test_views_are_deep_enough_and_well_exposed_all_along_the_walk(seed: int) -> None:
    for i in range(0, 60, 3):
        view = world(seed).render(i * PERIOD // 60, 80, 60)
        assert np.isfinite(view.depth).all()
        assert view.depth.min() >= MIN_DEPTH_M
        assert view.depth.max() <= MAX_DEPTH_M
        assert 50 < view.image.mean() < 205, f"second {i}"
        assert view.image.std() > 8, f"second {i}"
        assert (view.image.min(axis=2) >= 254).mean() < 0.35, f"second {i}"


def test_seeds_make_different_worlds() -> None:
    views = [world(seed).render(9 * SECOND, 64, 48) for seed in SEEDS]
    plans = {tuple(cell.high for cell in world(seed)._plan.cells) for seed in SEEDS}
    assert len(plans) == len(SEEDS)
    for i, one in enumerate(views):
        for other in views[:i]:
            assert np.abs(one.depth - other.depth).mean() > 0.1
            assert np.abs(one.image.astype(int) - other.image).mean() > 10


def test_noise_changes_the_image_alone_and_by_as_much_as_asked() -> None:
    noisy = IndoorWorld(WorldSettings(seed=0, noise=4.0)).render(3 * SECOND, 96, 72)
    clean = world(0).render(3 * SECOND, 96, 72)
    assert np.array_equal(noisy.depth, clean.depth)
    middle = (clean.image > 30) & (clean.image < 225)
    difference = noisy.image.astype(float)[middle] - clean.image[middle]
    assert difference.std() == pytest.approx(4.0, rel=0.1)
    assert abs(difference.mean()) < 0.2


def test_a_larger_picture_shows_the_same_scene() -> None:
    small, large = world(1).render(0, 80, 60), world(1).render(0, 240, 180)
    # of 3 x 3 pixels the middle one looks along the small picture's ray
    assert np.allclose(large.depth[1::3, 1::3], small.depth, rtol=1e-6)
    mean = large.image.reshape(60, 3, 80, 3, 3).mean(axis=(1, 3))
    assert np.abs(mean - small.image).mean() < 6


def test_one_pixel_can_be_drawn_and_what_cannot_is_refused() -> None:
    view = world(0).render(0, 1, 1)
    assert view.depth.shape == (1, 1)
    assert view.depth[0, 0] > MIN_DEPTH_M
    for size in ((0, 48), (64, -1), (64, 4097), (64.0, 48), (True, 48)):
        with pytest.raises(InvalidSettingError, match="between 1 and 4096, got"):
            world(0).render(0, *size)
        with pytest.raises(InvalidSettingError, match="between 1 and 4096, got"):
            IndoorWorld.default_intrinsics(*size)
    for values in ({"seed": -1}, {"period_s": 0.0}, {"noise": -1.0}):
        with pytest.raises(InvalidSettingError, match=next(iter(values))):
            WorldSettings.from_mapping(values)
