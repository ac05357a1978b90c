"""The nodes as programs, alone and composed: signals, exit status, one line where they fail."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticStatus

from helpers.children import run_python
from ros_helpers.messages import camera_info, image_message
from ros_helpers.peer import Peer
from ros_helpers.processes import Processes
from ros_helpers.waiting import wait_for
from tiekd_ros.core.state import StateFolder
from tiekd_ros.nodes.programs import PROGRAMS

_BETWEEN_SIGNALS_S = 0.05
SMALL_CAMERA = {"width": 96, "height": 72, "rate_hz": 20.0}


@pytest.mark.usefixtures("promoted")
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
    peer.await_above("companion_node", "frames kept")
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
        (processes.node("tiekd_nodes", **shared, frames__jpeg_quality=7), "jpeg_quality"),
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


# As the console script, but the import of the node's module is where Ctrl-C is pressed.
INTERRUPTED = """
import os, signal, sys

class Import:
    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            print("importing", flush=True)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Import())
from tiekd_ros.nodes.programs import {program}
sys.exit({program}())
"""


def test_ctrl_c_ends_a_program_quietly_while_it_imports(processes: Processes) -> None:
    started = []
    for program, (place, *_) in PROGRAMS.items():
        code = INTERRUPTED.format(program=program, module=place.partition(":")[0])
        started.append(processes.start(program, [sys.executable, "-c", code]))
    for process in started:
        assert process.wait() == 0, process.output
        assert process.output == "importing\n"


# tiekd_nodes: both in one process.


@pytest.mark.usefixtures("promoted")
def test_both_nodes_work_in_one_process_and_end_with_one_signal(
    peer: Peer, processes: Processes, state: StateFolder
) -> None:
    program = processes.node("tiekd_nodes", state_dir=str(state.root), teacher__url="")
    peer.depth_of(image_message(), camera_info())
    for name in ("depth_node", "companion_node"):
        peer.await_active(name)
    started, message = peer.trigger("distill")
    assert not started
    assert "labelled" in message
    peer.await_above("companion_node", "frames offered", 0, image_message(1), camera_info())
    assert program.stop(signal.SIGINT) == 0, program.output
    for word in ("Traceback", "ERROR", "unknown parameter", "other nodes' parameters"):
        assert word not in program.output, program.output


@pytest.mark.usefixtures("promoted")
def test_names_and_parameters_may_be_for_one_of_them(
    peer: Peer, processes: Processes, state: StateFolder, tmp_path: Path
) -> None:
    file = tmp_path / "one.yaml"
    file.write_text(yaml.safe_dump({"/**/eye": {"ros__parameters": {"encoding": "16UC1"}}}))
    command = processes.command(
        "tiekd_nodes", "depth_node:__node:=eye", state_dir=str(state.root), teacher__url=""
    )
    program = processes.start("tiekd_nodes", [*command, "--params-file", str(file)])
    peer.await_active("eye")
    peer.await_active("companion_node")
    assert peer.depth_of(image_message(), camera_info()).encoding == "16UC1", program.output
    assert "unknown parameter" not in program.output


@pytest.mark.usefixtures("promoted")
def test_one_that_cannot_be_configured_does_not_hold_up_the_other(
    peer: Peer, processes: Processes, state: StateFolder
) -> None:
    state.frames.write_bytes(b"no frame log " * 1000)
    processes.node("tiekd_nodes", state_dir=str(state.root))
    peer.depth_of(image_message(), camera_info())
    peer.await_diagnosis("companion_node", "cannot be read as a frame log", DiagnosticStatus.ERROR)
