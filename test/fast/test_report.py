"""Pictures for people: colours that mean what they say, and a sheet with all its cells."""

import math

import numpy as np

from tiekd_ros.report.pictures import SheetRow, colour_depth, colour_error, contact_sheet

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
