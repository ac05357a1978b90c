"""`tiekd frames import` of a folder of images with measured depth, and the bag made of it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("rosbags", reason='bags need rosbags: pip install "tiekd_ros[bags]"')

from rosbags.highlevel import AnyReader

from helpers.bags import HEIGHT, WIDTH, report, shown, stored
from tiekd_ros.cli.__main__ import app
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.images import decode_depth_png, decode_image, encode_depth_png
from tiekd_ros.core.state import StateFolder
from tiekd_ros.datasets import DatasetError, RgbdFolder
from tiekd_ros.framelog import FrameStore

HOLOLENS = Path(__file__).resolve().parents[3] / "shared" / "data" / "hololens"
KEEP_ALL = ("--min-interval", "0", "--guard-share", "0", "--min-sharpness", "0")


@pytest.fixture
def state(tmp_path) -> StateFolder:
    return StateFolder(tmp_path / "state")


def write_frame(folder: Path, number: int, depth_mm: np.ndarray | None = None) -> None:
    for name in ("images", "depth"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / "images" / f"{number:03}.png"), shown(number))
    if depth_mm is None:
        depth_mm = np.linspace(1000 + number, 4000, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH)
    cv2.imwrite(str(folder / "depth" / f"{number:03}.png"), depth_mm.astype(np.uint16))
    (folder / "K.txt").write_text("60 0 31.5\n0 61 23.5\n0 0 1\n")


@pytest.fixture
def folder(tmp_path) -> Path:
    for number in range(6):
        write_frame(tmp_path / "rgbd", number)
    return tmp_path / "rgbd"


def test_images_are_logged_with_their_depth_as_label(folder, state):
    found = report(state, folder, *KEEP_ALL)
    assert (found["kept"], found["images"], found["left_out"]) == (6, 6, {})
    assert any("took 30 images a second" in note for note in found["notes"])
    frames = stored(state)
    assert [frame.stamp_ns for frame in frames] == [round(n * 1e9 / 30) for n in range(6)]
    assert {frame.teacher for frame in frames} == {"recorded 1"}
    assert frames[0].intrinsics.as_tuple() == (60.0, 61.0, 31.5, 23.5)
    for number, frame in enumerate(frames):
        assert frame.depth_png == encode_depth_png(RgbdFolder(folder).depth(number))
    with FrameStore(state.frames, read_only=True) as store:
        assert len(store.labelled_ids()) == 6


def test_recorded_stamps_are_taken(folder, state):
    (folder / "times.txt").write_text("".join(f"{100 + n}.5\n" for n in range(6)))
    report(state, folder, *KEEP_ALL)
    stamps = [frame.stamp_ns for frame in stored(state)]
    assert stamps == [100_500_000_000 + n * 10**9 for n in range(6)]


def test_a_second_import_adds_nothing_and_a_grown_folder_what_is_new(folder, state):
    assert report(state, folder, *KEEP_ALL, "--every", 2)["kept"] == 3
    again = report(state, folder, *KEEP_ALL)
    assert (again["kept"], again["looked_at_before"]) == (0, 6)
    write_frame(folder, 6)
    assert report(state, folder, *KEEP_ALL)["kept"] == 1
    anew = report(state, folder, *KEEP_ALL, "--again")
    assert (anew["kept"], anew["left_out"]) == (3, {"not_novel": 4})


def test_depth_that_would_not_be_believed_of_a_teacher_is_left_out(folder, state):
    write_frame(folder, 2, np.full((HEIGHT, WIDTH), 2000))  # constant: a broken sensor
    write_frame(folder, 3, np.zeros((HEIGHT, WIDTH)))
    (folder / "depth" / "004.png").write_bytes(b"no image")
    (folder / "depth" / "005.png").unlink()
    found = report(state, folder, *KEEP_ALL)
    assert found["left_out"] == {"bad_depth": 2, "unreadable": 1}
    assert (found["kept"], found["images"]) == (2, 5)
    assert any(note == "1 images have no depth" for note in found["notes"])


def test_a_folder_without_intrinsics_is_refused_before_anything_is_imported(folder, state):
    (folder / "K.txt").unlink()
    with pytest.raises(DatasetError, match=r"K\.txt is missing"):
        report(state, folder)
    assert not state.root.exists()


def test_a_full_log_is_said_and_the_import_goes_on_with_more_room(tmp_path, state):
    folder = tmp_path / "large"
    rng = np.random.default_rng(0)
    for number in range(8):
        write_frame(folder, number)
        noise = rng.integers(0, 256, (360, 480, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "images" / f"{number:03}.png"), noise)
    (folder / "K.txt").write_text("400 0 239.5\n0 400 179.5\n0 0 1\n")
    with pytest.raises(TiekdError, match=r"is full \(--max-bytes-mb 1\): \d images of .*/large"):
        report(state, folder, *KEEP_ALL, "--max-bytes-mb", 1)
    before = len(stored(state))
    assert 0 < before < 8
    assert report(state, folder, *KEEP_ALL)["looked_at_before"] == before
    assert len(stored(state)) == 8


@pytest.mark.skipif(not HOLOLENS.is_dir(), reason=f"the real frames are not at {HOLOLENS}")
def test_the_hololens_frames_become_a_bag_that_rosbags_reads_back_equal(tmp_path, state):
    assert report(state, HOLOLENS)["kept"] == 45
    words = ["frames", "export", str(tmp_path / "bag"), "--state", str(state.root)]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    frames = stored(state)
    found: dict[str, list] = {}
    with AnyReader([tmp_path / "bag"]) as reader:
        for connection, _, data in reader.messages():
            message = reader.deserialize(data, connection.msgtype)
            found.setdefault(connection.topic, []).append(message)
    folder = RgbdFolder(HOLOLENS)
    pairs = zip(found["/camera/image_raw"], found["/camera/teacher/depth"], frames, strict=True)
    for number, (image, depth, frame) in enumerate(pairs):
        assert image.header.stamp.sec * 10**9 + image.header.stamp.nanosec == frame.stamp_ns
        assert np.array_equal(image.data, decode_image(frame.jpeg).reshape(-1))
        metres = depth.data.view("<f4").reshape(depth.height, depth.width)
        assert np.array_equal(metres, decode_depth_png(frame.depth_png), equal_nan=True)
        truth = folder.depth(number)
        assert np.array_equal(np.isnan(metres), np.isnan(truth))
        assert np.nanmax(np.abs(metres - truth)) <= 1 / 512 + 1e-6
    assert len(found["/camera/camera_info"]) == 45
