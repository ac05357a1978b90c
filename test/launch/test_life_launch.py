"""How launch/depth.launch.py starts, restarts and composes the nodes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest

from ros_helpers.launching import depth_launch  # first: it skips where there is no ros2 launch

# ruff: isort: split
import launch_pytest
from launch import LaunchDescription
from launch.actions import RegisterEventHandler
from launch.event_handlers import OnProcessExit, OnProcessStart
from launch_pytest.actions import ReadyToTest
from lifecycle_msgs.msg import Transition
from rcl_interfaces.srv import GetParameters

from helpers.students import promote_small
from ros_helpers.messages import camera_info, image_message
from ros_helpers.peer import ACTIVE, INACTIVE, UNCONFIGURED, Peer
from ros_helpers.waiting import wait_for
from tiekd_ros.core.state import StateFolder

COMPOSED, BY_HAND, AGAIN = (f"/{name}_{os.getpid()}" for name in ("composed", "by_hand", "again"))
BOTH = ("depth_node", "companion_node")
PLAYED_ONCE = """
/**/camera_node:
  ros__parameters:
    loop: false
    pace: rate
    rate_hz: 20.0
"""


@dataclass
class Events:
    """What launch told: (name, process id) of each start, (name, status) of each end."""

    started: list[tuple[str, int]] = field(default_factory=list)
    ended: list[tuple[str, int]] = field(default_factory=list)

    def handlers(self) -> list[RegisterEventHandler]:
        def started(event: object, context: object) -> None:
            self.started.append((name_of(event), event.pid))  # type: ignore[attr-defined]

        def ended(event: object, context: object) -> None:
            self.ended.append((name_of(event), event.returncode))  # type: ignore[attr-defined]

        return [
            RegisterEventHandler(OnProcessStart(on_start=started)),
            RegisterEventHandler(OnProcessExit(on_exit=ended)),
        ]

    def pids(self, name: str) -> list[int]:
        return [pid for started, pid in self.started if started == name]


def name_of(event: object) -> str:
    return str(event.process_name).rpartition("-")[0]  # type: ignore[attr-defined]


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    state = StateFolder(tmp_path / "state").create()
    promote_small(state)
    return state


@pytest.fixture
def peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    with Peer(request.param) as peer:
        yield peer


def description(events: Events, state: StateFolder, namespace: str, **arguments: str):
    given = {"teacher": "none", "state_dir": str(state.root), **arguments}
    return LaunchDescription([*events.handlers(), depth_launch(namespace, **given), ReadyToTest()])


@launch_pytest.fixture
def composed(events: Events, state: StateFolder) -> LaunchDescription:
    return description(events, state, COMPOSED, composed="true")


@launch_pytest.fixture
def by_hand(events: Events, state: StateFolder) -> LaunchDescription:
    return description(events, state, BY_HAND, autostart="false", rectify="true")


@launch_pytest.fixture
def again(events: Events, state: StateFolder, tmp_path: Path) -> LaunchDescription:
    pictures = tmp_path / "pictures" / "images"
    pictures.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    cv2.imwrite(str(pictures / "1.png"), noise)
    np.savetxt(pictures.parent / "K.txt", [[60.0, 0, 32], [0, 60, 24], [0, 0, 1]])
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text(PLAYED_ONCE)
    arguments = {"camera": str(pictures.parent), "params_file": str(parameters)}
    return description(events, state, AGAIN, companion="false", **arguments)


@pytest.mark.parametrize("peer", [COMPOSED], indirect=True)
@pytest.mark.launch(fixture=composed)
def test_composed_both_nodes_work_in_one_process(peer: Peer, events: Events) -> None:
    image = image_message(1)
    assert peer.depth_of(image, camera_info()).header == image.header
    for node in BOTH:
        peer.await_active(node)
    assert [name for name, _ in events.started] == ["tiekd_nodes"]


@pytest.mark.parametrize("peer", [BY_HAND], indirect=True)
@pytest.mark.launch(fixture=by_hand)
def test_without_autostart_a_lifecycle_manager_leads_the_nodes(peer: Peer) -> None:
    for node in BOTH:
        assert peer.state_of(node) == UNCONFIGURED
        assert peer.change_state(node, Transition.TRANSITION_CONFIGURE)
        assert peer.state_of(node) == INACTIVE
        assert peer.change_state(node, Transition.TRANSITION_ACTIVATE)
        assert peer.state_of(node) == ACTIVE
        request = GetParameters.Request(names=["autostart", "rectify", "image_transport"])
        autostart, rectify, transport = peer.ask(
            GetParameters, f"{node}/get_parameters", request
        ).values
        assert (autostart.bool_value, rectify.bool_value) == (False, True)
        assert transport.string_value == "raw"


@pytest.mark.launch(fixture=again)
def test_a_killed_node_comes_again_and_a_camera_that_has_played_does_not(events: Events) -> None:
    with Peer(AGAIN) as peer:
        peer.await_active("depth_node")
        wait_for(lambda: ("camera_node", 0) in events.ended, "the end of the camera's images")
    (killed,) = events.pids("depth_node")
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: len(events.pids("depth_node")) == 2, "a second depth_node")
    # As long after its end the camera would have come again, and before the node.
    assert len(events.pids("camera_node")) == 1
    with Peer(AGAIN) as peer:  # a new one: Fast DDS may not match an old one, see the README
        peer.await_active("depth_node")
