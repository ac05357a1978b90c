"""The synthetic backend answers for its own world and time, and for nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.teachers import serving
from tiekd_ros.core.images import encode_jpeg
from tiekd_ros.teacher.backends.synthetic import SyntheticSettings
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.errors import TeacherRefusedError
from tiekd_ros.teacher.protocol import DepthRequest
from tiekd_ros.worlds import IndoorWorld, WorldSettings

SEED = 3
WIDTH, HEIGHT = 160, 120
STAMP_NS = 1_790_000_012_345_678_901  # today's epoch: nanoseconds must survive the way
INTRINSICS = IndoorWorld.default_intrinsics(WIDTH, HEIGHT)


@pytest.fixture(scope="module")
def world():
    return IndoorWorld(WorldSettings(seed=SEED))


@pytest.fixture(scope="module")
def client():
    backend = SyntheticSettings(seed=SEED).build()
    with (
        serving(backend, depth_type="FP32") as url,
        TeacherClient(ClientSettings(url=url)) as client,
    ):
        yield client


def test_depth_is_the_worlds_own(world, client):
    view = world.render(STAMP_NS, WIDTH, HEIGHT, INTRINSICS)
    data = encode_jpeg(view.image, 80)
    answer = client.infer(DepthRequest(data, INTRINSICS, STAMP_NS, "camera"))
    np.testing.assert_allclose(answer.depth, view.depth, rtol=1e-4)
    identity = client.identity()
    assert (identity.name, identity.version, identity.metric) == ("synthetic", "seed-3", True)


def test_intrinsics_may_be_left_out_where_the_camera_used_the_default(world, client):
    view = world.render(STAMP_NS, WIDTH, HEIGHT)
    answer = client.infer(DepthRequest(encode_jpeg(view.image), None, STAMP_NS, "camera"))
    np.testing.assert_array_equal(answer.depth, view.depth)


def test_the_picture_of_another_time_is_refused(world, client):
    view = world.render(STAMP_NS + 5_000_000_000, WIDTH, HEIGHT, INTRINSICS)
    with pytest.raises(TeacherRefusedError, match=r"unknown image.*own stamp"):
        client.infer(DepthRequest(encode_jpeg(view.image), INTRINSICS, STAMP_NS, "camera"))


def test_the_picture_of_another_world_is_refused(client):
    view = IndoorWorld(WorldSettings(seed=SEED + 1)).render(STAMP_NS, WIDTH, HEIGHT)
    with pytest.raises(TeacherRefusedError, match="same seed"):
        client.infer(DepthRequest(encode_jpeg(view.image), None, STAMP_NS, "camera"))


def test_a_size_that_the_world_cannot_draw_is_refused(client):
    banner = np.zeros((1, 5000, 3), np.uint8)
    with pytest.raises(TeacherRefusedError, match="no such view"):
        client.infer(DepthRequest(encode_jpeg(banner), None, STAMP_NS, "camera"))
