"""The desk between frame log and teacher: what is sent, what is kept, and why something is not.

With a real server, a real frame log and the real labeller; no ROS.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.children import wait_until
from helpers.stores import view
from helpers.teachers import METRIC, StubBackend, free_port, ramp, serving
from tiekd_ros.core.images import decode_image, encode_jpeg
from tiekd_ros.framelog import (
    FrameLogSettings,
    FrameStore,
    Labeller,
    LabellerSettings,
    LoggedFrame,
    NotNow,
    Observation,
    RefusedLabel,
)
from tiekd_ros.nodes.companion.teaching import TeacherDesk
from tiekd_ros.teacher.backend import BackendRefusal
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.errors import TeacherUnreachableError, WrongTeacherError
from tiekd_ros.teacher.trust import LabelJudge, StudentView, TrustSettings
from tiekd_ros.teacher.upload import UploadSettings

WIDTH, HEIGHT = 160, 120  # of `view`
LABEL = ramp(WIDTH, HEIGHT)


def frame(seed: int = 0, frame_id: int = 1) -> LoggedFrame:
    return LoggedFrame(frame_id, seed, "camera", encode_jpeg(view(seed)), WIDTH, HEIGHT, None)


def client_for(url: str, **settings: Any) -> TeacherClient:
    quick = {"timeout_s": 5.0, "attempts": 1, "break_initial_s": 0.05, "break_max_s": 0.1}
    return TeacherClient(ClientSettings(url=url, **{**quick, **settings}))


def trusting(**settings: Any) -> LabelJudge:
    return LabelJudge(TrustSettings(**{"history": 10, "min_history": 2, "settle": 0, **settings}))


@pytest.fixture
def backend() -> StubBackend:
    return StubBackend(LABEL)


@pytest.fixture
def client(backend: StubBackend) -> Iterator[TeacherClient]:
    with serving(backend) as url, client_for(url) as opened:
        yield opened


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FrameStore]:
    settings = FrameLogSettings(min_interval_s=0.0, guard_share=0.0)
    with FrameStore(tmp_path / "frames.sqlite3", settings) as opened:
        yield opened


def test_image_and_label_travel_and_stay_at_the_size_that_is_of_use(backend, client):
    sizes = []

    def answer(image: np.ndarray, request: Any) -> np.ndarray:
        sizes.append(image.shape)
        return LABEL

    backend.answer = answer
    desk = TeacherDesk(client, upload=UploadSettings(max_side=80), max_side=40)
    label = desk(frame())
    assert sizes == [(60, 80, 3)]
    assert backend.requests[0].max_depth_side == 40
    assert label.depth.shape == (30, 40)
    assert (label.teacher_name, label.teacher_version) == ("stub", "7")
    assert client.traffic.snapshot().bytes_down < 30 * 40 * 2 + 300


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (LABEL * np.float32(1000), "label_range"),
        (np.zeros_like(LABEL), "label_unknown"),
        (np.full_like(LABEL, 2), "label_constant"),
        (ramp(120, 160), "label_shape"),
        (LABEL[None], "answer_broken"),
        (BackendRefusal("never seen"), "teacher_refused"),
    ],
)
def test_each_refusal_has_a_reason_of_its_own(backend, client, answer, reason):
    backend.answer = answer
    with pytest.raises(RefusedLabel) as refusal:
        TeacherDesk(client)(frame())
    assert refusal.value.reason == reason
    assert len(str(refusal.value)) > len(reason) + 10


def test_an_image_that_cannot_be_read_is_refused_and_not_sent(backend, client):
    damaged = LoggedFrame(1, 0, "camera", frame().jpeg[:40], WIDTH, HEIGHT, None)
    with pytest.raises(RefusedLabel, match="image_unreadable") as refusal:
        TeacherDesk(client)(damaged)
    assert not refusal.value.asked
    assert backend.requests == []


def test_a_frame_that_breaks_the_teacher_while_others_do_not_is_given_up(backend, client):
    backend.answer = lambda image, request: LABEL if request.stamp_ns else RuntimeError("no")
    desk = TeacherDesk(client)
    for other in (2, 3):
        with pytest.raises(TeacherUnreachableError):
            desk(frame(0, 1))
        desk(frame(other, other))
    with pytest.raises(RefusedLabel, match="teacher_broke") as refusal:
        desk(frame(0, 1))
    assert (refusal.value.asked, refusal.value.teacher) == (True, "stub 7")


def test_no_frame_is_given_up_for_a_teacher_that_breaks_on_all(backend, client):
    backend.answer = RuntimeError("out of memory")
    desk = TeacherDesk(client)
    for number in range(12):
        with pytest.raises(TeacherUnreachableError):
            desk(frame(number % 2, 1 + number % 2))


def test_an_open_circuit_says_when_to_come_back():
    with client_for(f"127.0.0.1:{free_port()}", break_after=1) as client:
        for _ in range(2):
            with pytest.raises(NotNow) as wait:
                TeacherDesk(client)(frame())
            assert 0 < wait.value.retry_in_s <= 0.1


def test_the_pinned_teachers_place_taken_by_another_leaves_frames_waiting(backend):
    with (
        serving(backend) as url,
        client_for(url, pin="somebody") as client,
        pytest.raises(WrongTeacherError),
    ):
        TeacherDesk(client)(frame())


def test_a_scale_jump_is_refused_and_the_next_good_label_kept(backend, client):
    desk = TeacherDesk(client, trusting())
    for number in range(2):
        desk(frame(number))
    backend.answer = LABEL * np.float32(50)
    with pytest.raises(RefusedLabel, match="label_scale_jump"):
        desk(frame(2))
    backend.answer = LABEL
    desk(frame(3))


def test_the_student_sees_the_whole_image_at_the_labels_size(client):
    asked = []

    def student(image: bytes, size: tuple[int, int]) -> StudentView:
        asked.append((decode_image(image).shape, size))
        return StudentView(np.full(size, 100.0, np.float32), "000001", 0.1, 200.0)

    desk = TeacherDesk(
        client, trusting(), upload=UploadSettings(max_side=80), max_side=40, student=student
    )
    for number in range(2):
        desk(frame(number))
    with pytest.raises(RefusedLabel, match=r"label_against_student.*000001"):
        desk(frame(2))
    assert asked == [((HEIGHT, WIDTH, 3), (30, 40))] * 3


def test_a_label_needs_no_student(client):
    assert TeacherDesk(client, trusting(), student=lambda image, size: None)(frame())


def test_a_teacher_that_is_blind_to_mirrors_is_caught_where_that_is_asked_for(backend, client):
    desk = TeacherDesk(client, trusting(max_flip_difference=0.1))
    with pytest.raises(RefusedLabel, match="label_flip"):
        desk(frame())  # it says the same of the mirrored image
    backend.answer = lambda image, request: LABEL if len(backend.requests) % 2 else LABEL[:, ::-1]
    assert desk(frame()).depth.shape == (HEIGHT, WIDTH)
    assert len(backend.requests) == 4


def test_a_teacher_that_refuses_mirrored_images_is_not_judged_by_them(backend, client, caplog):
    desk = TeacherDesk(client, trusting(max_flip_difference=0.1))
    backend.answer = lambda image, request: (
        LABEL if len(backend.requests) % 2 else BackendRefusal("unknown image")
    )
    for number in range(3):
        assert desk(frame(number)).depth.shape == (HEIGHT, WIDTH)
    assert len(backend.requests) == 6
    (said,) = [line for line in caplog.messages if "mirrored" in line]
    assert "stub 7" in said
    assert "unknown image" in said
    assert "set trust.max_flip_difference to 0" in said
    backend.answer = LABEL * np.float32(50)  # mirrored alike, which is asked and looked at again
    with pytest.raises(RefusedLabel, match="label_flip"):
        desk(frame(3))


def test_what_a_mirror_does_not_judge_is_judged_by_the_rest(backend, client):
    desk = TeacherDesk(client, trusting(max_flip_difference=0.1))
    backend.answer = lambda image, request: (
        LABEL * np.float32(1 if len(backend.requests) < 5 else 50)
        if len(backend.requests) % 2
        else BackendRefusal("unknown image")
    )
    for number in range(2):
        desk(frame(number))
    with pytest.raises(RefusedLabel, match="label_scale_jump"):
        desk(frame(2))


@pytest.mark.parametrize(("logged_quality", "least", "most"), [(65, 1.0, 1.0), (92, 0.3, 0.7)])
def test_an_image_is_encoded_anew_only_for_a_much_lower_quality(
    client, logged_quality, least, most
):
    upload = UploadSettings(jpeg_quality=60)
    TeacherDesk(client, upload=upload, logged_quality=logged_quality)(frame())
    share = client.traffic.snapshot().bytes_up / len(frame().jpeg)
    assert least <= share <= most


def test_refusals_are_counted_by_reason_in_the_store_and_in_the_labeller(backend, client, store):
    def answer(image: np.ndarray, request: Any) -> Any:
        return {2: np.full_like(LABEL, 2), 3: BackendRefusal("no")}.get(request.stamp_ns, LABEL)

    backend.answer = answer
    for seed in range(1, 5):
        assert store.add(Observation(view(seed), seed, "camera")).kept
    labeller = Labeller(store, TeacherDesk(client), LabellerSettings(in_flight=1))
    labeller.start()
    try:
        wait_until(lambda: labeller.snapshot().labelled == 2)
        state = labeller.snapshot()
    finally:
        labeller.stop(5.0)
    reasons = {"label_constant": 1, "teacher_refused": 1}
    assert state.refusals == store.stats().rejected == reasons
    assert state.refused_in_a_row == 0
    assert "no" in state.last_refusal


@pytest.mark.parametrize("answer", [np.full_like(LABEL, 2), BackendRefusal("no"), RuntimeError()])
def test_a_sick_teacher_costs_a_few_frames_and_the_next_one_labels_the_rest(
    backend, client, store, answer
):
    backend.answer = answer
    for seed in range(1, 16):
        assert store.add(Observation(view(seed), seed, "camera")).kept
    quick = LabellerSettings(in_flight=1, retry_s=0.01, max_retry_s=0.02)
    labeller = Labeller(store, TeacherDesk(client), quick)
    labeller.start()
    try:
        wait_until(lambda: labeller.snapshot().failed > 30)
        state = labeller.snapshot()
        assert state.link == "down"
        assert len(store.unlabelled(20)) >= 15 - quick.suspect_after
        backend.answer = LABEL
        wait_until(lambda: not store.unlabelled(1))
    finally:
        labeller.stop(5.0)
    assert sum(store.stats().rejected.values()) <= quick.suspect_after
    assert labeller.snapshot().labelled >= 15 - quick.suspect_after


def test_labels_of_the_last_run_are_read_back_oldest_first(store):
    for seed in range(1, 5):
        frame_id = store.add(Observation(view(seed), seed, "camera")).frame_id
        if seed != 2:
            store.put_label(frame_id, LABEL * np.float32(seed), METRIC.name, str(seed))
    labels = store.newest_labels(2)
    assert [label.teacher_version for label in labels] == ["3", "4"]
    assert [label.teacher_name for label in labels] == ["stub", "stub"]
    np.testing.assert_allclose(labels[1].depth, LABEL * 4, atol=1 / 256)
    assert store.newest_labels(0) == []
