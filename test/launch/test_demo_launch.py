"""launch/demo.launch.py and launch/multi_camera.launch.py: the whole loop."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from ros_helpers.launching import included  # first: it skips where there is no ros2 launch

# ruff: isort: split
import launch_pytest
from launch import LaunchDescription
from launch.actions import RegisterEventHandler
from launch.event_handlers import OnProcessIO, OnProcessStart
from launch_pytest.actions import ReadyToTest

from helpers.students import promote_small
from ros_helpers.companion import stats
from ros_helpers.peer import Peer
from ros_helpers.waiting import wait_for
from tiekd_ros.core.state import StateFolder
from tiekd_ros.nodes.common.conversions import stamp_ns

SEVERAL = f"/several_{os.getpid()}"
CAMERAS = ("left", "right")


@pytest.fixture
def started() -> list[str]:
    """Names of the processes that were started."""
    return []


@pytest.fixture
def output() -> list[str]:
    """What the processes write."""
    return []


def keeping_output(output: list[str]) -> RegisterEventHandler:
    def keep(event: object) -> None:
        output.append(event.text.decode(errors="replace"))  # type: ignore[attr-defined]

    return RegisterEventHandler(OnProcessIO(on_stdout=keep, on_stderr=keep))


def noting(started: list[str]) -> RegisterEventHandler:
    def note(event: object, context: object) -> None:
        started.append(event.process_name.rpartition("-")[0])  # type: ignore[attr-defined]

    return RegisterEventHandler(OnProcessStart(on_start=note))


def labelled(state: StateFolder) -> int:
    return sum(stats(state).frames.get("labelled", {}).values()) if state.frames.exists() else 0


@launch_pytest.fixture
def demo(tmp_path: Path, started: list[str], output: list[str]) -> LaunchDescription:
    launch = included("demo", rviz="false", state_dir=str(tmp_path / "state"), device="cpu")
    return LaunchDescription([noting(started), keeping_output(output), launch, ReadyToTest()])


@launch_pytest.fixture
def several(tmp_path: Path, started: list[str]) -> LaunchDescription:
    for camera in CAMERAS:
        promote_small(StateFolder(tmp_path / camera).create())
    launch = included(
        "multi_camera",
        cameras=",".join(CAMERAS),
        namespace=f"{SEVERAL}/{{camera}}",
        image_topic=f"{SEVERAL}/{{camera}}/image_raw",
        camera_info_topic=f"{SEVERAL}/{{camera}}/image_raw_info",
        camera="synthetic",
        teacher="synthetic:0",
        state_dir=str(tmp_path / "{camera}"),
        device="cpu",
    )
    return LaunchDescription([noting(started), launch, ReadyToTest()])


@pytest.mark.timeout(400)
@pytest.mark.launch(fixture=demo)
def test_the_demo_plays_logs_and_labels(
    started: list[str], output: list[str], tmp_path: Path
) -> None:
    with Peer("/tiekd") as peer:
        peer.listen_to_camera("/camera/image_raw", "/camera/camera_info")
        for node in ("depth_node", "companion_node"):
            peer.await_active(node)
        wait_for(lambda: set(peer.images) & set(peer.camera_infos), "the camera")
        wait_for(lambda: labelled(StateFolder(tmp_path / "state")) >= 2, "labels")
    assert sorted(started) == ["camera_node", "companion_node", "depth_node", "teacher"]
    lines = "".join(output).splitlines()
    assert any("companion_node" in line for line in lines), lines
    # Its own teacher, which starts with the nodes, is no fault of the user's.
    assert not [line for line in lines if "WARN" in line and "the teacher" in line]


@pytest.mark.timeout(400)  # seven programs start at once
@pytest.mark.launch(fixture=several)
def test_each_camera_has_its_own_depth_and_frame_log_and_all_have_one_teacher(
    started: list[str], tmp_path: Path
) -> None:
    with ExitStack() as stack:
        peers = {c: stack.enter_context(Peer(f"{SEVERAL}/{c}")) for c in CAMERAS}
        for peer in peers.values():
            peer.await_active("depth_node")
            peer.await_active("companion_node")
        for camera, peer in peers.items():
            peer.listen_to_camera("image_raw", "image_raw_info")
            stamp = wait_for(lambda p=peer: next(iter(set(p.depth) & set(p.images)), 0), "depth")
            depth = peer.depth[stamp]
            assert stamp_ns(depth.header) == stamp
            assert depth.header.frame_id == f"{camera}_optical_frame"
        for camera in CAMERAS:
            state = StateFolder(tmp_path / camera)
            wait_for(lambda s=state: labelled(s) >= 1, f"labels of the camera {camera}")
    names = ["camera_node", "companion_node", "depth_node"] * len(CAMERAS)
    assert sorted(started) == sorted([*names, "teacher"])
