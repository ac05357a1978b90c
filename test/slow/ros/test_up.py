"""`tiekd up` runs the nodes, starts a killed one again, and ends them all with itself."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rcl_interfaces.srv import GetParameters

from helpers.students import promote_small
from ros_helpers.companion import stats
from ros_helpers.peer import Peer
from ros_helpers.processes import Process, Processes, find_process, is_running
from ros_helpers.waiting import wait_for
from tiekd_ros.core.state import StateFolder
from tiekd_ros.rounds.limits import NICENESS

NODES = ("depth_node", "companion_node", "camera_node")


def start_up(
    peer: Peer, processes: Processes, *words: str
) -> tuple[Process, Callable[[str], int | None]]:
    """Start `tiekd up` with the synthetic camera; return it, and how to find its nodes' ids."""
    topic = f"{peer.namespace}/image"
    given = ("--namespace", peer.namespace, "--camera", "synthetic", "--image-topic", topic)
    up = processes.tiekd("up", *given, *words)
    return up, lambda node: find_process("tiekd_ros.nodes.programs", node, topic)


def test_up_restarts_a_killed_node_and_ends_all_on_sigint(
    peer: Peer, processes: Processes, state: StateFolder
) -> None:
    promote_small(state)
    words = ("--camera-info-topic", f"{peer.namespace}/image_info", "--state", str(state.root))
    up, pid_of = start_up(peer, processes, "--teacher", "none", *words)
    peer.listen_to_camera("image", "image_info")
    wait_for(lambda: set(peer.depth) & set(peer.images), "depth", explain=lambda: up.output)
    assert all(pid_of(node) for node in NODES)

    killed = pid_of("depth_node")
    os.kill(killed, signal.SIGKILL)
    wait_for(
        lambda: pid_of("depth_node") not in (None, killed),
        "the node to come back",
        explain=lambda: up.output,
    )
    so_far = len(peer.depth)
    wait_for(lambda: len(peer.depth) > so_far, "depth again", explain=lambda: up.output)
    assert "depth_node was killed by signal 9; again in 1 s" in up.output

    assert up.stop(signal.SIGINT) == 0, up.output
    assert not any(pid_of(node) for node in NODES)
    assert "Traceback" not in up.output


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel for it")
def test_the_nodes_take_the_file_of_parameters_and_end_with_an_up_that_is_killed(
    peer: Peer, processes: Processes, tmp_path: Path
) -> None:
    in_file = tmp_path / "from_file"
    file = tmp_path / "params.yaml"
    values = {"state_dir": str(in_file), "teacher.url": "127.0.0.1:9", "rate_hz": 3.0}
    file.write_text(json.dumps({"/**": {"ros__parameters": values}}))
    up, pid_of = start_up(peer, processes, "--params-file", str(file))

    def value_of(node: str, name: str) -> object:
        request = GetParameters.Request(names=[name])
        return peer.ask(GetParameters, f"{node}/get_parameters", request).values[0]

    for node in ("depth_node", "companion_node"):
        peer.await_diagnosis(node, "")
        assert value_of(node, "state_dir").string_value == str(in_file)
    assert value_of("companion_node", "teacher.url").string_value == "127.0.0.1:9"
    assert value_of("camera_node", "rate_hz").double_value == 3.0
    pids = [pid_of(node) for node in NODES]
    assert all(pids), up.output
    up.kill()
    wait_for(lambda: not any(is_running(pid) for pid in pids), "the end of the nodes")


def test_a_teacher_beside_the_nodes_labels_their_frames_and_ends_with_them(
    peer: Peer, processes: Processes, state: StateFolder
) -> None:
    words = ("--camera-info-topic", f"{peer.namespace}/image_info", "--state", str(state.root))
    up, _ = start_up(peer, processes, "--teacher", "synthetic:0", *words)
    up.await_output("listens on 127.0.0.1:")
    teacher = find_process("tiekd_ros.cli", "teacher", "serve", "synthetic:0", "--give-way")
    assert teacher is not None
    assert os.sched_getscheduler(teacher) == os.SCHED_BATCH  # the tests may be as nice as it is
    assert os.getpriority(os.PRIO_PROCESS, teacher) >= NICENESS["batch"]
    wait_for(
        lambda: sum(stats(state).frames.get("labelled", {}).values()) >= 2,
        "labels",
        explain=lambda: up.output,
    )
    assert up.stop(signal.SIGINT) == 0, up.output
    assert not is_running(teacher)
    assert "Traceback" not in up.output
