"""Image and depth codecs: exact where they promise it, and clear about what they refuse."""

import cv2
import numpy as np
import pytest

from tiekd_ros.core.errors import BadDepthError, BadImageError
from tiekd_ros.core.images import (
    check_rgb,
    decode_depth_png,
    decode_image,
    decode_share_png,
    encode_depth_png,
    encode_jpeg,
    encode_png,
    encode_share_png,
    resize_depth,
    thumbnail,
    thumbnail_distances,
)


def test_colours_keep_their_order_through_jpeg():
    image = np.zeros((32, 48, 3), np.uint8)
    image[..., 0] = 250  # red
    decoded = decode_image(encode_jpeg(image))
    assert decoded.shape == image.shape
    assert decoded[..., 0].mean() > 240
    assert decoded[..., 2].mean() < 10


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_bytes_that_are_no_image_are_refused_with_their_number(data):
    with pytest.raises(BadImageError, match=f"{len(data)} bytes"):
        decode_image(data)
    with pytest.raises(BadDepthError, match=f"{len(data)} bytes"):
        decode_depth_png(data)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_an_array_that_is_no_rgb_image_is_refused_with_type_and_shape(array):
    with pytest.raises(BadImageError, match=str(array.dtype)) as caught:
        check_rgb(array)
    assert str(array.shape) in str(caught.value)


def test_depth_survives_storage_to_half_a_unit_and_unknown_stays_unknown():
    depth = np.random.default_rng(0).uniform(0.01, 250, (24, 32)).astype(np.float32)
    depth[0, :5] = np.nan, np.inf, -np.inf, -1.0, 256.1
    decoded = decode_depth_png(encode_depth_png(depth))
    assert np.isnan(decoded[0, :5]).all()
    rest = np.isfinite(decoded)
    assert rest.sum() == depth.size - 5
    assert np.abs(decoded - depth)[rest].max() <= 0.5 / 256 + 1e-6


def test_depth_in_other_units_is_read_by_its_scale():
    data = cv2.imencode(".png", np.array([[0, 1500]], np.uint16))[1].tobytes()
    np.testing.assert_array_equal(decode_depth_png(data, 1000.0), np.float32([[np.nan, 1.5]]))


def test_a_depth_png_of_8_bits_is_refused_with_the_way_out():
    data = cv2.imencode(".png", np.ones((4, 4), np.uint8))[1].tobytes()
    with pytest.raises(BadDepthError, match="save it as uint16"):
        decode_depth_png(data)


def test_depth_that_is_no_map_is_refused():
    with pytest.raises(BadDepthError, match=r"\(H, W\), got \(2, 2, 1\)"):
        encode_depth_png(np.ones((2, 2, 1), np.float32))


def test_thumbnails_of_one_view_are_nearer_than_those_of_two():
    rng = np.random.default_rng(0)
    image, other = rng.integers(0, 256, (2, 6, 8, 3), np.uint8).repeat(20, 1).repeat(20, 2)
    again = decode_image(encode_jpeg(image))
    small = thumbnail(image)
    assert small.shape == (24, 32)
    assert small.dtype == np.float32
    same, different = thumbnail_distances(small, np.stack([thumbnail(again), thumbnail(other)]))
    assert same < 2 < 10 < different


def test_png_keeps_every_pixel():
    image = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode_image(encode_png(image)), image)


@pytest.mark.parametrize("max_depth_m", [80.0, 10.0])
def test_published_teacher_maps_are_truncated_shares_of_the_range(max_depth_m):
    depth = np.random.default_rng(0).uniform(0.01, max_depth_m, (24, 32)).astype(np.float32)
    depth[0, :6] = np.nan, np.inf, -1.0, 1.01 * max_depth_m, 0.0, max_depth_m
    data = encode_share_png(depth, max_depth_m)
    stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert stored[0, :6].tolist() == [0, 0, 0, 65535, 0, 65535]
    np.testing.assert_array_equal(
        stored[1:], np.floor(depth[1:] / np.float32(max_depth_m) * np.float32(65535))
    )
    decoded = decode_share_png(data, max_depth_m)
    assert np.isnan(decoded[0, [0, 1, 2, 4]]).all()
    assert decoded[0, 3] == max_depth_m  # beyond the range is far, not unknown
    lost = depth[1:] - decoded[1:]
    assert lost.min() > -1e-5
    assert lost.max() <= max_depth_m / 65535 + 1e-5


def test_an_8_bit_teacher_map_is_refused():
    data = cv2.imencode(".png", np.ones((4, 4), np.uint8))[1].tobytes()
    with pytest.raises(BadDepthError, match="16 bits, got uint8"):
        decode_share_png(data, 80.0)


def test_resizing_depth_invents_nothing_beside_what_is_unknown():
    depth = np.tile(np.arange(1, 9, dtype=np.float32), (4, 1))
    assert resize_depth(depth, 4, 8) is depth
    assert resize_depth(depth, 8, 16)[0, 1] == pytest.approx(1.25)
    depth[:, 3] = np.nan
    assert set(resize_depth(depth, 8, 16)[0, [4, 5, 8, 9]]) == {3.0, 5.0}
    assert np.isnan(resize_depth(depth, 8, 16)[0, 6:8]).all()
