"""`tiekd up` runs the nodes, starts a killed one again, and ends them all on Ctrl-C."""

from __future__ import annotations

import os
import signal

from helpers.students import small_student
from ros_helpers.peer import Peer
from ros_helpers.processes import Processes, find_process
from ros_helpers.waiting import wait_for
from tiekd_ros.state import StateFolder
from tiekd_ros.student import StudentRegistry

NODES = ("depth_node", "companion_node", "camera_node")


def test_up_restarts_a_killed_node_and_ends_all_on_sigint(
    peer: Peer, processes: Processes, state: StateFolder
) -> None:
    registry = StudentRegistry(state.students)
    registry.promote(registry.add(small_student()).version)
    topics = f"{peer.namespace}/image"

    def pid_of(node: str) -> int | None:
        return find_process(f"tiekd_ros.nodes.{node}", topics)

    up = processes.tiekd(
        "up", "--namespace", peer.namespace, "--camera", "synthetic", "--teacher", "none",
        "--image-topic", topics, "--camera-info-topic", f"{peer.namespace}/image_info",
        "--state", str(state.root),
    )  # fmt: skip
    peer.listen_to_camera("image", "image_info")
    wait_for(lambda: set(peer.depth) & set(peer.images), "depth", explain=lambda: up.output)
    assert all(pid_of(node) for node in NODES)

    killed = pid_of("depth_node")
    assert killed is not None
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
