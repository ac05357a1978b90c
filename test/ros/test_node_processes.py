"""The nodes as programs: exit status, signals, one clear line where they cannot start."""

from __future__ import annotations

import signal
import time

import pytest

from helpers.children import run_python
from helpers.students import promote_small
from ros_helpers.peer import Peer
from ros_helpers.processes import Processes
from ros_helpers.waiting import wait_for
from tiekd_ros.core.state import StateFolder

_BETWEEN_SIGNALS_S = 0.05
SMALL_CAMERA = {"width": 96, "height": 72, "rate_hz": 20.0}


@pytest.fixture(autouse=True)
def promoted(state: StateFolder) -> None:
    promote_small(state)


def test_a_signal_ends_every_node_cleanly_in_full_work(
    peer: Peer, processes: Processes, state: StateFolder
) -> None:
    shared = {"state_dir": str(state.root)}
    nodes = [
        processes.node(
            "camera_node", "image_raw:=image", "camera_info:=image_info", **SMALL_CAMERA
        ),
        processes.node("depth_node", **shared),
        processes.node("companion_node", **shared, teacher__url="", frames__min_interval_s=0.1),
    ]
    wait_for(lambda: len(peer.depth) > 10, "depth", explain=lambda: nodes[1].output)
    wait_for(
        lambda: int(peer.diagnosis("companion_node").values.get("frames kept", "0")),
        "a logged frame",
        explain=lambda: nodes[2].output,
    )
    # Under `ros2 launch` SIGINT comes twice: from the terminal and from launch.
    for node, number in zip(nodes, (signal.SIGINT, signal.SIGINT, signal.SIGTERM), strict=True):
        node.child.process.send_signal(number)
    time.sleep(_BETWEEN_SIGNALS_S)
    for node in nodes[:2]:
        node.child.process.send_signal(signal.SIGINT)
    for node in nodes:
        assert node.wait() == 0, node.output
        for word in ("Traceback", "ERROR", "Exception"):
            assert word not in node.output, node.output


def test_what_cannot_start_says_why_in_one_line_and_ends_with_status_1(
    processes: Processes, state: StateFolder
) -> None:
    shared = {"state_dir": str(state.root)}
    cases = [
        (processes.node("depth_node", **shared, encoding="64FC1"), "'32FC1', '16UC1'"),
        (
            processes.node("depth_node", **shared, device="tpu"),
            "device must be auto, cpu, cuda or cuda:N",
        ),
        (processes.node("companion_node", **shared, frames__jpeg_quality=7), "jpeg_quality"),
        (processes.node("camera_node", source=str(state.root / "none")), "does not exist"),
        (processes.node("camera_node", rate_hz=0.0), "rate_hz"),
    ]
    for process, reason in cases:
        assert process.wait() == 1, process.output
        assert reason in process.output
        assert "Traceback" not in process.output
        assert len(process.output.splitlines()) == 1, process.output


def test_the_camera_does_without_what_learns() -> None:
    code = "import sys; sys.modules['rosbags'] = None; import tiekd_ros.nodes.camera.node; "
    code += "sys.exit('torch' in sys.modules)"
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr or "camera_node loads torch"
