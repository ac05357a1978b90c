"""The rays of pixels, where the lens bends them so much that OpenCV's inverse goes astray."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from sensor_msgs.msg import CameraInfo

from ros_helpers.messages import camera_info
from tiekd_ros.nodes.depth.points import rays_of

WIDTH, HEIGHT = 320, 240


def lens(d: list[float], focal: float) -> CameraInfo:
    """Return a lens in the middle of the image."""
    info = camera_info([focal, 0.0, 160.0, 0.0, focal, 120.0, 0.0, 0.0, 1.0], WIDTH, HEIGHT)
    info.distortion_model = "plumb_bob" if len(d) == 5 else "rational_polynomial"
    info.d = d
    return info


def seen_at(info: CameraInfo, rays: Any) -> Any:
    """Return where the lens puts rays (N, 2), in pixels."""
    points, nowhere = np.pad(rays, ((0, 0), (0, 1)), constant_values=1.0), np.zeros(3)
    k = np.array(info.k).reshape(3, 3)
    return cv2.projectPoints(points, nowhere, nowhere, k, np.array(info.d))[0].reshape(-1, 2)


RATIONAL = [14.4, 26.5, 0.0, 0.0, 6.9, 14.8, 33.1, 17.5]


@pytest.mark.parametrize(
    ("d", "focal", "without"),
    [
        ([-0.35, 0.12, 0.0, 0.0, 0.0], 150.0, (0.0, 0.0)),
        ([-0.3, 0.08, 0.0, 0.0, 0.0], 130.0, (0.0, 0.0)),
        ([-0.42, 0.19, 0.0, 0.0, -0.05], 130.0, (0.55, 0.62)),  # turns back 100 px off the middle
        (RATIONAL, 190.0, (0.0, 0.0)),
    ],
)
def test_the_lens_puts_each_ray_where_its_pixel_is_and_other_pixels_have_none(
    d: list[float], focal: float, without: tuple[float, float]
) -> None:
    info = lens(d, focal)
    found = rays_of(info)
    assert found is not None
    rays = np.stack([found.x, found.y], -1).reshape(-1, 2).astype(np.float64)
    pixels = np.indices((HEIGHT, WIDTH), np.float64)[::-1].reshape(2, -1).T
    known = ~np.isnan(rays).any(axis=1)
    assert without[0] <= 1 - known.mean() <= without[1]
    error = np.linalg.norm(seen_at(info, rays[known]) - pixels[known], axis=1)
    assert error.max() < 0.5
    assert np.median(error) < 0.1
    # A ray on the far side of where the model turns back would break the order.
    with np.errstate(invalid="ignore"):
        assert not (np.diff(found.x, axis=1) <= 0).any()
        assert not (np.diff(found.y, axis=0) <= 0).any()


def test_an_ordinary_lens_keeps_all_its_rays() -> None:
    info = lens([-0.2, 0.05, 0.001, -0.001, 0.0], 250.0)
    found = rays_of(info)
    assert found is not None
    assert not np.isnan(found.x).any()
