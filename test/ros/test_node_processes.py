"""The nodes as programs: exit status, signals, one clear line where they cannot start."""

from __future__ import annotations

import signal
import time

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition

from helpers.children import run_python
from helpers.students import promote_small
from ros_helpers.messages import camera_info, image_message
from ros_helpers.peer import UNCONFIGURED, Peer
from ros_helpers.processes import Processes
from ros_helpers.waiting import wait_for
from tiekd_ros.core.state import StateFolder

_BETWEEN_SIGNALS_S = 0.05
SMALL_CAMERA = {"width": 96, "height": 72, "rate_hz": 20.0}


@pytest.fixture(autouse=True)
def promoted(state: StateFolder) -> None:
    promote_small(state)


@pytest.mark.parametrize(
    "signals",
    [
        (signal.SIGINT,),
        (signal.SIGTERM,),
        (signal.SIGINT, signal.SIGINT),  # as under `ros2 launch`, from the terminal and from launch
    ],
)
def test_a_signal_ends_every_node_cleanly_in_full_work(
    peer: Peer, processes: Processes, state: StateFolder, signals: tuple[int, ...]
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
    for number in signals:
        for node in nodes:
            node.child.process.send_signal(number)
        time.sleep(_BETWEEN_SIGNALS_S)
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


def test_a_companion_without_a_usable_frame_log_says_so_and_starts_when_it_is_mended(
    peer: Peer, processes: Processes, state: StateFolder
) -> None:
    rubbish = b"no frame log " * 1000
    state.frames.write_bytes(rubbish)
    node = processes.node("companion_node", state_dir=str(state.root))
    reason = "cannot be read as a frame log"
    peer.await_diagnosis("companion_node", reason, DiagnosticStatus.ERROR)
    assert state.frames.read_bytes() == rubbish
    state.frames.unlink()
    peer.await_active("companion_node")
    assert "Traceback" not in node.output


def test_without_autostart_a_node_waits_for_a_lifecycle_manager(
    peer: Peer, processes: Processes, state: StateFolder
) -> None:
    processes.node("depth_node", state_dir=str(state.root), autostart=False)
    assert peer.state_of("depth_node") == UNCONFIGURED
    assert peer.change_state("depth_node", Transition.TRANSITION_CONFIGURE)
    assert peer.change_state("depth_node", Transition.TRANSITION_ACTIVATE)
    peer.depth_of(image_message(), camera_info())
    peer.await_diagnosis("depth_node", "publishing depth", DiagnosticStatus.OK)


def test_the_camera_does_without_what_learns() -> None:
    code = "import sys, tiekd_ros.nodes.camera.node; sys.exit('torch' in sys.modules)"
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr or "camera_node loads torch"
