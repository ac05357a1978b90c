"""`tiekd frames import`: what goes into the frame log, once and for all, and what it says."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags", reason='bags need rosbags: pip install "tiekd_ros[bags]"')

from rosbags.rosbag2 import Writer

from helpers.bags import (
    KEEP_ALL,
    STORAGES,
    TYPES,
    camera_topics,
    image,
    image_fields,
    imu,
    info,
    report,
    run,
    shown,
    stamp_of,
    stored,
    write_bag,
)
from helpers.children import child_environment, run_python
from tiekd_ros.bags import BagError
from tiekd_ros.bags.bag import Bag
from tiekd_ros.bags.images import BagCamera
from tiekd_ros.core.errors import DatasetError, InvalidSettingError, TiekdError
from tiekd_ros.core.images import decode_image
from tiekd_ros.core.state import StateFolder
from tiekd_ros.framelog import FrameLogSettings, FrameStore, Observation

SOCCER = Path(__file__).resolve().parents[3] / "shared" / "data" / "mcap_soccer"


@pytest.fixture
def state(tmp_path) -> StateFolder:
    return StateFolder(tmp_path / "state")


def test_images_are_logged_with_stamp_frame_and_intrinsics(tmp_path, state):
    said = run(state, write_bag(tmp_path / "bag", camera_topics(5)), *KEEP_ALL)
    assert "/cam/image_raw, calibration from /cam/camera_info" in said
    assert "5 of 5 images kept" in said
    assert "5 frames" in said
    assert f"tiekd label --data {state.root}" in said
    frames = stored(state)
    assert [frame.stamp_ns for frame in frames] == [stamp_of(n) for n in range(5)]
    assert {frame.frame_id for frame in frames} == {"head_camera"}
    assert frames[0].intrinsics.as_tuple() == (60.0, 61.0, 31.5, 23.5)
    seen = decode_image(frames[3].jpeg).astype(int)
    assert np.abs(seen - shown(3)).mean() < 25  # JPEG


@pytest.mark.skipif(not SOCCER.is_dir(), reason=f"the real bag is not at {SOCCER}")
def test_the_awkward_real_bag_is_imported_and_its_oddities_said(state):
    said = run(state, SOCCER)
    assert "2 of 2 images kept" in said
    for words in ("12 are not there", "promises 251", "read as sensor_msgs/msg/Image", "zstd"):
        assert words in said
    assert [frame.stamp_ns for frame in stored(state)] == [8_297_777_777, 8_331_088_888]
    assert "2 of 2 images were looked at by an earlier import" in run(state, SOCCER)
    assert len(stored(state)) == 2


def test_a_second_import_adds_nothing_and_a_bag_that_has_grown_what_is_new(tmp_path, state):
    path = write_bag(tmp_path / "bag", camera_topics(5))
    assert report(state, path, *KEEP_ALL, "--every", 2)["kept"] == 3
    moved = path.rename(tmp_path / "elsewhere")
    again = report(state, moved, *KEEP_ALL)
    assert (again["kept"], again["looked_at_before"], again["images"]) == (0, 5, 5)
    anew = report(state, moved, *KEEP_ALL, "--again")
    assert (anew["kept"], anew["left_out"]) == (2, {"not_novel": 3})
    assert len(stored(state)) == 5
    grown = report(state, write_bag(tmp_path / "grown", camera_topics(7)), *KEEP_ALL)
    assert (grown["looked_at_before"], grown["kept"]) == (5, 2)


def test_what_is_left_out_is_counted_and_explained(tmp_path, state):
    topics = camera_topics(4)
    dark = image(4)
    dark.data = np.zeros_like(dark.data)
    topics["/cam/image_raw"] = [*topics["/cam/image_raw"], dark, image(2, stamp_ns=stamp_of(5))]
    path = write_bag(tmp_path / "bag", topics)
    found = report(state, path, "--min-interval", "1.5", "--guard-share", "0")
    assert found["left_out"] == {"too_soon": 2, "underexposed": 1, "not_novel": 1}
    assert found["kept"] == 2
    said = run(StateFolder(tmp_path / "other"), path, "--min-interval", "1.5")
    assert "2 left out: followed the last kept one too closely (--min-interval)" in said
    assert "1 left out: too dark" in said


def test_a_short_recording_is_not_thinned_out_and_a_long_one_is(tmp_path, state):
    def images(count: int) -> dict:  # recorded one a second, and taken ten a second
        return {"/image": [image(n, stamp_ns=stamp_of(0) + n * 10**8) for n in range(count)]}

    assert report(state, write_bag(tmp_path / "short", images(8)))["kept"] == 8
    long = write_bag(tmp_path / "long", images(60))
    found = report(StateFolder(tmp_path / "b"), long)
    assert (found["kept"], found["left_out"]) == (12, {"too_soon": 48})
    assert report(StateFolder(tmp_path / "c"), long, "--min-interval", "0.2")["kept"] == 30


def write_images(path: Path, numbers: Sequence[int]) -> Path:
    """Write these images, each recorded at its stamp."""
    with Writer(path, version=8, storage_plugin=STORAGES["mcap"]) as writer:
        kind = image(0).__msgtype__
        connection = writer.add_connection("/image", kind, typestore=TYPES)
        for number in numbers:
            writer.write(connection, stamp_of(number), TYPES.serialize_cdr(image(number), kind))
    return path


def test_a_bag_that_is_mended_later_loses_no_image(tmp_path, state):
    whole = tmp_path / "bag"
    whole.mkdir()
    files = [whole / f"bag_{n}.mcap" for n in range(2)]
    for number, file in enumerate(files):
        part = {name: each[4 * number : 4 * number + 4] for name, each in camera_topics(8).items()}
        (source,) = write_bag(tmp_path / str(number), part).glob("*.mcap")
        source.rename(file)
    sound = files[0].read_bytes()
    files[0].write_bytes(sound[: len(sound) * 6 // 10])
    before = report(state, whole, *KEEP_ALL)
    assert 4 < before["kept"] < 8
    files[0].write_bytes(sound)
    after = report(state, whole, *KEEP_ALL)
    assert before["kept"] + after["kept"] == 8
    assert len(stored(state)) == 8
    other = StateFolder(tmp_path / "other")  # an image that comes to light in a file's midst
    run(other, write_images(tmp_path / "hole", (0, 2, 3)), *KEEP_ALL)
    mended = report(other, write_images(tmp_path / "mended", range(4)), *KEEP_ALL)
    assert (mended["kept"], len(stored(other))) == (1, 4)


def test_a_region_of_interest_and_binning_belong_to_the_calibration(tmp_path, state):
    region = TYPES.types["sensor_msgs/msg/RegionOfInterest"]
    part = info(0)
    part.width, part.height = 128, 96
    part.roi = region(x_offset=20, y_offset=10, width=64, height=48, do_rectify=False)
    run(state, write_bag(tmp_path / "part", {"/image": [image(0)], "/camera_info": [part]}))
    assert stored(state)[0].intrinsics.as_tuple() == (60.0, 61.0, 11.5, 13.5)
    binned = info(0)
    binned.width, binned.height = 128, 96
    binned.binning_x = binned.binning_y = 2
    other = StateFolder(tmp_path / "b")
    run(other, write_bag(tmp_path / "bin", {"/image": [image(0)], "/camera_info": [binned]}))
    assert stored(other)[0].intrinsics.as_tuple() == (30.0, 30.5, 15.5, 11.5)


def test_only_the_topic_itself_says_that_images_are_rectified(tmp_path):
    distorted = [info(0, d=(0.1, 0, 0, 0, 0))]
    for name, rectified in (
        ("/image_rect_test/image_raw", False),
        ("/cam/image_rect_color/compressed", True),
    ):
        kind = "jpeg" if rectified else "rgb8"
        topics = {name: [image(0, kind)], "/info": distorted}
        with Bag(write_bag(tmp_path / str(rectified), topics)) as bag:
            assert BagCamera(bag).rectified is rectified


def test_a_calibration_file_takes_the_place_of_the_bags(tmp_path, state):
    path = write_bag(tmp_path / "bag", camera_topics(2))
    (tmp_path / "K.txt").write_text("50 0 30\n0 50 20\n0 0 1\n")
    run(state, path, *KEEP_ALL, "--camera-info", tmp_path / "K.txt")
    assert stored(state)[0].intrinsics.as_tuple() == (50.0, 50.0, 30.0, 20.0)
    with pytest.raises(InvalidSettingError, match=r"there is no file .*gone\.txt"):
        run(state, path, "--camera-info", tmp_path / "gone.txt")  # not taken for a topic


def test_images_without_stamps_are_logged_by_the_time_of_their_recording(tmp_path, state):
    path = write_bag(tmp_path / "bag", {"/image": [image(n, stamp_ns=0) for n in range(3)]})
    said = run(state, path, *KEEP_ALL)
    assert "3 images have stamp 0: took the time of their recording" in said
    assert [frame.stamp_ns for frame in stored(state)] == [stamp_of(n) + 10**6 for n in range(3)]


def test_nothing_is_imported_where_one_bag_is_refused(tmp_path, state):
    good = write_bag(tmp_path / "good", camera_topics(2))
    odd = image(0)
    odd.encoding = "64FC9"
    two = {"/left/image_raw": [image(0)], "/right/image_raw": [image(0)]}
    for number, (topics, message) in enumerate(
        (
            (two, "images of 2 cameras: /left/image_raw .*--image-topic"),
            ({"/imu": [imu(0)]}, "has no images .* it holds /imu"),
            ({"/image": [odd]}, "/image in .* cannot be read: encoding '64FC9' is not supported"),
        )
    ):
        with pytest.raises(BagError, match=message):
            run(state, good, write_bag(tmp_path / str(number), topics))
    with pytest.raises(BagError, match="does not exist"):
        run(state, good, tmp_path / "gone")
    (tmp_path / "K.txt").write_text("5000 0 3000\n0 5000 2000\n0 0 1\n")
    with pytest.raises(DatasetError, match="cannot belong to images of 64x48"):
        run(state, good, "--camera-info", tmp_path / "K.txt")
    assert not state.root.exists()


def test_broken_images_are_left_out_and_counted(tmp_path, state):
    topics = {"/image": [image(n, "jpeg") for n in range(4)]}
    topics["/image"][2].data = topics["/image"][2].data[:100]
    found = report(state, write_bag(tmp_path / "bag", topics), *KEEP_ALL)
    assert (found["kept"], found["left_out"]) == (3, {"unreadable": 1})
    assert any("1 images cannot be read; the first: " in note for note in found["notes"])


def test_killed_again_and_again_it_ends_as_if_it_never_was(tmp_path, state):
    count = 60
    path = write_bag(tmp_path / "bag", camera_topics(count))
    options = [str(path), *KEEP_ALL, "--every", "2"]
    options += ["--min-novelty", "0", "--identical-distance", "0"]  # else doubles were refused
    command = [sys.executable, "-m", "tiekd_ros.cli", "frames", "import", *options, "--state"]
    for _ in range(3):
        child = subprocess.Popen(
            [*command, str(state.root)], env=child_environment(), stdout=subprocess.DEVNULL
        )
        before = _count(state)
        while child.poll() is None and _count(state) < before + 4:
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.wait()
    run(state, *options)
    assert [f.stamp_ns for f in stored(state)] == [stamp_of(n) for n in range(0, count, 2)]


def _count(state: StateFolder) -> int:
    uri = f"file:{state.frames}?mode=ro"
    with contextlib.suppress(sqlite3.Error), closing(sqlite3.connect(uri, uri=True)) as connection:
        return int(connection.execute("SELECT COUNT(*) FROM frames").fetchone()[0])  # if it is made
    return 0


def test_it_imports_while_another_program_logs_into_the_same_file(tmp_path, state):
    path = write_bag(tmp_path / "bag", camera_topics(20))
    state.create()
    done = threading.Event()
    logged = []
    with FrameStore(state.frames) as companion:

        def log() -> None:
            number = 1000
            while not done.is_set():
                seen = Observation(shown(number), stamp_of(number), "live")
                logged.append(companion.add(seen).kept)
                number += 1

        thread = threading.Thread(target=log)
        thread.start()
        try:
            command = ("frames", "import", str(path), *KEEP_ALL, "--state", str(state.root))
            child = run_python("-m", "tiekd_ros.cli", *command)
        finally:
            done.set()
            thread.join()
        assert child.returncode == 0, child.stderr
    frames = stored(state)
    imported = [frame.stamp_ns for frame in frames if frame.frame_id == "head_camera"]
    assert imported == [stamp_of(n) for n in range(20)]
    assert len(frames) - 20 == sum(logged) > 0


def noise(number: int) -> np.ndarray:
    """Return a picture that takes much room as a JPEG."""
    return np.random.default_rng(number).integers(0, 256, (300, 400, 3), dtype=np.uint8)


def test_a_full_log_takes_nothing_more_and_loses_nothing(tmp_path, state):
    state.create()
    with FrameStore(state.frames) as store:
        for number in range(8):
            assert store.add(Observation(noise(number), stamp_of(number - 100), "live")).kept
        room = math.ceil(store.stats().bytes / 1e6)
    noisy = [dataclasses.replace(image(n), **image_fields(noise(1000 + n))) for n in range(30)]
    bag = write_bag(tmp_path / "bag", {"/image": noisy})
    other = write_bag(tmp_path / "b", camera_topics(2))
    with pytest.raises(TiekdError, match=r"is full .*, and none of .*/b\. Nothing"):
        run(state, bag, other, *KEEP_ALL, "--max-bytes-mb", room)
    first = stored(state)
    own = [frame.id for frame in first if frame.frame_id == "live"]
    assert own == list(range(1, 9))
    assert len(first) < 38
    grown = report(state, bag, *KEEP_ALL, "--max-bytes-mb", 100)
    assert grown["looked_at_before"] == len(first) - 8
    assert len(stored(state)) == 38
    assert run(state, bag, *KEEP_ALL, "--max-bytes-mb", 1).count("looked at by an earlier import")


def test_a_log_is_split_by_one_rule_for_all_that_write_to_it(tmp_path, state):
    state.create()
    own = FrameLogSettings(block_s=4.0, held_out_every=2, guard_share=0.0)
    with FrameStore(state.frames, own) as companion:
        assert companion.add(Observation(shown(100), stamp_of(0), "live")).kept
    bag = write_bag(tmp_path / "bag", camera_topics(16))
    for option, value, kept in (("--block", 2, "block_s = 4"), ("--held-out-every", 3, "= 2")):
        with pytest.raises(InvalidSettingError, match=kept):
            run(state, bag, *KEEP_ALL, option, value)
    assert len(stored(state)) == 1
    run(state, bag, *KEEP_ALL, "--block", "4")
    splits = [frame.split for frame in stored(state) if frame.frame_id == "head_camera"]
    assert splits == (["train"] * 4 + ["held_out"] * 4) * 2


def test_a_mistake_is_one_line(tmp_path):
    done = run_python("-m", "tiekd_ros.cli", "frames", "import", str(tmp_path / "gone"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'gone'} does not exist")


def test_without_rosbags_it_says_what_to_install(tmp_path, state, monkeypatch):
    monkeypatch.setitem(sys.modules, "rosbags", None)
    with pytest.raises(TiekdError, match=r'pip install "tiekd_ros\[bags\]"'):
        run(state, tmp_path)
