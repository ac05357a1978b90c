"""`tiekd snapshot`: pictures of the running nodes' messages, or the reason why there are none."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from sensor_msgs.msg import Image
from typer.testing import CliRunner

from helpers.students import BINS, promote_small
from ros_helpers.messages import FRAME_ID, HEIGHT, WIDTH, camera_info, header, image_message
from ros_helpers.peer import Peer, running
from ros_helpers.waiting import PATIENCE_S, wait_for
from tiekd_ros.cli.__main__ import app
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.images import decode_image
from tiekd_ros.core.state import StateFolder
from tiekd_ros.diagnosis import keys
from tiekd_ros.nodes.common.conversions import depth_to_image, image_to_rgb, stamp_ns
from tiekd_ros.nodes.depth.node import DepthNode
from tiekd_ros.nodes.depth.preview import describe_range, with_scale
from tiekd_ros.nodes.probe import snapshot as snapshot_module
from tiekd_ros.nodes.probe.snapshot import SnapshotTaker, write_snapshot

PERIOD_S = 0.1
GRACE_S, LATE_S, STALE_S = 0.5, 1.5, 0.3
RANGE = (BINS.min_depth_m, 9.0, "turbo")


def tiekd_snapshot(*arguments: str) -> tuple[int, str]:
    """Return the exit status, and what `tiekd snapshot` printed with its error."""
    done = CliRunner().invoke(app, ["snapshot", *arguments])
    assert done.exception is None or isinstance(done.exception, TiekdError | SystemExit)
    return done.exit_code, f"{done.output}{done.exception or ''}"


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """A depth_node with a student and a camera."""
    state = StateFolder(tmp_path_factory.mktemp("robot") / "state").create()
    promote_small(state)
    with (
        Peer("/test_snapshot") as peer,
        running(DepthNode, peer, state_dir=str(state.root), max_range_m=9.0),
        peer.playing(camera_info(), PERIOD_S),
    ):
        yield peer


def test_all_pictures_are_of_one_image_as_it_was_published(robot: Peer, tmp_path: Path) -> None:
    out = tmp_path / "not" / "there" / "yet"
    status, output = tiekd_snapshot(str(out), "--namespace", robot.namespace)
    assert status == 0, output
    names = ["depth_mm.png", "image.png", "points.png", "preview.png", "snapshot.json"]
    assert sorted(file.name for file in out.iterdir()) == names
    facts = json.loads((out / "snapshot.json").read_text())
    stamps = {stamp_ns(image_message(n).header): n for n in range(1000)}
    number = stamps[facts["stamp_ns"]]
    image = decode_image((out / "image.png").read_bytes())
    np.testing.assert_array_equal(image, image_to_rgb(image_message(number)))
    depth = cv2.imread(str(out / "depth_mm.png"), cv2.IMREAD_UNCHANGED)
    assert (depth.dtype, depth.shape) == (np.uint16, (HEIGHT, WIDTH))
    share = np.count_nonzero(depth) / depth.size
    assert share == pytest.approx(facts["share_with_depth"], abs=1e-3)
    median_m = np.median(depth[depth > 0]) / 1000
    assert median_m == pytest.approx(facts["depth_m"]["median"], abs=2e-3)
    preview = decode_image((out / "preview.png").read_bytes())
    assert preview.shape[0] > HEIGHT  # the colours' depths are below it
    np.testing.assert_array_equal(preview, with_scale(preview[:HEIGHT, :WIDTH], *RANGE))
    assert decode_image((out / "points.png").read_bytes()).std() > 5
    assert facts["frame_id"] == FRAME_ID
    assert facts["topics"]["image"] == f"{robot.namespace}/image"  # found out, not told
    assert facts["student"] == "000001"
    assert facts["preview_shows"] == describe_range(*RANGE)
    assert facts["missing"] == {}


def test_without_nodes_it_names_the_topic_and_where_there_is_another(
    robot: Peer, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    status, output = tiekd_snapshot(str(out), "--namespace", "no", "--timeout", "0.1")
    assert status == 1
    assert "no node publishes /no/depth; start the nodes" in output
    assert not out.exists()
    with SnapshotTaker("no") as taker:

        def reason() -> str:
            with pytest.raises(TiekdError) as caught:
                taker.take(0.1, lambda counts: None)
            return str(caught.value)

        hint = f"there is {robot.namespace}/depth: --namespace {robot.namespace}"
        wait_for(lambda: hint in reason(), hint, explain=reason)


def test_without_calibration_it_writes_what_there_is_and_says_what_is_missing_and_why(
    peer: Peer, state: StateFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With depth in millimetres, and outputs that are best effort."""
    monkeypatch.setattr(snapshot_module, "_GRACE_S", GRACE_S)
    promote_small(state)
    other = {"encoding": "16UC1", "output_reliability": "best_effort"}
    with (
        running(DepthNode, peer, state_dir=str(state.root), **other),
        peer.playing(None, PERIOD_S),
    ):
        status, output = tiekd_snapshot(str(tmp_path), "--namespace", peer.namespace)
    assert status == 1
    assert (tmp_path / "preview.png").exists()
    assert not (tmp_path / "points.png").exists()
    assert "no points: nothing came on" in output
    assert "there are no points without camera_info" in output
    facts = json.loads((tmp_path / "snapshot.json").read_text())
    assert facts["encoding"] == "16UC1"
    assert set(facts["missing"]) == {"points", "camera_info"}


