"""The picture of a point cloud: what is near hides what is far, and metres are metres."""

import numpy as np

from tiekd_ros.report.point_view import draw_points

RED, BLUE = (200, 20, 20), (20, 20, 200)


def wall(metres: float, half_m: float = 1.0, n: int = 300) -> np.ndarray:
    """Return points of a square wall before the camera, (n, n, 3)."""
    side = np.linspace(-half_m, half_m, n, dtype=np.float32)
    return np.stack([*np.meshgrid(side, side), np.full((n, n), metres, np.float32)], axis=-1)


def coloured(points: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.broadcast_to(np.uint8(colour), points.shape)


def places(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Return (row, column) of the pixels of this colour, (N, 2)."""
    return np.argwhere((picture == colour).all(axis=-1))


def halves(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return picture[:, :640], picture[:, 640:]


def test_a_nearer_wall_hides_the_one_behind_it():
    near, far = wall(2.0), wall(2.1, 0.5)
    xyz = np.stack([far, near, far[::-1]])
    rgb = np.stack([coloured(far, BLUE), coloured(near, RED), coloured(far, BLUE)])
    beside, above = halves(draw_points(xyz, rgb))
    assert len(places(beside, RED)) > 20_000
    assert len(places(beside, BLUE)) == 0
    assert len(places(above, BLUE)) > 50  # from above both are seen


def test_from_above_distances_are_to_scale_and_left_is_left():
    left = wall(4.0, 0.1) - np.float32([1.0, 0, 0])
    right = wall(2.0, 0.1) + np.float32([1.0, 0, 0])
    _, above = halves(
        draw_points(np.stack([left, right]), np.stack([coloured(left, RED), coloured(right, BLUE)]))
    )
    red, blue = places(above, RED).mean(axis=0), places(above, BLUE).mean(axis=0)
    camera = np.array([450, 320])
    assert red[1] < camera[1] < blue[1]
    far, near = camera - red, camera - blue
    assert abs(far[0] / near[0] - 2) < 0.05  # 4 m and 2 m
    assert abs(far[0] / far[1] - 4) < 0.1  # 4 m ahead, 1 m to the left


def test_from_above_what_is_higher_than_the_camera_hides_nothing():
    floor, ceiling = wall(3.0, 0.4), wall(3.0, 0.4)
    floor[..., 1], ceiling[..., 1] = 1.0, -1.0
    beside, above = halves(
        draw_points(
            np.stack([floor, ceiling]), np.stack([coloured(floor, RED), coloured(ceiling, BLUE)])
        )
    )
    assert len(places(above, RED)) > 50
    assert len(places(above, BLUE)) == 0
    assert len(places(beside, BLUE)) > 50


def test_points_without_depth_are_left_out_and_no_points_at_all_is_said():
    points = wall(2.0)
    points[:150] = np.nan
    half = draw_points(points, coloured(points, RED))
    assert half.shape == (480, 1280, 3)
    assert half.dtype == np.uint8
    points[:] = np.nan
    none = draw_points(points, coloured(points, RED))
    assert len(places(none, RED)) == 0
    assert (none < 100).any()  # the text


def test_one_point_alone_can_be_drawn():
    picture = draw_points(np.float32([[[0, 0, 3]]]), np.uint8([[RED]]))
    beside, above = halves(picture)
    assert len(places(beside, RED)) > 0
    assert len(places(above, RED)) > 0
