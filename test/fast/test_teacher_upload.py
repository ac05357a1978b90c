"""What is sent to a teacher and what comes back: no more than is of use."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.teachers import METRIC, StubBackend, depth_request, ramp, serving
from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.errors import BadImageError
from tiekd_ros.core.images import decode_image, encode_jpeg, shrink_map
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.errors import TeacherRefusedError
from tiekd_ros.teacher.protocol import DepthAnswer, DepthRequest
from tiekd_ros.teacher.upload import UploadSettings, fit_for_upload, mirrored


def smooth(width: int, height: int) -> np.ndarray:
    """Return a picture as smooth as most of a real one, with some grain."""
    across = np.linspace(0, 200, width)[None, :, None] + np.zeros((height, 1, 3))
    grain = np.random.default_rng(0).normal(0, 4, (height, width, 3))
    return (across + grain).clip(0, 255).astype(np.uint8)


def request_of(image: np.ndarray, quality: int = 92) -> DepthRequest:
    camera = Intrinsics(500.0, 510.0, 319.5, 239.5)
    return DepthRequest(encode_jpeg(image, quality), camera, 7, "camera", 384)


def test_a_large_image_is_sent_at_the_size_that_the_teacher_uses():
    whole = request_of(smooth(640, 480))
    small = fit_for_upload(whole, UploadSettings(max_side=320), 92)
    assert decode_image(small.image).shape == (240, 320, 3)
    assert len(small.image) < len(whole.image) / 3
    assert small.intrinsics == whole.intrinsics.scaled(0.5, 0.5)
    assert (small.stamp_ns, small.frame_id, small.max_depth_side) == (7, "camera", 384)
    seen, wanted = decode_image(small.image), decode_image(whole.image)[::2, ::2]
    assert np.abs(seen.astype(int) - wanted).mean() < 4


def test_an_odd_size_keeps_intrinsics_that_fit_the_image():
    whole = request_of(smooth(641, 359))
    small = fit_for_upload(whole, UploadSettings(max_side=300), 92)
    height, width = decode_image(small.image).shape[:2]
    assert (width, height) == (300, 168)
    assert small.intrinsics == whole.intrinsics.scaled(300 / 641, 168 / 359)


@pytest.mark.parametrize("max_side", [320, 0])
@pytest.mark.parametrize(("logged", "quality"), [(90, 90), (92, 90), (92, 83), (80, 95)])
def test_an_image_of_the_right_size_is_sent_as_it_was_logged(max_side, logged, quality):
    whole = request_of(smooth(320, 240), quality=logged)
    settings = UploadSettings(max_side=max_side, jpeg_quality=quality)
    assert fit_for_upload(whole, settings, logged) is whole


@pytest.mark.parametrize(("logged", "quality", "most"), [(95, 60, 0.5), (92, 82, 0.8)])
def test_a_much_lower_quality_is_sent_since_it_saves_bytes(logged, quality, most):
    whole = request_of(smooth(320, 240), quality=logged)
    less = fit_for_upload(whole, UploadSettings(max_side=0, jpeg_quality=quality), logged)
    assert len(less.image) < most * len(whole.image)
    assert less.intrinsics == whole.intrinsics
    assert decode_image(less.image).shape == (240, 320, 3)


def test_an_image_that_was_logged_smaller_than_was_said_does_not_grow():
    whole = request_of(smooth(320, 240), quality=30)
    assert fit_for_upload(whole, UploadSettings(max_side=0, jpeg_quality=80), 92) is whole


def test_an_image_without_intrinsics_stays_without():
    data = encode_jpeg(smooth(640, 480))
    small = fit_for_upload(DepthRequest(data, None, 0, ""), UploadSettings(max_side=100), 92)
    assert small.intrinsics is None


def test_a_damaged_image_is_named():
    with pytest.raises(BadImageError):
        fit_for_upload(DepthRequest(b"\xff\xd8\xff garbage", None, 0, ""), UploadSettings(), 92)


def test_a_mirror_exchanges_left_and_right_and_moves_the_principal_point():
    whole = request_of(smooth(640, 480))
    seen = mirrored(whole)
    assert seen.intrinsics == Intrinsics(500.0, 510.0, 319.5, 239.5)
    off_centre = mirrored(DepthRequest(whole.image, Intrinsics(500.0, 510.0, 300.0, 239.5), 0, ""))
    assert off_centre.intrinsics.cx == 339.0
    there, back = decode_image(whole.image), decode_image(seen.image)[:, ::-1]
    assert np.abs(there.astype(int) - back).mean() < 3


def test_a_map_is_shrunk_by_nearest_pixels_and_mixes_no_depths():
    depth = np.where(np.arange(64)[None, :] < 32, 1.0, 9.0).astype(np.float32).repeat(48, 0)
    small = shrink_map(depth, 16)
    assert small.shape == (12, 16)
    assert set(np.unique(small)) == {1.0, 9.0}
    assert (small[:, :8] == 1).all()
    assert shrink_map(depth, 64) is depth
    assert shrink_map(depth, 0) is depth
    assert shrink_map(np.ones((1, 400), np.float32), 20).shape == (1, 20)


def test_confidence_is_shrunk_with_its_depth():
    answer = DepthAnswer(ramp(), np.ones((48, 64), np.float32), METRIC).shrunk(32)
    assert answer.depth.shape == answer.confidence.shape == (24, 32)
    assert answer.teacher == METRIC


def test_a_server_sends_no_larger_depth_than_is_asked_for():
    backend = StubBackend(DepthAnswer(ramp(640, 480), np.ones((480, 640), np.float32)))
    image = depth_request(smooth(640, 480)).image
    with serving(backend) as url, TeacherClient(ClientSettings(url=url)) as client:
        small = client.infer(DepthRequest(image, None, 0, "", max_depth_side=320))
        assert client.traffic.snapshot().bytes_down < 320 * 240 * 4 + 300
        whole = client.infer(DepthRequest(image, None, 0, ""))
    assert small.depth.shape == small.confidence.shape == (240, 320)
    assert whole.depth.shape == (480, 640)
    assert [request.max_depth_side for request in backend.requests] == [320, 0]


def test_a_size_that_is_none_is_a_bad_request():
    bad = DepthRequest(depth_request().image, None, 0, "", max_depth_side=-5)
    with (
        serving(StubBackend()) as url,
        TeacherClient(ClientSettings(url=url)) as client,
        pytest.raises(TeacherRefusedError, match="max_depth_side"),
    ):
        client.infer(bad)
