"""From a frame to a label that can be believed: what is sent, what is kept, what is rejected.

With a real server, and where it matters a real frame log and labeller; no ROS.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from helpers.children import wait_until
from helpers.stores import log, view
from helpers.teachers import StubBackend, client_of, depth_request, ramp, serving
from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.errors import BadImageError
from tiekd_ros.core.images import decode_image, encode_jpeg, encode_mask_png, shrink_map
from tiekd_ros.core.labels import StudentDepth
from tiekd_ros.core.launch_options import free_port
from tiekd_ros.framelog import (
    Label,
    LabellerSettings,
    LabelRejected,
    LoggedFrame,
    TeacherUnavailable,
)
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.errors import (
    BackendRefusal,
    RelativeTeacherError,
    TeacherFailedError,
    TeacherRefusedError,
)
from tiekd_ros.teacher.label_source import (
    LocalTeacher,
    TeacherLabelSource,
    UploadSettings,
    fit_for_upload,
    mirrored,
)
from tiekd_ros.teacher.protocol import AnswerChecks, DepthAnswer, DepthRequest, TeacherIdentity
from tiekd_ros.teacher.trust import LabelJudge, TrustSettings

WIDTH, HEIGHT = 160, 120  # of `view`
LABEL = ramp(WIDTH, HEIGHT)
INVALID = np.zeros((HEIGHT, WIDTH), bool)
INVALID[40:] = True


def frame(seed: int = 0, frame_id: int = 1, invalid_mask_png: bytes | None = None) -> LoggedFrame:
    jpeg = encode_jpeg(view(seed))
    return LoggedFrame(frame_id, seed, "camera", jpeg, WIDTH, HEIGHT, None, invalid_mask_png)


def client_for(url: str, **settings: Any) -> TeacherClient:
    return TeacherClient(ClientSettings(url=url, timeout_s=5.0, **settings))


def source_of(client: TeacherClient, **trust: Any) -> TeacherLabelSource:
    """Return a source that compares labels with those before from the third on."""
    settings = TrustSettings(**{"history": 10, "min_history": 2, "settle": 0, **trust})
    return TeacherLabelSource(client, judge=LabelJudge(settings))


def rejection(source: TeacherLabelSource, of: LoggedFrame) -> LabelRejected:
    with pytest.raises(LabelRejected) as rejected:
        source.label(of)
    return rejected.value


@pytest.fixture
def backend() -> StubBackend:
    return StubBackend(LABEL)


@pytest.fixture
def client(backend: StubBackend) -> Iterator[TeacherClient]:
    with serving(backend) as url, client_for(url) as opened:
        yield opened


def test_image_and_label_travel_and_stay_at_the_size_that_is_of_use(backend, client):
    sizes = []

    def answer(image: np.ndarray, request: Any) -> np.ndarray:
        sizes.append(image.shape)
        return LABEL

    backend.answer = answer
    source = TeacherLabelSource(client, upload=UploadSettings(max_side=80), max_side=40)
    label = source.label(frame())
    assert sizes == [(60, 80, 3)]
    assert backend.requests[0].max_depth_side == 40
    assert label.depth.shape == (30, 40)
    assert (label.teacher_name, label.teacher_version) == ("stub", "7")
    assert client.traffic.snapshot().bytes_down < 30 * 40 * 2 + 300


def test_each_rejection_has_a_reason_of_its_own(backend, client):
    sparse = np.full_like(LABEL, np.nan)
    sparse[::8, ::8] = LABEL[::8, ::8]
    for answer, reason in (
        (LABEL * np.float32(1000), "label_range"),
        (np.full_like(LABEL, np.inf), "label_range"),
        (-LABEL, "label_range"),
        (np.zeros_like(LABEL), "label_unknown"),
        (sparse, "label_unknown"),
        (np.full_like(LABEL, 2), "label_constant"),
        (ramp(120, 160), "label_shape"),
        (LABEL[None], "answer_broken"),
        (BackendRefusal("never seen"), "teacher_refused"),
    ):
        backend.answer = answer
        rejected = rejection(TeacherLabelSource(client), frame())
        assert rejected.reason == reason
        assert len(rejected.detail) >= 10
    backend.answer = sparse  # where the checks say so
    TeacherLabelSource(client, checks=AnswerChecks(min_known_share=0.001)).label(frame())


def test_a_frame_that_cannot_be_read_is_rejected_and_not_sent(backend, client):
    damaged = LoggedFrame(1, 0, "camera", frame().jpeg[:40], WIDTH, HEIGHT, None)
    rejected = rejection(TeacherLabelSource(client), damaged)
    assert (rejected.reason, rejected.asked) == ("image_unreadable", False)
    assert backend.requests == []
    rejected = rejection(TeacherLabelSource(client), frame(invalid_mask_png=b"none"))
    assert rejected.reason == "image_unreadable"


def test_a_frame_is_given_up_that_breaks_the_teacher_while_others_do_not(backend, client):
    backend.answer = RuntimeError("out of memory")  # on all
    source = TeacherLabelSource(client)
    for number in range(12):
        with pytest.raises(TeacherFailedError):
            source.label(frame(number % 2, 1 + number % 2))
    backend.answer = lambda image, request: LABEL if request.stamp_ns else RuntimeError("no")
    source = TeacherLabelSource(client)
    for other in (2, 3):
        with pytest.raises(TeacherFailedError):
            source.label(frame(0, 1))
        source.label(frame(other, other))
    rejected = rejection(source, frame(0, 1))
    assert (rejected.reason, rejected.asked, rejected.teacher) == ("teacher_broke", True, "stub 7")


def test_a_teacher_that_is_away_or_not_the_pinned_one_leaves_frames_waiting(backend):
    with serving(backend) as url:
        for settings, words in (
            ({"url": f"127.0.0.1:{free_port()}"}, "is it running"),
            ({"url": url, "pin": "another"}, "pin is 'another'"),
        ):
            with (
                client_for(**settings) as client,
                pytest.raises(TeacherUnavailable, match=words),
            ):
                TeacherLabelSource(client).label(frame())


def test_a_backend_in_this_process_is_asked_as_a_server_is(backend):
    source = TeacherLabelSource(LocalTeacher(backend))
    label = source.label(frame())
    np.testing.assert_array_equal(label.depth, LABEL)
    assert backend.requests[0].image == b""
    backend.answer = np.where(np.isnan(LABEL), np.float32(0), LABEL)
    assert np.isnan(source.label(frame()).depth[0, 0])
    backend.answer = BackendRefusal("never seen")
    assert rejection(source, frame()).reason == "teacher_refused"
    backend.answer = ValueError("broken")
    with pytest.raises(TeacherFailedError, match="ValueError: broken"):
        source.label(frame())
    with pytest.raises(RelativeTeacherError, match="metric one"):
        LocalTeacher(StubBackend(identity=TeacherIdentity("relative", "1", metric=False)))


# Labels that are compared with others.


def test_the_student_sees_the_whole_image_at_the_labels_size(client):
    asked = []

    def student(image: bytes, size: tuple[int, int]) -> StudentDepth:
        asked.append((decode_image(image).shape, size))
        return StudentDepth(np.full(size, 100.0, np.float32), "000001", 0.1, 200.0)

    source = TeacherLabelSource(
        client,
        judge=LabelJudge(TrustSettings(history=10, min_history=2, settle=0)),
        upload=UploadSettings(max_side=80),
        max_side=40,
        student_depth=student,
    )
    for number in range(2):
        source.label(frame(number))
    rejected = rejection(source, frame(2))
    assert rejected.reason == "label_against_student"
    assert "000001" in rejected.detail
    assert asked == [((HEIGHT, WIDTH, 3), (30, 40))] * 3
    assert TeacherLabelSource(client, student_depth=lambda image, size: None).label(frame())


def test_a_teacher_that_says_the_same_of_the_mirrored_image_is_caught(backend, client):
    source = source_of(client, max_flip_difference=0.1)
    assert rejection(source, frame()).reason == "label_flip"
    backend.answer = lambda image, request: LABEL if len(backend.requests) % 2 else LABEL[:, ::-1]
    assert source.label(frame()).depth.shape == (HEIGHT, WIDTH)
    assert len(backend.requests) == 4


def test_a_teacher_that_refuses_mirrored_images_is_judged_by_the_rest(backend, client, caplog):
    source = source_of(client, max_flip_difference=0.1)
    scale = 1.0
    backend.answer = lambda image, request: (
        LABEL * np.float32(scale) if len(backend.requests) % 2 else BackendRefusal("unknown image")
    )
    for number in range(3):
        assert source.label(frame(number)).depth.shape == (HEIGHT, WIDTH)
    assert len(backend.requests) == 6
    (said,) = [line for line in caplog.messages if "mirrored" in line]
    assert "stub 7" in said
    assert "unknown image" in said
    assert "set trust.max_flip_difference to 0" in said
    scale = 50.0
    assert rejection(source, frame(3)).reason == "label_scale_jump"
    backend.answer = LABEL  # mirrored alike, which is asked and looked at again
    assert rejection(source, frame(4)).reason == "label_flip"


def test_a_label_is_judged_and_kept_without_what_the_camera_did_not_see(backend, client):
    source = source_of(client)
    for number in (1, 2):
        source.label(frame(number))
    backend.answer = np.where(INVALID, LABEL * np.float32(10), LABEL)
    assert rejection(source, frame(3)).reason == "label_scale_jump"
    label = source.label(frame(4, invalid_mask_png=encode_mask_png(INVALID)))
    assert (np.isnan(label.depth) == (INVALID | np.isnan(LABEL))).all()
    backend.answer = np.where(INVALID, LABEL, np.float32(np.nan))
    assert (
        rejection(source, frame(5, invalid_mask_png=encode_mask_png(INVALID))).reason
        == "label_unknown"
    )


# With frame log and labeller.


def test_rejections_are_counted_by_reason_in_the_store_and_in_the_labeller(
    backend, client, store, labeller_of
):
    def answer(image: np.ndarray, request: Any) -> Any:
        second = request.stamp_ns // 10**9
        return {2: np.full_like(LABEL, 2), 3: BackendRefusal("no")}.get(second, LABEL)

    backend.answer = answer
    log(store, 1, 2, 3, 4)
    labeller = labeller_of(TeacherLabelSource(client).label, LabellerSettings(in_flight=1))
    wait_until(lambda: labeller.snapshot().labelled == 2)
    state = labeller.snapshot()
    reasons = {"label_constant": 1, "teacher_refused": 1}
    assert state.refusals == store.stats().rejected == reasons
    assert state.refused_in_a_row == 0
    assert "no" in state.last_refusal


@pytest.mark.parametrize("answer", [np.full_like(LABEL, 2), BackendRefusal("no"), RuntimeError()])
def test_a_sick_teacher_costs_a_few_frames_and_the_next_one_labels_the_rest(
    backend, client, store, labeller_of, answer
):
    backend.answer = answer
    log(store, *range(1, 16))
    quick = LabellerSettings(in_flight=1, retry_s=0.01, max_retry_s=0.02)
    labeller = labeller_of(TeacherLabelSource(client).label, quick)
    wait_until(lambda: labeller.snapshot().failed > 30)
    assert labeller.snapshot().link == "down"
    assert len(store.unlabelled(20)) >= 15 - quick.suspect_after
    backend.answer = LABEL
    wait_until(lambda: not store.unlabelled(1))
    assert sum(store.stats().rejected.values()) <= quick.suspect_after
    assert labeller.snapshot().labelled >= 15 - quick.suspect_after


def test_labels_of_the_last_run_are_read_back_oldest_first(store):
    log(store, *range(1, 5))
    for frame_id in (1, 3, 4):
        label = Label(LABEL * np.float32(frame_id), "stub", str(frame_id))
        store.put_label(frame_id, label)
    labels = store.newest_labels(2)
    assert [(label.teacher_name, label.teacher_version) for label in labels] == [
        ("stub", "3"), ("stub", "4"),
    ]  # fmt: skip
    np.testing.assert_allclose(labels[1].depth, LABEL * 4, atol=1 / 256)
    assert store.newest_labels(0) == []


# What is sent.


def smooth(width: int, height: int) -> np.ndarray:
    """Return a picture as smooth as most of a real one, with some grain."""
    across = np.linspace(0, 200, width)[None, :, None] + np.zeros((height, 1, 3))
    grain = np.random.default_rng(0).normal(0, 4, (height, width, 3))
    return (across + grain).clip(0, 255).astype(np.uint8)


def request_of(image: np.ndarray, quality: int = 92) -> DepthRequest:
    camera = Intrinsics(500.0, 510.0, 319.5, 239.5)
    return DepthRequest(encode_jpeg(image, quality), camera, 7, "camera", 384)


def test_a_large_image_is_sent_at_the_size_that_the_teacher_uses_with_its_intrinsics():
    whole = request_of(smooth(640, 480))
    small = fit_for_upload(whole, UploadSettings(max_side=320), 92)
    assert decode_image(small.image).shape == (240, 320, 3)
    assert len(small.image) < len(whole.image) / 3
    assert small.intrinsics == whole.intrinsics.scaled(0.5, 0.5)
    assert (small.stamp_ns, small.frame_id, small.max_depth_side) == (7, "camera", 384)
    seen, wanted = decode_image(small.image), decode_image(whole.image)[::2, ::2]
    assert np.abs(seen.astype(int) - wanted).mean() < 4
    odd = request_of(smooth(641, 359))
    small = fit_for_upload(odd, UploadSettings(max_side=300), 92)
    assert decode_image(small.image).shape == (168, 300, 3)
    assert small.intrinsics == odd.intrinsics.scaled(300 / 641, 168 / 359)
    small = fit_for_upload(replace(odd, intrinsics=None), UploadSettings(max_side=100), 92)
    assert small.intrinsics is None
    with pytest.raises(BadImageError):
        fit_for_upload(replace(odd, image=b"\xff\xd8\xff garbage"), UploadSettings(), 92)


def test_an_image_of_the_right_size_is_sent_as_it_was_logged_unless_a_lower_quality_saves_bytes():
    for logged, quality in ((90, 90), (92, 90), (92, 83), (80, 95)):
        whole = request_of(smooth(320, 240), quality=logged)
        for max_side in (320, 0):
            settings = UploadSettings(max_side=max_side, jpeg_quality=quality)
            assert fit_for_upload(whole, settings, logged) is whole
    for logged, quality, most in ((95, 60, 0.5), (92, 82, 0.8)):
        whole = request_of(smooth(320, 240), quality=logged)
        less = fit_for_upload(whole, UploadSettings(max_side=0, jpeg_quality=quality), logged)
        assert len(less.image) < most * len(whole.image)
        assert less.intrinsics == whole.intrinsics
        assert decode_image(less.image).shape == (240, 320, 3)
    smaller = request_of(smooth(320, 240), quality=30)  # than was said: it does not grow
    assert fit_for_upload(smaller, UploadSettings(max_side=0, jpeg_quality=80), 92) is smaller


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


def test_a_server_sends_no_larger_depth_than_is_asked_for():
    backend = StubBackend(DepthAnswer(ramp(640, 480), np.ones((480, 640), np.float32)))
    whole = depth_request(smooth(640, 480))
    with client_of(backend) as client:
        small = client.infer(replace(whole, max_depth_side=320))
        assert client.traffic.snapshot().bytes_down < 320 * 240 * 4 + 300
        assert client.infer(whole).depth.shape == (480, 640)
        with pytest.raises(TeacherRefusedError, match="max_depth_side"):
            client.infer(replace(whole, max_depth_side=-5))
    assert small.depth.shape == small.confidence.shape == (240, 320)
    assert [request.max_depth_side for request in backend.requests] == [320, 0]
