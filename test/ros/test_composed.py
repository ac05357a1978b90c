"""`tiekd_nodes`: both nodes in one process."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import yaml
from diagnostic_msgs.msg import DiagnosticStatus

from helpers.students import promote_small
from ros_helpers.messages import camera_info, image_message
from ros_helpers.peer import Peer
from ros_helpers.processes import Processes
from ros_helpers.waiting import wait_for
from tiekd_ros.core.state import StateFolder

PROGRAM = "tiekd_nodes"


@pytest.fixture(autouse=True)
def promoted(state: StateFolder) -> None:
    promote_small(state)


def test_both_nodes_work_in_one_process_and_end_with_one_signal(
    peer: Peer, processes: Processes, state: StateFolder
) -> None:
    program = processes.node(PROGRAM, state_dir=str(state.root), teacher__url="")
    peer.depth_of(image_message(), camera_info())
    for name in ("depth_node", "companion_node"):
        peer.await_active(name)
    started, message = peer.trigger("distill")
    assert not started
    assert "labelled" in message
    wait_for(
        lambda: int(peer.diagnosis("companion_node").values.get("frames offered", "0")),
        "a frame that the companion takes",
        nudge=lambda: peer.show(image_message(1), camera_info()),
        explain=lambda: program.output,
    )
    assert program.stop(signal.SIGINT) == 0, program.output
    for word in ("Traceback", "ERROR", "unknown parameter", "other nodes' parameters"):
        assert word not in program.output, program.output


def test_names_and_parameters_may_be_for_one_of_them(
    peer: Peer, processes: Processes, state: StateFolder, tmp_path: Path
) -> None:
    file = tmp_path / "one.yaml"
    file.write_text(yaml.safe_dump({"/**/eye": {"ros__parameters": {"encoding": "16UC1"}}}))
    command = processes.command(
        PROGRAM, "depth_node:__node:=eye", state_dir=str(state.root), teacher__url=""
    )
    program = processes.start(PROGRAM, [*command, "--params-file", str(file)])
    peer.await_active("eye")
    peer.await_active("companion_node")
    assert peer.depth_of(image_message(), camera_info()).encoding == "16UC1", program.output
    assert "unknown parameter" not in program.output


def test_where_one_cannot_be_made_the_program_ends_with_the_reason(
    processes: Processes, state: StateFolder
) -> None:
    program = processes.node(PROGRAM, state_dir=str(state.root), frames__jpeg_quality=7)
    assert program.wait() == 1
    assert "jpeg_quality" in program.output
    assert "Traceback" not in program.output


def test_one_that_cannot_be_configured_does_not_hold_up_the_other(
    peer: Peer, processes: Processes, state: StateFolder
) -> None:
    state.frames.write_bytes(b"no frame log " * 1000)
    processes.node(PROGRAM, state_dir=str(state.root))
    peer.depth_of(image_message(), camera_info())
    peer.await_diagnosis("companion_node", "cannot be read as a frame log", DiagnosticStatus.ERROR)
