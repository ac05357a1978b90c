"""The teacher of launch/depth.launch.py: one beside the nodes, and one elsewhere."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ros_helpers.launching import depth_launch  # first: it skips where there is no ros2 launch

# ruff: isort: split
import launch_pytest
from launch import LaunchDescription
from launch.actions import RegisterEventHandler
from launch.event_handlers import OnProcessStart
from launch_pytest.actions import ReadyToTest
from rcl_interfaces.srv import GetParameters

from ros_helpers.messages import HEIGHT, WIDTH, camera_info, header, image_message
from ros_helpers.peer import Peer
from ros_helpers.waiting import wait_for
from tiekd_ros.nodes.common.conversions import stamp_ns
from tiekd_ros.worlds import IndoorWorld, WorldSettings

HERE, ELSEWHERE = f"/beside_{os.getpid()}", f"/elsewhere_{os.getpid()}"
OF_ANOTHER_TEACHER = """
/**/companion_node:
  ros__parameters:
    frames.min_interval_s: 0.0
    labels.max_retry_s: 1.0
    teacher.tls: true
    teacher.ca: /of/another/teacher.pem
"""

STEP_NS = 2_000_000_000  # between views, so that each shows something new

_numbers = itertools.count(1)


@pytest.fixture
def teachers() -> list[int]:
    """Process ids of the teachers that were started, oldest first."""
    return []


@launch_pytest.fixture
def beside(tmp_path: Path, teachers: list[int]) -> LaunchDescription:
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text(OF_ANOTHER_TEACHER)
    arguments = {"params_file": str(parameters), "state_dir": str(tmp_path / "state")}

    def note(event: object, context: object) -> None:
        if "teacher" in event.process_name:  # type: ignore[attr-defined]
            teachers.append(event.pid)  # type: ignore[attr-defined]

    return LaunchDescription(
        [
            RegisterEventHandler(OnProcessStart(on_start=note)),
            depth_launch(HERE, teacher="synthetic:0", **arguments),
            ReadyToTest(),
        ]
    )


@launch_pytest.fixture
def elsewhere(tmp_path: Path) -> LaunchDescription:
    arguments = {
        "teacher": "127.0.0.1:9",
        "teacher_ca": "ca.pem",
        "teacher_token_file": "token",
        "state_dir": str(tmp_path / "state"),
    }
    return LaunchDescription([depth_launch(ELSEWHERE, **arguments), ReadyToTest()])


@pytest.fixture
def peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    with Peer(request.param) as peer:
        yield peer


def show_next_view(peer: Peer) -> None:
    """Play the synthetic camera: its teacher labels no other pictures."""
    number = next(_numbers)
    world = IndoorWorld(WorldSettings(seed=0))
    camera = IndoorWorld.default_intrinsics(WIDTH, HEIGHT)
    fx, fy, cx, cy = camera.as_tuple()
    pixels = world.render(stamp_ns(header(number, STEP_NS)), WIDTH, HEIGHT, camera).image
    peer.show(
        image_message(number, pixels, step_ns=STEP_NS),
        camera_info([fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0]),
    )


def labels(peer: Peer) -> int:
    return int(peer.diagnosis("companion_node").values.get("labels received", 0))


def await_more_labels(peer: Peer) -> None:
    """Show new views until one more of them was labelled."""
    before = labels(peer)
    wait_for(
        lambda: labels(peer) > before,
        "labels",
        nudge=lambda: show_next_view(peer),
        explain=lambda: peer.diagnosis("companion_node"),
    )


@pytest.mark.parametrize("peer", [HERE], indirect=True)
@pytest.mark.launch(fixture=beside)
def test_a_teacher_beside_the_nodes_labels_and_is_started_again_after_its_death(
    peer: Peer, teachers: list[int]
) -> None:
    await_more_labels(peer)
    (first,) = teachers
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: len(teachers) == 2, "a second teacher")
    await_more_labels(peer)


@pytest.mark.parametrize("peer", [ELSEWHERE], indirect=True)
@pytest.mark.launch(fixture=elsewhere)
def test_a_teacher_elsewhere_is_reached_with_the_files_that_were_given(peer: Peer) -> None:
    names = ["teacher.url", "teacher.tls", "teacher.ca", "teacher.token_file"]
    request = GetParameters.Request(names=names)
    url, tls, ca, token = peer.ask(GetParameters, "companion_node/get_parameters", request).values
    assert (url.string_value, tls.bool_value) == ("127.0.0.1:9", True)
    assert (ca.string_value, token.string_value) == ("ca.pem", "token")
