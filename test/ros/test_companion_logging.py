"""companion_node logs what the camera shows, whatever happens to store and camera."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import Image

from helpers.teachers import StubBackend, serving
from ros_helpers.companion import (
    LOGGING,
    PATIENT_TEACHER,
    STEP_NS,
    await_frames,
    log_pictures,
    stats,
)
from ros_helpers.messages import FIRST_NS, FRAME_ID, camera_info, image_message
from ros_helpers.peer import ACTIVE, UNCONFIGURED, Peer, running
from ros_helpers.waiting import PATIENCE_S, wait_for
from tiekd_ros.core.state import StateFolder
from tiekd_ros.framelog import AddResult, FrameStore, Observation
from tiekd_ros.nodes.common import managed
from tiekd_ros.nodes.companion.node import CompanionNode

NODE = "companion_node"


@contextmanager
def companion(peer: Peer, state: StateFolder, url: str = "", **more: Any) -> Iterator[None]:
    parameters = {**LOGGING, **PATIENT_TEACHER, "teacher__url": url, **more}
    with running(CompanionNode, peer, state_dir=str(state.root), **parameters):
        yield


def picture(number: int) -> Image:
    return image_message(number, step_ns=STEP_NS)


def test_frames_are_logged_and_labelled_and_the_counts_are_in_diagnostics(
    peer: Peer, state: StateFolder
) -> None:
    backend = StubBackend()
    with serving(backend) as url, companion(peer, state, url):
        log_pictures(peer, state, range(6))
        await_frames(state, "labelled", 6)
        peer.await_value(NODE, "labels received", "6")
        values = peer.diagnosis(NODE).values
        assert values["frames kept"] == values["frames stored"] == "6"
        assert values["labelled for training"] == "4"  # two blocks of 2 s, and one between
        assert values["labelled held out"] == "2"
        assert values["labels new since last round"] == "4"
        assert values["waiting for labels"] == "0"
        peer.await_diagnosis(NODE, "logging frames", DiagnosticStatus.OK)


def test_the_teacher_is_told_stamp_frame_and_intrinsics(peer: Peer, state: StateFolder) -> None:
    backend = StubBackend()
    with serving(backend) as url, companion(peer, state, url):
        log_pictures(peer, state, [0, 3])  # the first may come before its camera_info
        await_frames(state, "labelled", 2)
    request = backend.requests[-1]
    assert (request.stamp_ns, request.frame_id) == (FIRST_NS + 3 * STEP_NS, FRAME_ID)
    assert request.intrinsics is not None
    assert request.intrinsics.as_tuple() == (60.0, 61.0, 47.5, 35.5)


def test_without_a_configured_teacher_frames_are_logged_only(
    peer: Peer, state: StateFolder
) -> None:
    with companion(peer, state):
        log_pictures(peer, state, range(2))
        peer.await_diagnosis(NODE, "no teacher is configured", DiagnosticStatus.WARN)
        peer.await_value(NODE, "waiting for labels", "2")


def test_logging_pauses_and_resumes(peer: Peer, state: StateFolder) -> None:
    with companion(peer, state):
        log_pictures(peer, state, [0])
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
    with companion(peer, state):
        wait_for(busy.is_set, "a store at work", nudge=lambda: peer.show(picture(0)))
        for number in range(1, 5):
            peer.show(picture(number))
        wait_for(lambda: "image rate [Hz]" in peer.diagnosis(NODE).values, "a report")
        time.sleep(0.3)  # until the last of them is there: nothing tells
        free.set()
        wait_for(lambda: 4 in stamps, "the newest image in the store")
    assert stamps == [0, 4]


def test_near_duplicates_are_not_kept_and_counted_by_reason(peer: Peer, state: StateFolder) -> None:
    with companion(peer, state):
        log_pictures(peer, state, [0])
        again = picture(9)
        again.data = image_message(0).data
        peer.show(again)
        peer.await_value(NODE, "not kept: not_novel", "1")
        assert stats(state).total == 1


@pytest.mark.parametrize("fault", ["encoding", "length", "odd"])
def test_a_bad_image_is_reported_and_logging_goes_on(
    peer: Peer, state: StateFolder, fault: str
) -> None:
    bad = picture(1)
    if fault == "encoding":
        bad.encoding = reason = "nv24"
    elif fault == "length":
        bad.data, reason = bad.data[:100], "truncated"
    else:
        bad.encoding, bad.width, bad.step, reason = "yuyv", 95, 190, "95 x 72 yuyv"
    with companion(peer, state):
        log_pictures(peer, state, [0])
        peer.show(bad)
        peer.await_diagnosis(NODE, reason, DiagnosticStatus.ERROR)
        log_pictures(peer, state, [2])
        peer.await_diagnosis(NODE, "no teacher", DiagnosticStatus.WARN)


@pytest.mark.parametrize("k", [[0.0] * 9, [np.nan] * 9])
def test_frames_of_an_uncalibrated_camera_are_logged_without_intrinsics(
    peer: Peer, state: StateFolder, k: list[float]
) -> None:
    backend = StubBackend()
    with serving(backend) as url, companion(peer, state, url):
        log_pictures(peer, state, range(2), camera_info(k))
        await_frames(state, "labelled", 2)
    assert backend.requests[-1].intrinsics is None


def test_a_locked_frame_log_costs_frames_and_nothing_else(peer: Peer, state: StateFolder) -> None:
    with companion(peer, state, frames__lock_timeout_s=0.1):
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
    with companion(peer, state, until=UNCONFIGURED, autostart=True):
        reason = "cannot be read as a frame log"
        peer.await_diagnosis(NODE, reason, DiagnosticStatus.ERROR)
        assert state.frames.read_bytes() == rubbish
        state.frames.unlink()  # as its message says: moved away
        peer.await_active(NODE)


def test_cleaned_up_and_configured_again_it_logs_into_the_same_file(
    peer: Peer, state: StateFolder
) -> None:
    with companion(peer, state):
        log_pictures(peer, state, [0])
        peer.take_down_and_up(NODE)
        assert peer.state_of(NODE) == ACTIVE
        log_pictures(peer, state, [2])
        assert stats(state).total == 2
