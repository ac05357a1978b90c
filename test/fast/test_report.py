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


def test_near_is_bright_far_is_dark_and_unknown_is_grey():
    depth = np.array([[-math.inf, 0.1, 1.0, 2.0, 3.0, 4.0, 100.0, math.inf, math.nan]], np.float32)
    (colours,) = colour_depth(depth, 1.0, 4.0)
    assert (colours.shape, colours.dtype) == ((9, 3), np.uint8)
    assert (np.diff(colours[2:6].astype(float).sum(-1)) < 0).all()
    assert (colours[:3] == colours[2]).all()  # beyond the ends
    assert (colours[5:8] == colours[5]).all()
    assert tuple(colours[8]) == GREY


def test_no_error_is_white_a_large_one_red_and_an_unknown_one_grey():
    truth = np.array([[2.0, 2.0, 2.0, 2.0, math.nan, 2.0]], np.float32)
    predicted = np.array([[2.0, 2.4, 9.0, math.inf, 2.0, math.nan]], np.float32)
    none, some, large, infinite, no_truth, no_answer = colour_error(predicted, truth, 1.0)[0]
    assert tuple(none) == (255, 255, 255)
    assert tuple(large) == tuple(infinite) == (165, 15, 21)
    assert large.sum() < some.sum() < none.sum()
    assert tuple(no_truth) == tuple(no_answer) == GREY


def row(**changes) -> SheetRow:
    image = np.full((48, 64, 3), 90, np.uint8)
    depth = np.full((48, 64), 2.0, np.float32)
    return SheetRow(**{"image": image, "depths": [None, depth], "truth": depth + 0.1, **changes})


def test_a_sheet_has_a_row_a_view_and_a_column_a_map():
    def sheet(*rows: SheetRow, columns: str = "ab") -> np.ndarray:
        return contact_sheet(rows, columns, "Title", "subtitle")

    small, tall = sheet(row()), sheet(row(), row(), row())
    assert small.dtype == np.uint8
    assert tall.shape[0] - small.shape[0] == 2 * (300 * 48 // 64 + 6)
    assert tall.shape[1] == small.shape[1]
    assert sheet(row(depths=[None] * 3), columns="abc").shape[1] - small.shape[1] == 306
    # Unknown truth, missing depth and other sizes do no harm.
    unknown = np.full((48, 64), np.nan, np.float32)
    half = np.full((24, 32), 2.0, np.float32)
    mixed = sheet(row(truth=unknown), row(depths=[None, None]), row(depths=[None, half]))
    assert mixed.std() > 5
    sheet(row(truth=unknown))


# Point clouds: what is near hides what is far, and metres are metres.

RED, BLUE = (200, 20, 20), (20, 20, 200)


def wall(metres: float, half_m: float = 1.0, n: int = 300) -> np.ndarray:
    """Return points of a square wall before the camera, (n, n, 3)."""
    side = np.linspace(-half_m, half_m, n, dtype=np.float32)
    return np.stack([*np.meshgrid(side, side), np.full((n, n), metres, np.float32)], axis=-1)


def drawn(*walls: tuple[np.ndarray, tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Draw walls of one colour each; return the views from beside and from above."""
    xyz = np.stack([points for points, _ in walls])
    rgb = np.stack([np.broadcast_to(np.uint8(colour), points.shape) for points, colour in walls])
    picture = draw_points(xyz, rgb)
    assert (picture.shape, picture.dtype) == ((480, 1280, 3), np.uint8)
    return picture[:, :640], picture[:, 640:]


def places(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Return (row, column) of the pixels of this colour, (N, 2)."""
    return np.argwhere((picture == colour).all(axis=-1))


def test_a_nearer_wall_hides_the_one_behind_it():
    near, far = wall(2.0), wall(2.1, 0.5)
    beside, above = drawn((far, BLUE), (near, RED), (far[::-1], BLUE))
    assert len(places(beside, RED)) > 20_000
    assert len(places(beside, BLUE)) == 0
    assert len(places(above, BLUE)) > 50  # from above both are seen


def test_from_above_distances_are_to_scale_and_left_is_left():
    left = wall(4.0, 0.1) - np.float32([1.0, 0, 0])
    right = wall(2.0, 0.1) + np.float32([1.0, 0, 0])
    _, above = drawn((left, RED), (right, BLUE))
    red, blue = places(above, RED).mean(axis=0), places(above, BLUE).mean(axis=0)
    camera = np.array([450, 320])
    assert red[1] < camera[1] < blue[1]
    far, near = camera - red, camera - blue
    assert abs(far[0] / near[0] - 2) < 0.05  # 4 m and 2 m
    assert abs(far[0] / far[1] - 4) < 0.1  # 4 m ahead, 1 m to the left


def test_from_above_what_is_higher_than_the_camera_hides_nothing():
    floor, ceiling = wall(3.0, 0.4), wall(3.0, 0.4)
    floor[..., 1], ceiling[..., 1] = 1.0, -1.0
    beside, above = drawn((floor, RED), (ceiling, BLUE))
    assert len(places(above, RED)) > 50
    assert len(places(above, BLUE)) == 0
    assert len(places(beside, BLUE)) > 50


def test_points_without_depth_are_left_out_and_no_points_at_all_is_said():
    points = wall(2.0)
    points[:150] = np.nan
    beside, _ = drawn((points, RED))
    assert len(places(beside, RED)) > 0
    points[:] = np.nan
    none, _ = drawn((points, RED))
    assert len(places(none, RED)) == 0
    assert (none < 100).any()  # the text
    one = np.float32([[[0, 0, 3]]])
    assert all(len(places(view, RED)) > 0 for view in drawn((one, RED)))
