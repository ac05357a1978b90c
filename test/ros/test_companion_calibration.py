"""What a logged frame knows of its camera: late calibrations, and what a rectified image lacks."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import cv2
import numpy as np
import pytest
from lifecycle_msgs.msg import Transition
from sensor_msgs.msg import CameraInfo, Image

from helpers.teachers import StubBackend, ramp, serving
from ros_helpers.companion import (
    LOGGING,
    PATIENT_TEACHER,
    STEP_NS,
    await_frames,
    log_image,
    log_pictures,
    stats,
)
from ros_helpers.messages import HEIGHT, WIDTH, K, camera_info, image_message
from ros_helpers.peer import INACTIVE, Peer, running
from ros_helpers.waiting import wait_for
from tiekd_ros.core.camera import CameraModel, Rectifier
from tiekd_ros.core.state import StateFolder
from tiekd_ros.framelog import FrameStore
from tiekd_ros.nodes.camera import input as camera_input
from tiekd_ros.nodes.common import qos
from tiekd_ros.nodes.common.conversions import image_to_rgb
from tiekd_ros.nodes.companion import frame_logger
from tiekd_ros.nodes.companion.node import CompanionNode

NODE = "companion_node"
LONG_S = 60.0


@contextmanager
def companion(peer: Peer, state: StateFolder, **more: Any) -> Iterator[None]:
    parameters = {**LOGGING, **PATIENT_TEACHER, "teacher__url": "", **more}
    with running(CompanionNode, peer, state_dir=str(state.root), **parameters):
        yield


def focal_lengths(state: StateFolder) -> list[float | None]:
    with FrameStore(state.frames, read_only=True) as store:
        frames = store.unlabelled(99)
    return [None if frame.intrinsics is None else frame.intrinsics.fx for frame in frames]


def picture(number: int) -> Image:
    return image_message(number, step_ns=STEP_NS)


def info_of(image: Image, focal: float) -> CameraInfo:
    info = camera_info([focal, *K[1:]])
    info.header = image.header
    return info


def show_alone(peer: Peer, image: Image) -> None:
    """Show an image, and no camera_info, until the companion has got it."""
    wait_for(
        lambda: float(peer.diagnosis(NODE).values.get("image rate [Hz]", "0")) > 0,
        "an image at the companion",
        nudge=lambda: peer.show(image),
        explain=lambda: peer.diagnosis(NODE),
    )


def test_a_frame_is_logged_without_a_calibration_that_is_for_another_shape(
    peer: Peer, state: StateFolder
) -> None:
    with companion(peer, state):
        log_image(peer, state, picture(0), camera_info(width=2 * WIDTH, height=HEIGHT))
        peer.await_diagnosis(NODE, "another shape, so K and P cannot be right")
    assert focal_lengths(state) == [None]


def test_the_first_image_waits_for_the_cameras_first_camera_info(
    peer: Peer, state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(camera_input, "_INFO_PATIENCE_S", LONG_S)
    with companion(peer, state):
        show_alone(peer, picture(1))
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
    with companion(peer, state):
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
    with companion(peer, state):
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
    with companion(peer, state):
        show_alone(peer, picture(1))
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
    info = camera_info()
    info.d = [-0.3, 0.05, 0.0, 0.0, 0.0]
    info.p = [30.0, 0.0, 47.5, 0.0, 0.0, 30.0, 35.5, 0.0, 0.0, 0.0, 1.0, 0.0]
    invalid_mask = (
        Rectifier().rectified(image_to_rgb(picture(1)), CameraModel.from_message(info)).invalid_mask
    )
    assert invalid_mask is not None
    assert 0.1 < invalid_mask.mean() < 0.9
    backend = StubBackend(np.nan_to_num(ramp(WIDTH, HEIGHT), nan=1.0))
    with serving(backend) as url, companion(peer, state, teacher__url=url, rectify=True):
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
