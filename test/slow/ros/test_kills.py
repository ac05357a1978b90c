"""kill -9 in the middle of the work: start again, and it goes on; nothing is lost."""

from __future__ import annotations

import json
import os
import signal

import pytest
from diagnostic_msgs.msg import DiagnosticStatus

from helpers.canaries import FRAMES, promote_bad
from helpers.students import small_student
from ros_helpers.companion import (
    STEP_NS,
    await_frames,
    frame_ids,
    learning_companion,
    log_image,
    logging_companion,
    round_parameters,
)
from ros_helpers.messages import camera_info, image_message
from ros_helpers.peer import Peer
from ros_helpers.processes import Process, Processes, find_process, is_running
from ros_helpers.waiting import wait_for
from tiekd_ros.core.launch_options import free_port
from tiekd_ros.core.state import StateFolder
from tiekd_ros.nodes.common.conversions import stamp_ns
from tiekd_ros.student.checkpoint import load_student
from tiekd_ros.student.registry import StudentRegistry
from tiekd_ros.worlds import IndoorWorld, WorldSettings

ENDLESS = {"train": {"iterations": 1_000_000}}
COMPANION = "companion_node"


def await_training(peer: Peer, filled: StateFolder) -> int:
    """Wait until a worker is in mid-training, and return its process id."""
    wait_for(lambda: peer.statuses and int(peer.statuses[-1]["step"]) > 0, "training steps")
    worker = find_process("tiekd_ros.rounds.worker", str(filled.root))
    assert worker is not None
    return worker


def check_students(filled: StateFolder, expected: list[str]) -> None:
    """See that whole versions are there, and nothing half-written beside them."""
    kept = {p.name for p in filled.students.iterdir()} - {"live.json", ".lock"}
    assert kept == set(expected)
    for version in expected:
        load_student(filled.students / version)


def test_a_killed_worker_fails_its_round_and_the_next_one_works(
    peer: Peer, filled: StateFolder
) -> None:
    before = frame_ids(filled)
    with learning_companion(peer, filled, **ENDLESS):
        assert peer.trigger("distill")[0]
        os.kill(await_training(peer, filled), signal.SIGKILL)
        status = peer.await_round(1)
        assert status["state"] == "failed"
        assert "killed by signal 9" in status["reason"]
        peer.await_diagnosis(COMPANION, "round 1 failed", DiagnosticStatus.WARN)
        assert frame_ids(filled) == before
        check_students(filled, [])
        assert peer.set_parameter(COMPANION, "train.iterations", 2).successful
        assert peer.trigger("distill")[0]
        assert peer.await_round(2)["version"] == "000001"
    assert frame_ids(filled) == before
    check_students(filled, ["000001"])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_round_whose_companion_ended_is_taken_up_by_the_next_one(
    peer: Peer, processes: Processes, filled: StateFolder, number: int
) -> None:
    before = frame_ids(filled)
    shared = {"state_dir": str(filled.root), "teacher__url": ""}
    companion = processes.node(COMPANION, **shared, **round_parameters(**ENDLESS))
    assert peer.trigger("distill")[0]
    worker = await_training(peer, filled)
    assert companion.stop(number) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    assert "Traceback" not in companion.output
    wait_for(lambda: not is_running(worker), "the end of the worker")
    assert frame_ids(filled) >= before
    check_students(filled, [])

    again = processes.node(COMPANION, **shared, **round_parameters())
    assert peer.await_round(2)["state"] == "promoted"
    assert "took up the round that was interrupted" in again.output
    assert json.loads((filled.rounds / "000001.json").read_text())["state"] == "interrupted"
    assert frame_ids(filled) >= before
    check_students(filled, ["000001"])
    wait_for(lambda: peer.students == ["000001"], "the announcement")


def test_frames_outlive_a_killed_teacher_and_are_labelled_by_its_successor(
    peer: Peer, processes: Processes, state: StateFolder
) -> None:
    port = free_port()
    world = IndoorWorld(WorldSettings(seed=0))
    camera = IndoorWorld.default_intrinsics(96, 72)
    info = camera_info(camera.matrix().flatten().tolist())

    def teacher() -> Process:
        return processes.tiekd("teacher", "serve", "--backend", "synthetic", "--port", str(port))

    def log(numbers: range) -> None:
        for number in numbers:
            image = image_message(number, step_ns=STEP_NS)
            pixels = world.render(stamp_ns(image.header), 96, 72, camera).image
            log_image(peer, state, image_message(number, pixels, step_ns=STEP_NS), info)

    first = teacher()
    with logging_companion(peer, state, f"127.0.0.1:{port}"):
        log(range(0, 20, 4))
        await_frames(state, "labelled", 5)
        first.kill()
        log(range(20, 32, 4))
        peer.await_diagnosis(COMPANION, "the teacher does not answer", DiagnosticStatus.WARN)
        await_frames(state, "logged", 3)
        before = frame_ids(state)
        teacher()
        await_frames(state, "labelled", 8)
        assert frame_ids(state) == before
        last = image_message(28, step_ns=STEP_NS)  # shown on: a camera that stops is a finding
        peer.await_diagnosis(COMPANION, "logging frames", DiagnosticStatus.OK, last, info)


def test_a_killed_depth_node_starts_again_with_the_live_student(
    peer: Peer, processes: Processes, state: StateFolder
) -> None:
    registry = StudentRegistry(state.students)
    for seed in (1, 2):
        registry.promote(registry.add(small_student(seed)).version)
    first = processes.node("depth_node", state_dir=str(state.root))
    before = peer.depth_of(image_message(0), camera_info())
    first.kill()
    processes.node("depth_node", state_dir=str(state.root))
    again = image_message(1)
    again.data = image_message(0).data
    after = peer.depth_of(again, camera_info())
    assert bytes(after.data) == bytes(before.data)
    peer.await_value("depth_node", "student", "000002")


def test_a_canary_whose_companion_was_killed_is_taken_up_by_the_next_one(
    peer: Peer, processes: Processes, filled: StateFolder
) -> None:
    promote_bad(filled)
    shared = {"state_dir": str(filled.root), "teacher__url": ""}
    parameters = round_parameters(canary={"frames": FRAMES})
    first = processes.node(COMPANION, **shared, **parameters)
    worker = wait_for(lambda: find_process("tiekd_ros.rounds.worker", str(filled.root)), "a worker")
    first.kill()
    wait_for(lambda: not is_running(worker), "the end of the worker")
    processes.node(COMPANION, **shared, **parameters)
    wait_for(
        lambda: peer.statuses and peer.statuses[-1].get("canary") == "rolled back",
        "the end of the canary",
        explain=lambda: peer.statuses[-1:],
    )
    wait_for(lambda: peer.students[-1:] == ["000001"], "the announcement")
    assert StudentRegistry(filled.students).live() == "000001"
