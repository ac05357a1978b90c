"""launch/depth.launch.py, through the real ros2 launch where there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

WHY = "needs launch_pytest and launch_ros, which come with a ROS installation and not from PyPI"
launch_pytest = pytest.importorskip("launch_pytest", reason=WHY)
pytest.importorskip("launch_ros", reason=WHY)

from ament_index_python.packages import (  # noqa: E402
    PackageNotFoundError,
    get_package_share_directory,
)
from launch import LaunchDescription  # noqa: E402
from launch.actions import IncludeLaunchDescription, RegisterEventHandler  # noqa: E402
from launch.event_handlers import OnProcessExit  # noqa: E402
from launch.launch_description_sources import PythonLaunchDescriptionSource  # noqa: E402
from launch_pytest.actions import ReadyToTest  # noqa: E402

from helpers.students import small_student  # noqa: E402
from ros_helpers.messages import FRAME_ID, camera_info, image_message  # noqa: E402
from ros_helpers.peer import Peer  # noqa: E402
from tiekd_ros.ros_environment import isolate, prepare_environment  # noqa: E402
from tiekd_ros.state import StateFolder  # noqa: E402
from tiekd_ros.student import StudentRegistry  # noqa: E402

try:
    SHARE = Path(get_package_share_directory("tiekd_ros"))
except PackageNotFoundError:
    pytest.skip(
        "tiekd_ros is not in the ament index: install it (colcon build, or pip install .) and "
        "source it first",
        allow_module_level=True,
    )

NAMESPACE = f"/launched_{os.getpid()}"
PARAMETERS = """
/**/depth_node:
  ros__parameters:
    encoding: 16UC1
"""

prepare_environment()
isolate()


@pytest.fixture(scope="module")
def exit_codes() -> dict[str, int]:
    return {}


@launch_pytest.fixture(scope="module")
def launched(
    tmp_path_factory: pytest.TempPathFactory, exit_codes: dict[str, int]
) -> LaunchDescription:
    folder = tmp_path_factory.mktemp("launch")
    state = StateFolder(folder / "state").create()
    registry = StudentRegistry(state.students)
    registry.promote(registry.add(small_student()).version)
    parameters = folder / "parameters.yaml"
    parameters.write_text(PARAMETERS)
    arguments = {
        "namespace": NAMESPACE,
        "image_topic": f"{NAMESPACE}/image",
        "camera_info_topic": f"{NAMESPACE}/image_info",
        "teacher": "none",
        "device": "cpu",
        "state_dir": str(state.root),
        "params_file": str(parameters),
    }
    source = PythonLaunchDescriptionSource(str(SHARE / "launch" / "depth.launch.py"))

    def note(event: object, context: object) -> None:
        name, code = event.process_name, event.returncode  # type: ignore[attr-defined]
        exit_codes[name] = code

    return LaunchDescription(
        [
            RegisterEventHandler(OnProcessExit(on_exit=note)),
            IncludeLaunchDescription(source, launch_arguments=arguments.items()),
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
