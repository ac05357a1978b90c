"""Feeding a companion node: pictures with stamps a second apart, whatever the clock says."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from sensor_msgs.msg import CameraInfo, Image

from helpers.frames import small_settings
from ros_helpers.messages import camera_info, image_message
from ros_helpers.peer import ACTIVE, Peer, running
from ros_helpers.waiting import wait_for
from tiekd_ros.core.state import StateFolder
from tiekd_ros.framelog import FrameStore, StoreStats
from tiekd_ros.nodes.companion.node import CompanionNode

STEP_NS = 10**9
LOGGING: dict[str, object] = {
    "frames__min_interval_s": 0.5,
    "frames__min_sharpness": 0.0,
    "frames__block_s": 2.0,
    "frames__held_out_every": 2,
    "frames__guard_share": 0.0,
}
"""Keeps every picture a second apart: two to train on, two held out, and so on."""
PATIENT_TEACHER: dict[str, object] = {
    "teacher__timeout_s": 2.0,
    "labels__retry_s": 0.1,
    "labels__max_retry_s": 0.2,
}
"""Asks again soon, so that a test need not wait for it."""
ITERATIONS = 40


def round_parameters(**groups: dict[str, Any]) -> dict[str, object]:
    """Return `small_settings` as parameters of companion_node, with clear margin at the gate."""
    train = {"iterations": ITERATIONS, "learning_rate": 8e-3, **groups.pop("train", {})}
    settings = small_settings(train=train, **groups)
    return {f"{group}__{k}": v for group, values in settings.items() for k, v in values.items()}


@contextmanager
def logging_companion(
    peer: Peer, state: StateFolder, url: str = "", **parameters: object
) -> Iterator[CompanionNode]:
    """Run a companion that keeps every picture a second apart, with a teacher's address."""
    values = {**LOGGING, **PATIENT_TEACHER, "teacher__url": url, **parameters}
    with running(CompanionNode, peer, state_dir=str(state.root), **values) as node:
        yield node


@contextmanager
def learning_companion(
    peer: Peer, state: StateFolder, until: str = ACTIVE, **groups: dict[str, Any]
) -> Iterator[CompanionNode]:
    """Run a companion without a teacher, whose rounds have `round_parameters`."""
    values = {"state_dir": str(state.root), "teacher__url": "", **round_parameters(**groups)}
    with running(CompanionNode, peer, until=until, **values) as node:
        yield node


def stats(state: StateFolder) -> StoreStats:
    """Count what a running node's frame log holds."""
    with FrameStore(state.frames, read_only=True) as store:
        return store.stats()


def frame_ids(state: StateFolder) -> set[int]:
    """Return the ids of all stored frames, in any state."""
    connection = sqlite3.connect(f"file:{state.frames}?mode=ro", uri=True)
    try:
        return {int(row[0]) for row in connection.execute("SELECT id FROM frames")}
    finally:
        connection.close()


def log_image(peer: Peer, state: StateFolder, image: Image, info: CameraInfo) -> None:
    """Show an image until it is stored."""
    before = stats(state).total
    wait_for(
        lambda: stats(state).total > before,
        "an image in the frame log",
        nudge=lambda: peer.show(image, info),
        explain=lambda: peer.diagnosis("companion_node"),
    )


def log_pictures(
    peer: Peer, state: StateFolder, numbers: Iterable[int], info: CameraInfo | None = None
) -> None:
    """Show pictures one by one, each until it is stored."""
    for number in numbers:
        log_image(peer, state, image_message(number, step_ns=STEP_NS), info or camera_info())


def await_frames(state: StateFolder, kind: str, count: int) -> None:
    """Wait until so many frames are `logged`, `labelled` or `rejected`."""
    wait_for(
        lambda: sum(stats(state).frames.get(kind, {}).values()) == count,
        f"{count} frames to be {kind}",
        explain=lambda: stats(state),
    )
