"""The organised point cloud: where its points lie, what is invalid, how it is read."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import cv2
import numpy as np
import pytest
from sensor_msgs.msg import PointCloud2, PointField

from ros_helpers.messages import K, camera_info, header
from tiekd_ros.core.camera import CameraModel, Intrinsics
from tiekd_ros.core.errors import BadImageError
from tiekd_ros.core.images import DepthMap, RgbImage
from tiekd_ros.nodes.depth import points as points_module
from tiekd_ros.nodes.depth.points import PointCanvas, rays_of, read_cloud

model_of = CameraModel.from_message
FX, FY, CX, CY = K[0], K[4], K[2], K[5]
WIDTH, HEIGHT = 96, 72


def plane(metres: float = 2.0, height: int = HEIGHT, width: int = WIDTH) -> DepthMap:
    return np.full((height, width), metres, np.float32)


def gradient(height: int = HEIGHT, width: int = WIDTH) -> RgbImage:
    """Return an image whose red is the column, green the row, and blue 200."""
    image = np.full((height, width, 3), 200, np.uint8)
    image[..., 0], image[..., 1] = np.arange(width), np.arange(height)[:, None]
    return image


def cloud_of(
    depth: DepthMap, image: RgbImage | None = None, model: CameraModel | None = None
) -> PointCloud2:
    image = gradient(*depth.shape) if image is None else image
    model = model_of(camera_info()) if model is None else model
    return PointCanvas().paint(depth, image, header(3), model)


def pixels_of(xyz: np.ndarray, matrix: list[float] = K) -> np.ndarray:
    """Return where a pinhole camera sees points, (..., 2) as (column, row)."""
    k = np.array(matrix).reshape(3, 3)
    seen = xyz.astype(np.float64) @ k.T
    return seen[..., :2] / seen[..., 2:]


def test_each_point_lies_on_its_pixels_ray_at_its_depth() -> None:
    depth = plane() + np.random.default_rng(0).random((HEIGHT, WIDTH), np.float32)
    cloud = read_cloud(cloud_of(depth))
    np.testing.assert_array_equal(cloud.xyz[..., 2], depth)
    rows, columns = np.indices(depth.shape)
    np.testing.assert_allclose(pixels_of(cloud.xyz), np.stack([columns, rows], -1), atol=1e-3)


def test_x_points_right_y_down_and_z_forward() -> None:
    xyz = read_cloud(cloud_of(plane())).xyz
    assert xyz[0, 0, 0] < 0 < xyz[0, -1, 0]
    assert xyz[0, 0, 1] < 0 < xyz[-1, 0, 1]
    assert (xyz[..., 2] > 0).all()


def test_each_point_has_its_pixels_colour_as_a_float_that_is_never_nan() -> None:
    image = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    image[:2] = 255
    image[0, :, 0] = np.arange(WIDTH) + 128  # these would be NaN with a fourth byte of 255
    cloud = cloud_of(plane(), image)
    np.testing.assert_array_equal(read_cloud(cloud).rgb, image)
    assert np.isfinite(np.frombuffer(cloud.data, "<f4")).all()


def test_the_message_is_organised_as_the_image_with_its_header() -> None:
    cloud = cloud_of(plane())
    assert cloud.header == header(3)
    assert (cloud.width, cloud.height) == (WIDTH, HEIGHT)
    assert (cloud.point_step, cloud.row_step) == (16, 16 * WIDTH)
    assert len(cloud.data) == cloud.row_step * cloud.height
    fields = [(f.name, f.offset, f.datatype, f.count) for f in cloud.fields]
    assert fields == [
        (name, 4 * i, PointField.FLOAT32, 1) for i, name in enumerate(("x", "y", "z", "rgb"))
    ]


def test_pixels_without_finite_depth_become_nan_points_and_the_cloud_is_not_dense() -> None:
    depth = plane()
    depth[5, 7:10] = np.nan, np.inf, -np.inf
    before = depth.copy()
    message = cloud_of(depth)
    assert not message.is_dense
    np.testing.assert_array_equal(
        np.isfinite(read_cloud(message).xyz).all(axis=-1), np.isfinite(depth)
    )
    np.testing.assert_array_equal(depth, before)


def test_a_cloud_of_finite_depth_is_dense_also_after_one_that_was_not() -> None:
    canvas = PointCanvas()
    holes, model = plane(), model_of(camera_info())
    holes[0] = np.nan
    assert canvas.paint(holes, gradient(), header(), model).is_dense is False
    second = canvas.paint(plane(), gradient(), header(), model)
    assert second.is_dense is True
    assert np.isfinite(read_cloud(second).xyz).all()


def test_depth_of_another_size_than_the_image_gets_the_scaled_calibration_and_image() -> None:
    info = model_of(camera_info()).resized(WIDTH // 2, HEIGHT // 2)
    cloud = read_cloud(cloud_of(plane(2.0, HEIGHT // 2, WIDTH // 2), gradient(), info))
    # The corner of the small image's first pixel is the corner of the large one's.
    assert cloud.xyz[0, 0, 0] == pytest.approx(2.0 * (0.5 - CX) / FX, rel=1e-5)
    assert cloud.xyz[0, 0, 1] == pytest.approx(2.0 * (0.5 - CY) / FY, rel=1e-5)
    np.testing.assert_allclose(cloud.rgb[0, :, 0], np.arange(WIDTH // 2) * 2 + 0.5, atol=0.51)


def test_one_canvas_follows_sizes_and_calibrations() -> None:
    canvas = PointCanvas()
    other = list(K)
    other[0] = 30.0
    for info, (height, width) in itertools.product(
        (camera_info(), camera_info(other)), ((72, 96), (36, 48), (72, 96))
    ):
        sized = model_of(info).resized(width, height)
        depth, image = plane(1.5, height, width), gradient(height, width)
        assert canvas.paint(depth, image, header(3), sized) == cloud_of(depth, image, sized)


def test_the_rays_of_a_calibration_with_nan_are_computed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[CameraModel] = []
    monkeypatch.setattr(points_module, "rays_of", lambda info: asked.append(info) or rays_of(info))
    canvas = PointCanvas()
    for _ in range(3):
        info = camera_info()
        info.p = [float("nan")] * 12
        assert canvas.paint(plane(), gradient(), header(), model_of(info)) is not None
    assert len(asked) == 1


def test_a_pixel_for_which_the_lens_has_no_ray_has_no_point() -> None:
    focal = 130.0 * WIDTH / 320  # in the corners this model turns back
    info = camera_info([focal, 0, WIDTH / 2, 0, focal, HEIGHT / 2, 0, 0, 1])
    info.d = [-0.42, 0.19, 0.0, 0.0, -0.05]
    rays = rays_of(model_of(info))
    without = np.isnan(rays.x)
    assert 0.1 < without.mean() < 0.9
    message = cloud_of(plane(), model=model_of(info))
    xyz = read_cloud(message).xyz
    assert np.isnan(xyz[without]).all()
    assert np.isfinite(xyz[~without]).all()
    assert not message.is_dense


def test_without_distortion_the_projection_matrix_counts_and_without_it_k() -> None:
    info = camera_info()
    info.p[0], info.p[2] = 120.0, 40.0
    rays = rays_of(model_of(info))
    np.testing.assert_allclose(rays.x, (np.arange(WIDTH) - 40.0) / 120.0, rtol=1e-6)
    info.p = [0.0] * 12
    rays = rays_of(model_of(info))
    np.testing.assert_allclose(rays.x, (np.arange(WIDTH) - CX) / FX, rtol=1e-6)
    np.testing.assert_allclose(rays.y[:, 0], (np.arange(HEIGHT) - CY) / FY, rtol=1e-6)


@pytest.mark.parametrize(
    ("model", "d"),
    [
        ("plumb_bob", [-0.2, 0.05, 0.001, -0.001, 0.0]),
        ("rational_polynomial", [-0.2, 0.05, 0.001, -0.001, 0.0, 0.02, 0.0, 0.0]),
        ("equidistant", [-0.05, 0.01, 0.0, 0.0]),
    ],
)
def test_points_of_an_image_with_distortion_are_seen_by_that_lens_at_their_pixels(
    model: str, d: list[float]
) -> None:
    info = camera_info()
    info.distortion_model, info.d = model, d
    xyz = read_cloud(cloud_of(plane(), model=model_of(info))).xyz.reshape(-1, 3).astype(np.float64)
    k, nowhere = np.array(K).reshape(3, 3), np.zeros(3)
    if model == "equidistant":
        seen, _ = cv2.fisheye.projectPoints(xyz[:, None], nowhere, nowhere, k, np.array(d))
    else:
        seen, _ = cv2.projectPoints(xyz[:, None], nowhere, nowhere, k, np.array(d))
    rows, columns = np.indices((HEIGHT, WIDTH))
    expected = np.stack([columns, rows], -1).reshape(-1, 2)
    np.testing.assert_allclose(seen[:, 0], expected, atol=0.02)
    without = pixels_of(xyz)
    assert np.abs(without - expected).max() > 2  # a pinhole camera would see them elsewhere


def test_an_uncalibrated_camera_has_no_points() -> None:
    wrong = ((0, 0.0), (0, -60.0), (4, 0.0), (0, np.nan), (2, np.nan), (5, np.inf))
    for (place, value), d in itertools.product(wrong, ([0.0] * 5, [0.1, 0.0, 0.0, 0.0, 0.0])):
        k = list(K)
        k[place] = value
        info = camera_info(k)
        info.d = d
        cloud = PointCanvas().paint(plane(), gradient(), header(), model_of(info))
        assert cloud is None, (place, value, d)


def test_reading_takes_fields_in_another_order_with_gaps_and_the_other_endianness() -> None:
    height, width, step = 2, 3, 32
    kind = np.dtype(
        {"names": ["rgb", "z", "y", "x"], "formats": [">f4"] * 4, "offsets": [0, 8, 12, 20],
         "itemsize": step}
    )  # fmt: skip
    points = np.zeros((height, width), kind)
    points["x"], points["y"], points["z"] = 1, 2, [[3, 4, 5], [6, 7, 8]]
    points["rgb"].view(">u4")[:] = 0x00102030
    rows = np.zeros((height, width * step + 8), np.uint8)  # rows with an end of their own
    rows[:, : width * step] = points.view(np.uint8).reshape(height, -1)
    message = PointCloud2(height=height, width=width, point_step=step, row_step=rows.shape[1])
    message.is_bigendian = True
    message.fields = [
        PointField(name=n, offset=kind.fields[n][1], datatype=PointField.FLOAT32, count=1)
        for n in kind.names
    ]
    message.data = rows.tobytes()
    cloud = read_cloud(message)
    assert cloud.xyz[1].tolist() == [[1, 2, 6], [1, 2, 7], [1, 2, 8]]
    assert (cloud.rgb == (0x10, 0x20, 0x30)).all()


def test_a_cloud_without_x_y_z_or_without_all_its_bytes_is_refused() -> None:
    cloud = cloud_of(plane())
    short = PointCloud2(
        height=cloud.height, width=cloud.width, fields=cloud.fields,
        point_step=cloud.point_step, row_step=cloud.row_step, data=bytes(100),
    )  # fmt: skip
    with pytest.raises(BadImageError, match=r"100 bytes .* truncated"):
        read_cloud(short)
    cloud.fields = cloud.fields[:2]
    with pytest.raises(BadImageError, match="has x, y"):
        read_cloud(cloud)


def test_the_points_can_be_read_by_sensor_msgs_py() -> None:
    point_cloud2 = pytest.importorskip(
        "sensor_msgs_py.point_cloud2", reason="comes with a ROS installation, not as a wheel"
    )
    depth = plane()
    depth[0, :10] = np.nan
    depth[1, :10] = np.inf
    image = gradient()
    cloud = cloud_of(depth, image)
    points = point_cloud2.read_points(cloud).reshape(HEIGHT, WIDTH)
    assert points.dtype.names == ("x", "y", "z", "rgb")
    np.testing.assert_array_equal(points["z"][2:], depth[2:])
    assert np.isnan(points["x"][:2, :10]).all()
    valid = point_cloud2.read_points(cloud, skip_nans=True)
    assert valid.shape == (HEIGHT * WIDTH - 20,)
    xyz = point_cloud2.read_points_numpy(cloud, ["x", "y", "z"], skip_nans=True)
    assert xyz.shape == (HEIGHT * WIDTH - 20, 3)
    assert np.isfinite(xyz).all()
    packed = valid["rgb"].view(np.uint32)
    np.testing.assert_array_equal((packed >> 16) & 0xFF, image[np.isfinite(depth)][:, 0])


# Rays, where the lens bends them so much that OpenCV's inverse does not converge.


def lens(d: list[float], focal: float) -> CameraModel:
    """Return a lens in the middle of the image."""
    pinhole = CameraModel.pinhole(Intrinsics(focal, focal, 160.0, 120.0), 320, 240)
    name = "plumb_bob" if len(d) == 5 else "rational_polynomial"
    return dataclasses.replace(pinhole, distortion_model=name, d=tuple(d))


def seen_at(info: CameraModel, rays: Any) -> Any:
    """Return where the lens puts rays (N, 2), in pixels."""
    points, nowhere = np.pad(rays, ((0, 0), (0, 1)), constant_values=1.0), np.zeros(3)
    k = np.array(info.k).reshape(3, 3)
    return cv2.projectPoints(points, nowhere, nowhere, k, np.array(info.d))[0].reshape(-1, 2)


@pytest.mark.parametrize(
    ("d", "focal", "without"),
    [
        ([-0.35, 0.12, 0.0, 0.0, 0.0], 150.0, (0.0, 0.0)),
        ([-0.3, 0.08, 0.0, 0.0, 0.0], 130.0, (0.0, 0.0)),
        ([-0.42, 0.19, 0.0, 0.0, -0.05], 130.0, (0.55, 0.62)),  # turns back 100 px off the middle
        ([14.4, 26.5, 0.0, 0.0, 6.9, 14.8, 33.1, 17.5], 190.0, (0.0, 0.0)),  # rational
        ([-0.2, 0.05, 0.001, -0.001, 0.0], 250.0, (0.0, 0.0)),  # an ordinary lens
    ],
)
def test_the_lens_puts_each_ray_where_its_pixel_is_and_other_pixels_have_none(
    d: list[float], focal: float, without: tuple[float, float]
) -> None:
    info = lens(d, focal)
    found = rays_of(info)
    rays = np.stack([found.x, found.y], -1).reshape(-1, 2).astype(np.float64)
    pixels = np.indices((240, 320), np.float64)[::-1].reshape(2, -1).T
    known = ~np.isnan(rays).any(axis=1)
    assert without[0] <= 1 - known.mean() <= without[1]
    error = np.linalg.norm(seen_at(info, rays[known]) - pixels[known], axis=1)
    assert error.max() < 0.5
    assert np.median(error) < 0.1
    # A ray on the far side of where the model turns back would break the order.
    with np.errstate(invalid="ignore"):
        assert not (np.diff(found.x, axis=1) <= 0).any()
        assert not (np.diff(found.y, axis=0) <= 0).any()
