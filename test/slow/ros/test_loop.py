"""The whole loop at small size: every part a process, over real ROS and real gRPC."""

from __future__ import annotations

from ros_helpers.companion import PATIENT_TEACHER, round_parameters
from ros_helpers.peer import Peer
from ros_helpers.processes import Processes
from ros_helpers.waiting import wait_for
from tiekd_ros.core.launch_options import free_port
from tiekd_ros.core.state import StateFolder
from tiekd_ros.student.registry import StudentRegistry

CAMERA = {"width": 96, "height": 72, "rate_hz": 10.0, "period_s": 30.0}
FAST_LOG = {
    "frames__min_interval_s": 0.2,
    "frames__min_sharpness": 0.0,
    "frames__block_s": 1.0,
    "frames__held_out_every": 2,
}


def test_the_loop_brings_depth_and_then_a_second_round_while_it_streams(
    peer: Peer, processes: Processes, state: StateFolder
) -> None:
    port = free_port()
    peer.listen_to_camera("image", "image_info")
    processes.tiekd(
        "teacher", "serve", "--backend", "synthetic", "--port", str(port), "--period", "30"
    )
    processes.node("camera_node", "image_raw:=image", "camera_info:=image_info", **CAMERA)
    depth_node = processes.node("depth_node", state_dir=str(state.root), threads=1)
    companion = processes.node(
        "companion_node",
        state_dir=str(state.root),
        **FAST_LOG,
        **PATIENT_TEACHER,
        **round_parameters(train={"iterations": 80}),
        teacher__url=f"127.0.0.1:{port}",
    )

    first = _distil_once(peer, 1)
    assert first["state"] == "promoted", (first, companion.output)
    assert "round 1 started: " in companion.output
    wait_for(lambda: "000001" in peer.students, "the announcement")
    wait_for(lambda: len(set(peer.depth) & set(peer.images)) > 5, "depth with the images' stamps",
             explain=lambda: depth_node.output)  # fmt: skip
    _check_stream(peer)

    second = _distil_once(peer, 2)
    assert second["state"] in ("promoted", "refused"), second
    registry = StudentRegistry(state.students)
    assert registry.versions() == ["000001", "000002"]
    live = "000002" if second["state"] == "promoted" else "000001"
    assert registry.live() == live
    peer.await_value("depth_node", "student", live)
    peer.await_value("depth_node", "dropped by swap", "0")
    so_far = len(peer.depth)
    wait_for(lambda: len(peer.depth) > so_far + 5, "depth after the second round")
    _check_stream(peer)


def _distil_once(peer: Peer, number: int) -> dict[str, str]:
    """Wait for labels, call distill as a client would, and wait for the round's end."""

    def enough() -> bool:
        values = peer.diagnosis("companion_node").values
        counts = [values.get(k, "0") for k in ("labels new since last round", "labelled held out")]
        # So many that the places of both splits overlap, whenever the first frames were logged.
        return int(counts[0]) >= 24 and int(counts[1]) >= 8

    wait_for(enough, "labelled frames", explain=lambda: peer.diagnosis("companion_node"))
    started, message = peer.trigger("distill")
    assert started, message
    return peer.await_round(number)


def _check_stream(peer: Peer) -> None:
    """See that depth belongs to the camera's images, and its camera_info to depth."""
    stamps = set(peer.depth) & set(peer.images)
    for stamp in stamps:
        assert peer.depth[stamp].header == peer.images[stamp].header
        assert (peer.depth[stamp].width, peer.depth[stamp].height) == (96, 72)
    assert stamps & set(peer.infos)
