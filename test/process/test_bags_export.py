"""`tiekd frames export`: a rosbag2 that rosbags reads back equal."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

pytest.importorskip("rosbags", reason='bags need rosbags: pip install "tiekd_ros[bags]"')

from rosbags.highlevel import AnyReader

from helpers.bags import stored
from helpers.children import run_python
from helpers.frames import HEIGHT, WIDTH, fill_store, views
from tiekd_ros.bags import BagError
from tiekd_ros.cli.__main__ import app
from tiekd_ros.core.errors import InvalidSettingError, TiekdError
from tiekd_ros.core.images import decode_depth_png, decode_image
from tiekd_ros.core.state import StateFolder
from tiekd_ros.framelog import FrameStore, Label, Observation
from tiekd_ros.framelog.rows import StoredFrame

IMAGE, INFO = "/camera/image_raw", "/camera/camera_info"
JPEG = "/camera/image_raw/compressed"
DEPTH, DEPTH_INFO = "/camera/teacher/depth", "/camera/teacher/camera_info"
FORMATS = ["mcap", "sqlite3"]


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> StateFolder:
    """A frame log of 8 labelled frames, one with a smaller label, one without, one rejected."""
    state = StateFolder(tmp_path_factory.mktemp("log")).create()
    fill_store(state.frames, views()[:10])
    with FrameStore(state.frames) as store:
        ids = store.labelled_ids()
        store.put_label(ids[1], Label(views()[1].depth[::2, ::2], "exact", "half"))
        store.reject(ids[9], "bad_label")
        extra = Observation(views()[20].image, 10**12, "")
        assert store.add(extra).kept
    return state


def export(state: StateFolder, output: Path, *options: str) -> dict[str, Any]:
    words = ["frames", "export", str(output), "--state", str(state.root), *options, "--json"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def read(path: Path) -> dict[str, list[tuple[int, Any]]]:
    """Return (time of recording, message) by topic, as rosbags reads them by its own types."""
    found: dict[str, list[tuple[int, Any]]] = {}
    with AnyReader([path]) as reader:  # which refuses types whose hash does not fit
        for connection, log_ns, data in reader.messages():
            message = reader.deserialize(data, connection.msgtype)
            found.setdefault(connection.topic, []).append((log_ns, message))
    return found


def stamp_of(message: Any) -> int:
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def assert_equal(bag: dict[str, list[tuple[int, Any]]], frames: Sequence[StoredFrame]) -> None:
    """Check that each frame is in the bag, to the last bit."""
    for topic, messages in bag.items():
        assert [at for at, _ in messages] == [stamp_of(message) for _, message in messages], topic
    images, infos, depths, depth_infos = (
        {stamp_of(message): message for _, message in bag.get(topic, [])}
        for topic in (IMAGE, INFO, DEPTH, DEPTH_INFO)
    )
    assert list(images) == [frame.stamp_ns for frame in frames]
    assert set(infos) == {frame.stamp_ns for frame in frames if frame.intrinsics}
    assert set(depths) == {frame.stamp_ns for frame in frames if frame.depth_png}
    for frame in frames:
        image = images[frame.stamp_ns]
        assert (image.encoding, image.header.frame_id) == ("rgb8", frame.frame_id)
        pixels = image.data.reshape(image.height, image.step)[:, : image.width * 3]
        wanted = decode_image(frame.jpeg)
        np.testing.assert_array_equal(pixels.reshape(wanted.shape), wanted)
        if frame.intrinsics:
            info = infos[frame.stamp_ns]
            assert (info.width, info.height) == (frame.width, frame.height)
            np.testing.assert_array_equal(info.k, frame.intrinsics.matrix().flatten())
            assert (list(info.d), info.p[0], info.p[6]) == ([0.0] * 5, info.k[0], info.k[5])
        if frame.depth_png:
            depth, known = depths[frame.stamp_ns], decode_depth_png(frame.depth_png)
            assert (depth.encoding, depth.step, depth.is_bigendian) == (
                "32FC1", 4 * known.shape[1], 0,
            )  # fmt: skip
            np.testing.assert_array_equal(depth.data.view("<f4").reshape(known.shape), known)
            info = depth_infos[frame.stamp_ns]
            assert (info.height, info.width) == known.shape
            assert info.k[0] == frame.intrinsics.fx * known.shape[1] / frame.width


@pytest.mark.parametrize("form", FORMATS)
def test_the_folder_is_what_ros2_bag_expects(tmp_path, log, form):
    report = export(log, tmp_path / "out", "--format", form)
    assert report["messages"] == {IMAGE: 10, INFO: 9, DEPTH: 9, DEPTH_INFO: 9}
    assert report["teachers"] == ["exact 1", "exact half"]
    frames = stored(log)
    assert len(frames) == 10
    shapes = {decode_depth_png(f.depth_png).shape for f in frames if f.depth_png}
    assert shapes == {(HEIGHT // 2, WIDTH // 2), (HEIGHT, WIDTH)}
    assert_equal(read(tmp_path / "out"), frames)
    file = "out.mcap" if form == "mcap" else "out.db3"
    assert {each.name for each in (tmp_path / "out").iterdir()} == {"metadata.yaml", file}
    assert [each.name for each in tmp_path.iterdir()] == ["out"]
    metadata = yaml.safe_load((tmp_path / "out" / "metadata.yaml").read_text())
    information = metadata["rosbag2_bagfile_information"]
    # Of the versions that ROS 2 reads, those before 9 have QoS profiles as text, as Humble does.
    assert (information["version"], information["storage_identifier"]) == (8, form)
    assert information["relative_file_paths"] == [file]
    assert information["message_count"] == 37
    assert (information["compression_format"], information["compression_mode"]) == ("", "")
    for entry in information["topics_with_message_count"]:
        topic = entry["topic_metadata"]
        assert topic["serialization_format"] == "cdr"
        assert isinstance(topic["offered_qos_profiles"], str)
        assert topic["type_description_hash"].startswith("RIHS01_")
    times = [frame.stamp_ns for frame in frames]
    assert information["starting_time"]["nanoseconds_since_epoch"] == times[0]
    assert information["duration"]["nanoseconds"] == times[-1] - times[0]
    assert set(information["custom_data"]) == {"written_by", "teacher"}


def test_jpegs_are_written_as_they_are_stored(tmp_path, log):
    report = export(log, tmp_path / "out", "--compressed", "--labelled")
    assert report["messages"] == {JPEG: 9, INFO: 9, DEPTH: 9, DEPTH_INFO: 9}
    written = [message for _, message in read(tmp_path / "out")[JPEG]]
    assert {message.format for message in written} == {"jpeg"}
    wanted = [frame.jpeg for frame in stored(log) if frame.depth_png]
    assert [message.data.tobytes() for message in written] == wanted


def test_a_split_and_other_names_can_be_asked_for(tmp_path, log):
    held_out = [frame for frame in stored(log) if frame.split == "held_out"]
    report = export(log, tmp_path / "out", "--split", "held_out", "--namespace", "robot_1/eye/")
    assert report["messages"]["/robot_1/eye/image_raw"] == len(held_out) > 0
    assert set(read(tmp_path / "out")) == set(report["messages"])
    assert "/image_raw" in export(log, tmp_path / "root", "--namespace", "/")["messages"]


def test_an_export_can_be_imported_again(tmp_path, log):
    export(log, tmp_path / "out")
    other = StateFolder(tmp_path / "other")
    words = ["frames", "import", str(tmp_path / "out"), "--state", str(other.root)]
    options = ["--min-interval", "0", "--guard-share", "0", "--min-novelty", "0"]
    result = CliRunner().invoke(app, [*words, *options], catch_exceptions=False)
    assert "10 of 10 images kept" in result.output
    assert [f.stamp_ns for f in stored(other)] == [f.stamp_ns for f in stored(log)]
    assert [f.intrinsics for f in stored(other)[:9]] == [f.intrinsics for f in stored(log)[:9]]


def test_what_cannot_be_is_refused_and_nothing_written(tmp_path, log):
    names = ("/my camera", "/1camera", "a//b", "cam-era", "/kämera")
    for options, error, message in (
        (("--format", "bag"), InvalidSettingError, "--format must be one of mcap, sqlite3"),
        (("--split", "test"), InvalidSettingError, "--split must be one of train, held_out"),
        (("--state", "gone"), TiekdError, "there is no frame log"),
        *((("--namespace", name), InvalidSettingError, "is no ROS namespace") for name in names),
    ):
        with pytest.raises(error, match=message):
            export(log, tmp_path / "out", *options)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(BagError, match="out exists already"):
        export(log, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(BagError, match=r"cannot write .*file/out: "):
        export(log, tmp_path / "file" / "out")
    state = StateFolder(tmp_path / "state").create()
    FrameStore(state.frames).close()
    with pytest.raises(BagError, match="no frame to export"):
        export(state, tmp_path / "other")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "out", "state"]


def test_damaged_frames_are_left_out_and_counted(tmp_path):
    state = StateFolder(tmp_path / "state").create()
    fill_store(state.frames, views()[:3])
    with closing(sqlite3.connect(state.frames)) as connection, connection:
        connection.execute("UPDATE images SET jpeg = x'00' WHERE frame_id = 1")
        connection.execute("UPDATE labels SET depth = x'00' WHERE frame_id = 2")
    report = export(state, tmp_path / "out")
    assert report["unreadable"] == 2
    assert report["messages"][IMAGE] == report["messages"][DEPTH] == 1
    assert_equal(read(tmp_path / "out"), [stored(state)[2]])


@pytest.mark.parametrize("form", FORMATS)
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, log, form):
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000))
from tiekd_ros.cli.__main__ import main
main()
"""
    words = ("frames", "export", str(tmp_path / "bag"), "--state", str(log.root), "--format", form)
    done = run_python("-c", code, *words)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: cannot write {tmp_path / 'bag'}: ")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
