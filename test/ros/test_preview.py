"""The preview: what its colours mean, and its range."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from helpers.students import BINS
from ros_helpers.messages import header
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.settings import setting_info
from tiekd_ros.nodes.common.conversions import image_to_rgb
from tiekd_ros.nodes.common.settings import DepthSettings
from tiekd_ros.nodes.depth.preview import (
    UNKNOWN,
    PreviewCanvas,
    describe_range,
    preview_range,
    read_range,
    with_scale,
)

(COLORMAPS,) = (
    setting_info(field).choices
    for field in dataclasses.fields(DepthSettings)
    if field.name == "preview_colormap"
)


def colours(depth: list[float], ends: tuple[float, float] = (1.0, 5.0)) -> np.ndarray:
    values = np.array([depth], np.float32)
    before = values.copy()
    with np.errstate(invalid="raise"):  # what NaN is as an integer, each processor decides
        rgb = image_to_rgb(PreviewCanvas().paint(values, header(), ends, "turbo"))
    np.testing.assert_array_equal(values, before)
    return rgb[0]


def test_near_is_red_far_is_blue_unknown_is_grey_and_beyond_the_ends_are_their_colours() -> None:
    near, far, unknown = colours([1.2, 4.8, np.nan]).astype(int)
    assert near[0] > 2 * max(near[1:])
    assert far[2] > 2 * max(far[:2]) or far[2] > far[0] + 60
    assert tuple(unknown) == UNKNOWN
    shown = colours([1.0, 0.2, -np.inf, 5.0, 70.0, np.inf])
    assert (shown[:3] == shown[0]).all()
    assert (shown[3:] == shown[3]).all()
    assert (shown[0] != shown[3]).any()


def test_no_depth_looks_unknown_in_any_colour_map() -> None:
    depth = np.linspace(1, 5, 1000, dtype=np.float32)[None]
    for colormap in COLORMAPS:
        shown = image_to_rgb(PreviewCanvas().paint(depth, header(), (1.0, 5.0), colormap))
        assert np.abs(shown.astype(int) - UNKNOWN).sum(axis=-1).min() > 12
        assert len(np.unique(shown[0], axis=0)) > 200


def test_the_previews_range_is_that_of_the_depth_unless_it_is_chosen() -> None:
    assert preview_range(DepthSettings(), BINS) == (BINS.min_depth_m, BINS.max_depth_m)
    cut = DepthSettings(min_range_m=0.5, max_range_m=4.0)
    assert preview_range(cut, BINS) == (0.5, 4.0)
    assert preview_range(DepthSettings(preview_min_m=1.0, preview_max_m=3.0), BINS) == (1.0, 3.0)
    near, far = preview_range(DepthSettings(preview_min_m=50.0), BINS)  # beyond the student's range
    assert near < far
    with pytest.raises(InvalidSettingError, match=r"preview_max_m must be greater .* 3 m .* 2 m"):
        DepthSettings(preview_min_m=3.0, preview_max_m=2.0)


@pytest.mark.parametrize("width", [32, 640])
def test_the_scale_shows_the_colours_of_the_depths_below_the_picture(width: int) -> None:
    picture = np.full((20, width, 3), 77, np.uint8)
    sheet = with_scale(picture, 1.0, 5.0, "turbo")
    np.testing.assert_array_equal(sheet[:20, :width], picture)
    bar = sheet[24]
    expected = colours([1.0, 3.0, 5.0]).astype(int)
    shown = bar[[0, len(bar) // 2, -1]].astype(int)
    np.testing.assert_allclose(shown, expected, atol=4)
    ink = (sheet[36:] < 100).all(axis=-1).any(axis=0)
    third = len(ink) // 3
    assert all(part.any() for part in (ink[:third], ink[third : 2 * third], ink[2 * third :]))


def test_what_the_preview_shows_can_be_read_again() -> None:
    assert read_range(describe_range(0.25, 12.5, "viridis")) == (0.25, 12.5, "viridis")
    assert read_range("nothing yet") is None