def test_where_no_image_has_all_parts_that_with_most_is_taken_and_a_late_report_awaited(
    peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    stale = KeyValue(key=keys.PREVIEW_SHOWS, value="nothing yet")
    shown = KeyValue(key=keys.PREVIEW_SHOWS, value=describe_range(*RANGE))

    def report() -> None:
        for value in (stale, shown):
            status.values = [KeyValue(key=keys.STUDENT, value="000007"), value]
            diagnostics.publish(DiagnosticArray(status=[status]))
            time.sleep(STALE_S)

    late = threading.Timer(LATE_S, report)
    image_topic = f"{peer.namespace}/image"
    with SnapshotTaker(peer.namespace, image_topic) as taker:
        snapshot = taker.take(PATIENCE_S, publish)
    late.join()
    told = {keys.STUDENT: "000007", keys.PREVIEW_SHOWS: describe_range(*RANGE)}
    assert snapshot.diagnostics == told
    assert set(snapshot.messages) == {"image", "depth", "preview"}
    stamps = {stamp_ns(message.header) for message in snapshot.messages.values()}
    assert stamps == {stamp_ns(image_message(2).header)}
    assert set(snapshot.missing) == {"camera_info", "points"}

    monkeypatch.setattr(snapshot_module, "_REPORT_S", GRACE_S)
    with SnapshotTaker(peer.namespace, image_topic) as taker:
        snapshot = taker.take(PATIENCE_S, publish)
    reason = snapshot.missing["diagnostics"]
    assert reason.startswith(f"nothing came from {peer.namespace}/peer on /diagnostics")
    depth = depth_to_image(np.ones((HEIGHT, WIDTH), np.float32), header())
    messages = {"depth": depth, "preview": snapshot.messages["preview"]}
    write_snapshot(replace(snapshot, messages=messages), tmp_path)
    assert json.loads((tmp_path / "snapshot.json").read_text())["student"] is None
    preview = decode_image((tmp_path / "preview.png").read_bytes())
    assert preview.shape == (HEIGHT, WIDTH, 3)  # without a scale that might be wrong


def test_without_depth_it_repeats_the_depth_nodes_report(
    peer: Peer, state: StateFolder, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with running(DepthNode, peer, state_dir=str(state.root)), peer.playing(camera_info(), PERIOD_S):
        status, output = tiekd_snapshot(str(out), "--namespace", peer.namespace, "--timeout", "1.5")
    assert status == 1
    assert f"no depth within 1.5 s: {peer.namespace}/depth_node reports: " in output
    assert "no accepted student" in output
    assert not out.exists()


def test_options_that_cannot_be_are_refused_at_once(tmp_path: Path) -> None:
    for options, reason in (
        (("--namespace", "a b!"), "no name for ROS: Invalid namespace"),
        (("--image-topic", "/a b"), "no name for ROS: failed to resolve name"),
        (("--timeout", "0"), "Invalid value"),
    ):
        status, output = tiekd_snapshot(str(tmp_path / "out"), *options)
        assert status != 0
        assert reason in output
    file = tmp_path / "file"
    file.write_text("mine")
    status, output = tiekd_snapshot(str(file))
    assert status == 1
    assert f"{file} is a file; give a folder" in output
    assert file.read_text() == "mine"
