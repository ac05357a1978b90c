"""companion_node logs what the camera shows, whatever happens to store and camera."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from sensor_msgs.msg import CameraInfo, Image

from helpers.teachers import StubBackend, ramp, serving
from ros_helpers.companion import (
    STEP_NS,
    await_frames,
    log_image,
    log_pictures,
    logging_companion,
    stats,
)
from ros_helpers.messages import (
    FIRST_NS,
    FRAME_ID,
    HEIGHT,
    WIDTH,
    K,
    camera_info,
    distorted_info,
    header,
    image_message,
)
from ros_helpers.peer import ACTIVE, INACTIVE, UNCONFIGURED, Peer
from ros_helpers.waiting import PATIENCE_S, wait_for
from tiekd_ros.core.camera import CameraModel, Rectifier
from tiekd_ros.core.launch_options import free_port
from tiekd_ros.core.state import StateFolder
from tiekd_ros.framelog import AddResult, FrameStore, Observation
from tiekd_ros.nodes.camera import input as camera_input
from tiekd_ros.nodes.common import managed, qos
from tiekd_ros.nodes.common.conversions import ImageCanvas, image_to_rgb
from tiekd_ros.nodes.companion import frame_logger
from tiekd_ros.nodes.companion.frame_logger import MeanConfidence

NODE = "companion_node"
LONG_S = 60.0
MS = 1_000_000
SECOND = 1000 * MS


def picture(number: int) -> Image:
    return image_message(number, step_ns=STEP_NS)


def focal_lengths(state: StateFolder) -> list[float | None]:
    with FrameStore(state.frames, read_only=True) as store:
        frames = store.unlabelled(99)
    return [None if frame.intrinsics is None else frame.intrinsics.fx for frame in frames]


def info_of(image: Image, focal: float) -> CameraInfo:
    info = camera_info([focal, *K[1:]])
    info.header = image.header
    return info


def test_frames_are_logged_and_labelled_and_the_counts_are_in_diagnostics(
    peer: Peer, state: StateFolder
) -> None:
    backend = StubBackend()
    with serving(backend) as url, logging_companion(peer, state, url):
        log_pictures(peer, state, range(6))
        await_frames(state, "labelled", 6)
        peer.await_value(NODE, "labels received", "6")
        values = peer.diagnosis(NODE).values
        assert values["frames kept"] == values["frames stored"] == "6"
        assert values["labelled for training"] == "4"  # two blocks of 2 s, and one between
        assert values["labelled held out"] == "2"
        assert values["labels new since last round"] == "4"
        assert values["waiting for labels"] == "0"
        last, info = picture(5), camera_info()  # shown on: a camera that stops is a finding
        peer.await_above(NODE, "image rate [Hz]", 0, last, info)
        peer.await_diagnosis(NODE, "logging frames", DiagnosticStatus.OK, last, info)
    (request,) = (r for r in backend.requests if r.stamp_ns == FIRST_NS + 3 * STEP_NS)
    assert request.frame_id == FRAME_ID
    assert request.intrinsics.as_tuple() == (60.0, 61.0, 47.5, 35.5)


def test_without_a_teacher_frames_are_logged_only_and_logging_pauses_and_resumes(
    peer: Peer, state: StateFolder
) -> None:
    with logging_companion(peer, state):
        log_pictures(peer, state, [0])
        peer.await_diagnosis(NODE, "no teacher is configured", DiagnosticStatus.WARN)
        peer.await_value(NODE, "waiting for labels", "1")
        assert peer.switch("log_frames", False) == (True, "logging is paused")
        peer.show(picture(1), camera_info())
        peer.await_value(NODE, "logging", "paused")
        assert peer.switch("log_frames", True) == (True, "logging frames")
        peer.await_value(NODE, "logging", "on")
        log_pictures(peer, state, [2])
        assert stats(state).total == 2


def test_the_newest_image_is_stored_when_the_store_is_free_again(
    peer: Peer, state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, free, stamps = threading.Event(), threading.Event(), []
    add = FrameStore.add

    def slow(store: FrameStore, observation: Observation) -> AddResult:
        busy.set()
        assert free.wait(PATIENCE_S)
        stamps.append((observation.stamp_ns - FIRST_NS) // STEP_NS)
        return add(store, observation)

    monkeypatch.setattr(FrameStore, "add", slow)
    with logging_companion(peer, state):
        wait_for(busy.is_set, "a store at work", nudge=lambda: peer.show(picture(0)))
        for number in range(1, 5):
            peer.show(picture(number))
        wait_for(lambda: "image rate [Hz]" in peer.diagnosis(NODE).values, "a report")
        time.sleep(0.3)  # until the last of them is there: nothing tells
        free.set()
        wait_for(lambda: 4 in stamps, "the newest image in the store")
    assert stamps == [0, 4]


def test_near_duplicates_are_not_kept_and_counted_by_reason(peer: Peer, state: StateFolder) -> None:
    with logging_companion(peer, state):
        log_pictures(peer, state, [0])
        again = picture(9)
        again.data = image_message(0).data
        peer.show(again)
        peer.await_value(NODE, "not kept: not_novel", "1")
        assert stats(state).total == 1


def test_a_bad_image_is_reported_and_logging_goes_on(peer: Peer, state: StateFolder) -> None:
    encoding, short, odd = picture(1), picture(3), picture(5)
    encoding.encoding = "nv24"
    short.data = short.data[:100]
    odd.encoding, odd.width, odd.step = "yuyv", 95, 190
    bad = ((encoding, "nv24"), (short, "truncated"), (odd, "95 x 72 yuyv"))
    with logging_companion(peer, state):
        for number, (image, reason) in enumerate(bad):
            log_pictures(peer, state, [2 * number])
            peer.show(image)
            peer.await_diagnosis(NODE, reason, DiagnosticStatus.ERROR)
        log_pictures(peer, state, [6])
        peer.await_diagnosis(NODE, "no teacher", DiagnosticStatus.WARN)


def test_frames_of_an_uncalibrated_camera_are_logged_without_intrinsics(
    peer: Peer, state: StateFolder
) -> None:
    with logging_companion(peer, state):
        for number, k in enumerate(([0.0] * 9, [np.nan] * 9)):
            log_pictures(peer, state, [number], camera_info(k))
        other_shape = camera_info(width=2 * WIDTH, height=HEIGHT)
        log_image(peer, state, picture(2), other_shape)
        peer.await_diagnosis(NODE, "another shape, so K and P cannot be right")
    assert focal_lengths(state) == [None] * 3


def test_a_locked_frame_log_costs_frames_and_nothing_else(peer: Peer, state: StateFolder) -> None:
    with logging_companion(peer, state, frames__lock_timeout_s=0.1):
        log_pictures(peer, state, [0])
        other = sqlite3.connect(state.frames, isolation_level=None)
        try:
            other.execute("BEGIN IMMEDIATE")
            peer.show(picture(1))
            peer.await_diagnosis(NODE, "is held by another program", DiagnosticStatus.ERROR)
            other.execute("ROLLBACK")
        finally:
            other.close()
        log_pictures(peer, state, [2])
        peer.await_diagnosis(NODE, "no teacher", DiagnosticStatus.WARN)


def test_a_corrupt_frame_log_is_left_as_it_is_and_the_node_starts_when_it_is_gone(
    peer: Peer, state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rubbish = b"no frame log " * 1000
    state.frames.write_bytes(rubbish)
    monkeypatch.setattr(managed, "TRY_AGAIN_S", 0.1)
    with logging_companion(peer, state, until=UNCONFIGURED, autostart=True):
        reason = "cannot be read as a frame log"
        peer.await_diagnosis(NODE, reason, DiagnosticStatus.ERROR)
        assert state.frames.read_bytes() == rubbish
        state.frames.unlink()  # as its message says: moved away
        peer.await_active(NODE)


def test_cleaned_up_and_configured_again_it_logs_into_the_same_file(
    peer: Peer, state: StateFolder
) -> None:
    with logging_companion(peer, state):
        log_pictures(peer, state, [0])
        peer.take_down_and_up(NODE)
        assert peer.state_of(NODE) == ACTIVE
        log_pictures(peer, state, [2])
        assert stats(state).total == 2


def test_it_asks_the_teacher_only_while_it_is_active(peer: Peer, state: StateFolder) -> None:
    port = free_port()
    with logging_companion(peer, state, f"127.0.0.1:{port}", labels__poll_s=0.1):
        log_pictures(peer, state, range(2))
        assert peer.change_state(NODE, Transition.TRANSITION_DEACTIVATE)
        with serving(StubBackend(), port=port):
            peer.await_value(NODE, "state", INACTIVE)
            peer.await_reports(NODE, 3)
            assert sum(stats(state).frames["labelled"].values()) == 0
            assert peer.change_state(NODE, Transition.TRANSITION_ACTIVATE)
            await_frames(state, "labelled", 2)


# Calibrations that come late, and what a rectified image lacks.


def test_the_first_image_waits_for_the_cameras_first_camera_info(
    peer: Peer, state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(camera_input, "_INFO_PATIENCE_S", LONG_S)
    with logging_companion(peer, state):
        peer.await_above(NODE, "image rate [Hz]", 0, picture(1))
        assert stats(state).total == 0
        wait_for(
            lambda: stats(state).total,
            "the image in the frame log",
            nudge=lambda: peer._info_pub.publish(info_of(picture(1), 70.0)),
        )
    assert focal_lengths(state) == [70.0]


def test_an_image_gets_the_camera_info_that_comes_just_after_it(
    peer: Peer, state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame_logger, "_PATIENCE_S", LONG_S)
    images = peer.node.create_publisher(Image, "image", qos.RELIABLE)
    infos = peer.node.create_publisher(CameraInfo, "image_info", qos.RELIABLE)
    with logging_companion(peer, state):
        log_image(peer, state, picture(0), info_of(picture(0), 60.0))
        for number in range(1, 5):
            images.publish(picture(number))
            time.sleep(0.05)  # the image is there long before its camera_info
            infos.publish(info_of(picture(number), 60.0 + number))
            wait_for(lambda before=number: stats(state).total > before, "the image in the log")
    assert focal_lengths(state) == [60.0, 61.0, 62.0, 63.0, 64.0]


def test_a_camera_without_camera_info_is_logged_after_a_while(
    peer: Peer, state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(camera_input, "_INFO_PATIENCE_S", 0.2)
    with logging_companion(peer, state):
        for number in (1, 2):
            wait_for(
                lambda count=number: stats(state).total == count,
                "the image in the log",
                nudge=lambda shown=number: peer.show(picture(shown)),
            )
    assert focal_lengths(state) == [None, None]


def test_an_image_that_waits_does_not_hold_up_what_comes_next(
    peer: Peer, state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(camera_input, "_INFO_PATIENCE_S", LONG_S)
    with logging_companion(peer, state):
        peer.await_above(NODE, "image rate [Hz]", 0, picture(1))
        assert peer.change_state(NODE, Transition.TRANSITION_DEACTIVATE)
        assert peer.state_of(NODE) == INACTIVE
        assert "frame logger" not in {thread.name for thread in threading.enumerate()}
        assert stats(state).total == 0
        assert peer.change_state(NODE, Transition.TRANSITION_ACTIVATE)
        log_pictures(peer, state, [2])
    assert focal_lengths(state) == [60.0]


def test_a_label_is_unknown_where_a_rectified_image_shows_what_the_camera_did_not_see(
    peer: Peer, state: StateFolder
) -> None:
    info = distorted_info()
    invalid_mask = (
        Rectifier().rectified(image_to_rgb(picture(1)), CameraModel.from_message(info)).invalid_mask
    )
    assert invalid_mask is not None
    assert 0.1 < invalid_mask.mean() < 0.9
    backend = StubBackend(np.nan_to_num(ramp(WIDTH, HEIGHT), nan=1.0))
    with serving(backend) as url, logging_companion(peer, state, url=url, rectify=True):
        log_image(peer, state, picture(1), info)
        await_frames(state, "labelled", 1)
    with FrameStore(state.frames, read_only=True) as store:
        depth = store.load(store.labelled_ids()[0]).depth
    assert depth.shape == invalid_mask.shape
    assert (np.isnan(depth) == invalid_mask).all()
    with closing(sqlite3.connect(state.frames)) as connection:
        (stored,) = connection.execute("SELECT depth FROM labels").fetchone()
    units = cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_UNCHANGED)
    assert (units[invalid_mask] == 0).all()
    assert (units[~invalid_mask] > 0).all()


# The student's confidence.


def confidence(at_ns: int, *values: float) -> Image:
    stamped = header()
    stamped.stamp.sec, stamped.stamp.nanosec = divmod(at_ns, SECOND)
    return ImageCanvas().paint(np.array([values], np.float32), stamped)


def test_the_confidence_is_the_mean_of_the_latest_image_for_frames_within_a_second() -> None:
    mean = MeanConfidence()
    assert mean.at(5 * SECOND) is None
    mean.add(confidence(5 * SECOND, 0.25))
    assert mean.at(4 * SECOND) == mean.at(6 * SECOND) == 0.25
    assert mean.at(6 * SECOND + 1) is None
    assert mean.at(4 * SECOND - 1) is None


def test_two_confidence_images_a_second_are_read_at_most_and_unknown_is_no_number() -> None:
    mean = MeanConfidence()
    mean.add(confidence(5 * SECOND, 0.25))
    mean.add(confidence(5 * SECOND + 400 * MS, 0.75))
    assert mean.at(5 * SECOND) == 0.25
    mean.add(confidence(5 * SECOND + 500 * MS, 0.75))
    assert mean.at(5 * SECOND) == 0.75
    mean.add(confidence(2 * SECOND, 0.5))  # the clock went back
    assert mean.at(2 * SECOND) == 0.5
    mean.add(confidence(6 * SECOND, np.nan))  # a student that does not know
    assert mean.at(6 * SECOND) is None


def test_a_confidence_image_that_cannot_be_read_changes_nothing() -> None:
    mean = MeanConfidence()
    mean.add(confidence(5 * SECOND, 0.25))
    for change in ({"encoding": "rgb8"}, {"data": b""}, {"width": 0, "height": 0, "data": b""}):
        broken = confidence(6 * SECOND, 0.5)
        for name, value in change.items():
            setattr(broken, name, value)
        mean.add(broken)
    assert mean.at(5 * SECOND) == 0.25
