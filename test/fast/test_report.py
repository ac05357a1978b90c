"""Pictures for people: true colours, a sheet with all its cells, a point cloud to scale."""

import math

import numpy as np

from tiekd_ros.report.pictures import (
    SheetRow,
    colour_depth,
    colour_error,
    contact_sheet,
    draw_points,
)

GREY = (205, 205, 205)


def brightness(colours: np.ndarray) -> np.ndarray:
    return colours.astype(float).sum(-1)


def test_near_is_bright_far_is_dark_and_unknown_is_grey():
    depth = np.array([[1.0, 2.0, 3.0, 4.0, math.nan]], np.float32)
    colours = colour_depth(depth, 1.0, 4.0)
    assert colours.shape == (1, 5, 3)
    assert colours.dtype == np.uint8
    assert (np.diff(brightness(colours[0, :4])) < 0).all()
    assert tuple(colours[0, 4]) == GREY


def test_depth_beyond_the_ends_takes_the_ends_colours():
    depth = np.array([[-math.inf, 0.1, 1.0, 4.0, 100.0, math.inf]], np.float32)
    colours = colour_depth(depth, 1.0, 4.0)[0]
    assert (colours[:3] == colours[2]).all()
    assert (colours[3:] == colours[3]).all()


def test_no_error_is_white_and_a_large_one_red():
    truth = np.array([[2.0, 2.0, 2.0, math.nan, 2.0]], np.float32)
    predicted = np.array([[2.0, 2.4, 9.0, 2.0, math.nan]], np.float32)
    none, some, large, no_truth, no_answer = colour_error(predicted, truth, 1.0)[0]
    assert tuple(none) == (255, 255, 255)
    assert tuple(large) == (165, 15, 21)
    assert large.sum() < some.sum() < none.sum()
    assert tuple(no_truth) == tuple(no_answer) == GREY


def test_the_error_of_an_infinite_depth_is_large():
    colours = colour_error(np.float32([[np.inf]]), np.float32([[2.0]]), 1.0)
    assert tuple(colours[0, 0]) == (165, 15, 21)


def row(**changes) -> SheetRow:
    image = np.full((48, 64, 3), 90, np.uint8)
    depth = np.full((48, 64), 2.0, np.float32)
    return SheetRow(**{"image": image, "depths": [None, depth], "truth": depth + 0.1, **changes})


def test_a_sheet_has_a_row_a_view_and_a_column_a_map():
    small = contact_sheet([row()], ["round 1", "round 2"], "Title", "subtitle")
    tall = contact_sheet([row(), row(), row()], ["round 1", "round 2"], "Title", "subtitle")
    wide = contact_sheet([row(depths=[None] * 3)], ["a", "b", "c"], "Title", "subtitle")
    assert small.dtype == np.uint8
    assert tall.shape[0] - small.shape[0] == 2 * (300 * 48 // 64 + 6)
    assert tall.shape[1] == small.shape[1]
    assert wide.shape[1] - small.shape[1] == 306


def test_a_sheet_bears_unknown_truth_missing_depth_and_other_sizes():
    unknown = np.full((48, 64), np.nan, np.float32)
    half = np.full((24, 32), 2.0, np.float32)
    rows = [row(truth=unknown), row(depths=[None, None]), row(depths=[None, half])]
    sheet = contact_sheet(rows, ["round 1", "round 2"], "Title", "subtitle")
    assert sheet.std() > 5
    contact_sheet([row(truth=unknown)], ["round 1", "round 2"], "Title", "subtitle")


# Point clouds: what is near hides what is far, and metres are metres.

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
