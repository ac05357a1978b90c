"""launch/depth.launch.py, through the real ros2 launch where there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ros_helpers.launching import depth_launch  # first: it skips where there is no ros2 launch

# ruff: isort: split
import launch_pytest
from launch import LaunchDescription
from launch.actions import RegisterEventHandler
from launch.event_handlers import OnProcessExit
from launch_pytest.actions import ReadyToTest

from helpers.students import promote_small
from ros_helpers.messages import FRAME_ID, camera_info, image_message
from ros_helpers.peer import Peer
from tiekd_ros.core.state import StateFolder

NAMESPACE = f"/launched_{os.getpid()}"
PARAMETERS = """
/**/depth_node:
  ros__parameters:
    encoding: 16UC1
    image_transport: compressed
"""


@pytest.fixture(scope="module")
def exit_codes() -> dict[str, int]:
    return {}


@launch_pytest.fixture(scope="module")
def launched(
    tmp_path_factory: pytest.TempPathFactory, exit_codes: dict[str, int]
) -> LaunchDescription:
    folder = tmp_path_factory.mktemp("launch")
    state = StateFolder(folder / "state").create()
    promote_small(state)
    parameters = folder / "parameters.yaml"
    parameters.write_text(PARAMETERS)
    arguments = {
        "teacher": "none",
        "image_transport": "raw",  # the default, and yet it wins over the file
        "state_dir": str(state.root),
        "params_file": str(parameters),
    }

    def note(event: object, context: object) -> None:
        name, code = event.process_name, event.returncode  # type: ignore[attr-defined]
        exit_codes[name] = code

    return LaunchDescription(
        [
            RegisterEventHandler(OnProcessExit(on_exit=note)),
            depth_launch(NAMESPACE, **arguments),
            ReadyToTest(),
        ]
    )


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer(NAMESPACE) as peer:
        yield peer


@pytest.mark.launch(fixture=launched)
def test_depth_comes_from_the_given_student_as_the_parameters_file_says(peer: Peer) -> None:
    image = image_message(1)
    depth = peer.depth_of(image, camera_info())
    assert depth.header == image.header
    assert depth.header.frame_id == FRAME_ID
    assert depth.encoding == "16UC1"
    peer.await_value("depth_node", "student", "000001")


@pytest.mark.launch(fixture=launched)
def test_the_companion_runs_beside_it_without_a_teacher(peer: Peer) -> None:
    peer.await_diagnosis("companion_node", "no teacher is configured")


@pytest.mark.launch(fixture=launched, shutdown=True)
def test_both_nodes_end_cleanly(exit_codes: dict[str, int]) -> None:
    assert len(exit_codes) == 2
    assert set(exit_codes.values()) == {0}
