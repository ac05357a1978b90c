"""`tiekd snapshot`: pictures of the running nodes' messages, or the reason why there are none."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from sensor_msgs.msg import Image

from helpers.students import BINS, promote_small
from ros_helpers.messages import FRAME_ID, HEIGHT, WIDTH, camera_info, image_message
from ros_helpers.peer import Peer, running
from ros_helpers.processes import Processes
from ros_helpers.waiting import PATIENCE_S, wait_for
from tiekd_ros.cli.nodes import snapshot as take_snapshot
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.images import decode_image
from tiekd_ros.core.state import StateFolder
from tiekd_ros.nodes.common.conversions import image_to_rgb, stamp_ns
from tiekd_ros.nodes.depth.node import DepthNode
from tiekd_ros.nodes.depth.preview import describe_range, with_scale
from tiekd_ros.nodes.probe import snapshot as snapshot_module
from tiekd_ros.nodes.probe.snapshot import SnapshotTaker

PERIOD_S = 0.1
GRACE_S, LATE_S, STALE_S = 2.0, 6.0, 0.3
RANGE = (BINS.min_depth_m, 9.0, "turbo")


@pytest.fixture
def promoted(state: StateFolder) -> StateFolder:
    promote_small(state)
    return state


def test_all_pictures_are_of_one_image_as_it_was_published(
    peer: Peer, processes: Processes, promoted: StateFolder, tmp_path: Path
) -> None:
    out = tmp_path / "not" / "there" / "yet"
    with (
        running(DepthNode, peer, state_dir=str(promoted.root), max_range_m=9.0),
        peer.playing(camera_info(), PERIOD_S),
    ):
        taken = processes.tiekd("snapshot", str(out), "--namespace", peer.namespace)
        assert taken.wait() == 0, taken.output
    names = ["depth_mm.png", "image.png", "points.png", "preview.png", "snapshot.json"]
    assert sorted(file.name for file in out.iterdir()) == names
    facts = json.loads((out / "snapshot.json").read_text())
    stamps = {stamp_ns(image_message(n).header): n for n in range(1000)}
    number = stamps[facts["stamp_ns"]]
    image = decode_image((out / "image.png").read_bytes())
    np.testing.assert_array_equal(image, image_to_rgb(image_message(number)))
    depth = cv2.imread(str(out / "depth_mm.png"), cv2.IMREAD_UNCHANGED)
    assert (depth.dtype, depth.shape) == (np.uint16, (HEIGHT, WIDTH))
    assert np.count_nonzero(depth) / depth.size == pytest.approx(
        facts["share_with_depth"], abs=1e-3
    )
    if depth.any():
        assert np.median(depth[depth > 0]) / 1000 == pytest.approx(
            facts["depth_m"]["median"], abs=2e-3
        )
    preview = decode_image((out / "preview.png").read_bytes())
    assert preview.shape[0] > HEIGHT  # the colours' depths are below it
    np.testing.assert_array_equal(preview, with_scale(preview[:HEIGHT, :WIDTH], *RANGE))
    assert decode_image((out / "points.png").read_bytes()).std() > 5
    assert facts["frame_id"] == FRAME_ID
    assert facts["topics"]["image"] == f"{peer.namespace}/image"  # found out, not told
    assert facts["student"] == "000001"
    assert facts["preview_shows"] == describe_range(*RANGE)
    assert facts["missing"] == {}


def test_without_calibration_it_writes_what_there_is_and_says_what_is_missing_and_why(
    peer: Peer, processes: Processes, promoted: StateFolder, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with running(DepthNode, peer, state_dir=str(promoted.root)), peer.playing(None, PERIOD_S):
        taken = processes.tiekd("snapshot", str(out), "--namespace", peer.namespace)
        assert taken.wait() == 1
    assert (out / "preview.png").exists()
    assert not (out / "points.png").exists()
    assert "no points: nothing came on" in taken.output
    assert "there are no points without camera_info" in taken.output
    missing = json.loads((out / "snapshot.json").read_text())["missing"]
    assert set(missing) == {"points", "camera_info"}


def test_millimetres_and_best_effort_topics_are_read_too(
    peer: Peer, processes: Processes, promoted: StateFolder, tmp_path: Path
) -> None:
    parameters = {
        "state_dir": str(promoted.root), "encoding": "16UC1", "output_reliability": "best_effort",
    }  # fmt: skip
    out = tmp_path / "out"
    with running(DepthNode, peer, **parameters), peer.playing(camera_info(), PERIOD_S):
        taken = processes.tiekd("snapshot", str(out), "--namespace", peer.namespace)
        assert taken.wait() == 0, taken.output
    assert json.loads((out / "snapshot.json").read_text())["encoding"] == "16UC1"


def test_where_no_image_has_all_parts_that_with_most_is_taken_and_a_late_report_awaited(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_module, "_GRACE_S", GRACE_S)
    parts = {"image": (1, 2), "depth": (1, 2, 3), "depth/preview": (1, 2)}
    publishers = {topic: peer.node.create_publisher(Image, topic, 10) for topic in parts}

    def publish(counts: Mapping[str, int]) -> None:
        if counts["depth"] and late.ident is None:
            late.start()
        for topic, numbers in parts.items():
            for number in numbers:
                publishers[topic].publish(image_message(number))

    diagnostics = peer.node.create_publisher(DiagnosticArray, "/diagnostics", 10)
    status = DiagnosticStatus(name=f"{peer.namespace}/peer")
    stale = KeyValue(key="preview shows", value="nothing yet")
    shown = KeyValue(key="preview shows", value=describe_range(*RANGE))

    def tell() -> None:
        for value in (stale, shown):
            status.values = [KeyValue(key="student", value="000007"), value]
            diagnostics.publish(DiagnosticArray(status=[status]))
            time.sleep(STALE_S)

    late = threading.Timer(LATE_S, tell)
    with SnapshotTaker(peer.namespace, f"{peer.namespace}/image") as taker:
        snapshot = taker.take(PATIENCE_S, publish)
    late.join()
    told = {"student": "000007", "preview shows": describe_range(*RANGE)}
    assert snapshot.diagnostics == told
    assert set(snapshot.messages) == {"image", "depth", "preview"}
    stamps = {stamp_ns(message.header) for message in snapshot.messages.values()}
    assert stamps == {stamp_ns(image_message(2).header)}
    assert set(snapshot.missing) == {"camera_info", "points"}


def test_without_diagnostics_it_writes_the_pictures_and_says_what_is_not_known(
    peer: Peer, promoted: StateFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_module, "_REPORT_S", 0.5)
    monkeypatch.setattr(DepthNode, "publish_report", lambda node: None)
    reason = f"no diagnostics: nothing came from {peer.namespace}/depth_node on /diagnostics"
    with (
        running(DepthNode, peer, state_dir=str(promoted.root)),
        peer.playing(camera_info(), PERIOD_S),
        pytest.raises(TiekdError, match=f"the snapshot is not whole: {reason}"),
    ):
        take_snapshot(tmp_path, namespace=peer.namespace, timeout=PATIENCE_S)
    assert json.loads((tmp_path / "snapshot.json").read_text())["student"] is None
    preview = decode_image((tmp_path / "preview.png").read_bytes())
    assert preview.shape == (HEIGHT, WIDTH, 3)  # without a scale that might be wrong


def test_without_depth_it_repeats_what_the_depth_node_says(
    peer: Peer, processes: Processes, state: StateFolder, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with running(DepthNode, peer, state_dir=str(state.root)), peer.playing(camera_info(), PERIOD_S):
        taken = processes.tiekd(
            "snapshot", str(out), "--namespace", peer.namespace, "--timeout", "4"
        )
        assert taken.wait() == 1
    assert f"no depth within 4 s: {peer.namespace}/depth_node says: " in taken.output
    assert "no accepted student" in taken.output
    assert "Traceback" not in taken.output
    assert not out.exists()


def test_without_nodes_it_names_the_topic_and_how_to_start_them(
    processes: Processes, tmp_path: Path
) -> None:
    taken = processes.tiekd(
        "snapshot", str(tmp_path / "out"), "--namespace", "no", "--timeout", "1"
    )
    assert taken.wait() == 1
    assert "nobody publishes /no/depth; start the nodes" in taken.output
    assert not (tmp_path / "out").exists()


def test_a_wrong_namespace_is_told_the_right_one(
    peer: Peer, processes: Processes, promoted: StateFolder, tmp_path: Path
) -> None:
    with running(DepthNode, peer, state_dir=str(promoted.root)):
        out = str(tmp_path / "out")
        taken = processes.tiekd("snapshot", out, "--namespace", "no", "--timeout", "6")
        assert taken.wait() == 1
    assert f"there is {peer.namespace}/depth: --namespace {peer.namespace}" in taken.output


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--namespace", "a b!"), "no name for ROS: Invalid namespace"),
        (("--image-topic", "/a b"), "no name for ROS: failed to resolve name"),
        (("--timeout", "0"), "Invalid value"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    processes: Processes, tmp_path: Path, options: tuple[str, str], reason: str
) -> None:
    taken = processes.tiekd("snapshot", str(tmp_path / "out"), *options)
    assert taken.wait() != 0
    assert reason in taken.output
    assert "Traceback" not in taken.output


def test_a_file_in_the_way_is_refused_and_left_as_it_is(
    processes: Processes, tmp_path: Path
) -> None:
    file = tmp_path / "out"
    file.write_text("mine")
    taken = processes.tiekd("snapshot", str(file))
    assert taken.wait() == 1
    assert f"{file} is a file; give a folder" in taken.output
    assert file.read_text() == "mine"


def test_it_ends_at_ctrl_c_without_a_traceback(processes: Processes, tmp_path: Path) -> None:
    taken = processes.tiekd("snapshot", str(tmp_path / "out"), "--namespace", "no")
    wait_for(lambda: "so far" in taken.output, "a sign of life", explain=lambda: taken.output)
    assert taken.stop() != 0
    assert "Traceback" not in taken.output
