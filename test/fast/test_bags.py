"""Bags of all kinds are read, and their images come out as they were recorded."""

from __future__ import annotations

import itertools
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags", reason='bags need rosbags: pip install "tiekd_ros[bags]"')

from rosbags.rosbag2 import CompressionMode

from helpers.bags import (
    HEIGHT,
    MODES,
    STORAGES,
    WIDTH,
    K,
    assert_whole,
    camera_topics,
    image,
    imu,
    info,
    read,
    shown,
    stamp_of,
    write_bag,
    write_ros1_bag,
)
from tiekd_ros.bags import BagError
from tiekd_ros.bags.bag import Bag, is_bag
from tiekd_ros.bags.images import BagCamera

SOCCER = Path(__file__).resolve().parents[3] / "shared" / "data" / "mcap_soccer"


@pytest.mark.parametrize(
    ("storage", "mode"), [*itertools.product(STORAGES, MODES), ("mcap", "by chunk")]
)
def test_both_storages_are_read_however_they_are_compressed(tmp_path, storage, mode):
    compression = MODES.get(mode, CompressionMode.STORAGE)
    folder = write_bag(tmp_path / "bag", camera_topics(), storage, compression)
    packed = ["its messages are zstd-compressed one by one: unpacked them"]
    notes = packed if mode == "by message" else []
    assert assert_whole(folder) == notes
    (file,) = (each for each in folder.iterdir() if each.suffix != ".yaml")
    assert is_bag(file)
    assert assert_whole(file) == notes  # a file alone is a bag too


@pytest.mark.parametrize(
    ("encoding", "tolerance"),
    [("bgr8", 0), ("mono8", 0), ("bayer_rggb8", 40), ("jpeg", 25), ("png", 0)],
)
def test_encodings_come_out_as_rgb(tmp_path, encoding, tolerance):
    _, images, _ = read(write_bag(tmp_path / "bag", camera_topics(2, encoding)))
    for number, pixels in enumerate(images):
        wanted = shown(number).astype(int)
        if encoding == "mono8":
            wanted = pixels[..., :1].astype(int).repeat(3, 2)
            grey = shown(number) @ [0.299, 0.587, 0.114]
            assert np.abs(pixels[..., 0] - grey).max() <= 1
        assert np.abs(pixels - wanted).mean() <= tolerance


def test_missing_or_broken_metadata_does_not_matter_and_is_said(tmp_path):
    folder = write_bag(tmp_path / "bag", camera_topics())
    for text in ("rosbag2_bagfile_information: [", "a: 1", "", "\x00", "5"):
        (folder / "metadata.yaml").write_text(text)
        (note,) = assert_whole(folder)
        assert "metadata.yaml cannot be read" in note
    (folder / "metadata.yaml").unlink()
    (note,) = assert_whole(folder)
    assert "there is no metadata.yaml" in note


def test_a_split_bag_is_read_in_order_and_what_is_not_listed_too(tmp_path):
    topics = camera_topics(12)
    folder = tmp_path / "bag"
    for part in range(12):
        one = {name: messages[part : part + 1] for name, messages in topics.items()}
        write_bag(tmp_path / "part", one, "sqlite3")
        folder.mkdir(exist_ok=True)
        (tmp_path / "part" / "part.db3").rename(folder / f"bag_{part}.db3")
        (tmp_path / "part" / "metadata.yaml").unlink()
        (tmp_path / "part").rmdir()
    with Bag(folder) as bag:  # messages that all were written at the time of number 0
        stamps = [each.stamp_ns for each in BagCamera(bag)]
    assert stamps == [stamp_of(n) for n in range(12)]
    (folder / "bag_3.db3").write_bytes(b"")
    stamps, _, notes = read(folder)
    assert len(stamps) == 11
    assert any("bag_3.db3 is empty" in note and "left it out" in note for note in notes)


def test_a_ros_1_bag_is_read(tmp_path):
    assert assert_whole(write_ros1_bag(tmp_path / "old.bag", 3), 3) == []


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("image_first", [True, False])
def test_a_calibration_that_changes_goes_by_stamp_however_it_was_recorded(
    tmp_path, storage, image_first
):
    infos = [info(n, k=(60.0 + n, *K[1:])) for n in range(4)]
    topics = {"/cam/camera_info": infos, "/cam/image_raw": [image(n) for n in range(4)]}
    ordered = dict(sorted(topics.items(), reverse=image_first))
    with Bag(write_bag(tmp_path / "bag", ordered, storage)) as bag:
        camera = BagCamera(bag)
        for _ in range(2):
            assert [each.model.k[0] for each in camera] == [60.0, 61.0, 62.0, 63.0]


def test_calibration_comes_with_each_image_also_before_its_first_message(tmp_path):
    other = (70.0, *K[1:])
    topics = {
        "/cam/image_raw": [image(n) for n in range(4)],
        "/cam/camera_info": [info(10), info(11), info(12, other), info(13, other)],
    }
    with Bag(write_bag(tmp_path / "bag", topics)) as bag:
        camera = BagCamera(bag)
        assert camera.info is not None
        assert camera.info.name == "/cam/camera_info"
        focal = [each.model.intrinsics(WIDTH, HEIGHT).fx for each in camera]
    # Each is recorded just after its image, and none has an image's stamp.
    assert focal == [60.0, 60.0, 60.0, 70.0]


def test_two_cameras_are_named_and_not_guessed(tmp_path):
    topics = {f"/{side}/image_raw": [image(0)] for side in ("left", "right")}
    path = write_bag(tmp_path / "bag", topics)
    with pytest.raises(BagError, match=r"/left/image_raw.*/right/image_raw.*--image-topic"):
        read(path)
    stamps, _, _ = read(path, image_topic="/right/image_raw")
    assert stamps == [stamp_of(0)]
    assert read(path, image_topic="left/image_raw")[0] == [stamp_of(0)]  # as ros2 topic takes it


def test_one_camera_recorded_raw_and_compressed_is_one_camera(tmp_path):
    topics = {
        "/cam/image_raw": [image(n) for n in range(2)],
        "/cam/image_raw/compressed": [image(n, "jpeg") for n in range(3)],
        "/cam/camera_info": [info(n) for n in range(3)],
    }
    with Bag(write_bag(tmp_path / "bag", topics)) as bag:
        camera = BagCamera(bag)
        assert camera.images.name == "/cam/image_raw/compressed"  # it has more
        assert camera.info is not None


def test_a_depth_image_is_not_taken_for_the_camera(tmp_path):
    depth = image(0)
    depth.encoding, depth.width, depth.step = "32FC1", WIDTH // 4, WIDTH
    depth.data = depth.data[: WIDTH * HEIGHT]
    topics = {"/depth/image": [depth] * 3, "/cam/image_raw": [image(0)]}
    path = write_bag(tmp_path / "bag", topics)
    assert read(path)[0] == [stamp_of(0)]
    only = write_bag(tmp_path / "only", {"/depth/image": [depth]})
    with pytest.raises(BagError, match="depth images only, on /depth/image"):
        read(only)


def test_a_topic_that_has_no_images_is_refused(tmp_path):
    path = write_bag(tmp_path / "imu", {"/imu": [imu(0), imu(1)]})
    with pytest.raises(BagError, match=r"no images .* /imu \(std_msgs/msg/String, 2 messages\)"):
        read(path)
    path = write_bag(tmp_path / "bag", camera_topics(2), "sqlite3")
    with pytest.raises(BagError, match=r"no topic /nope .*it holds .*/cam/image_raw"):
        read(path, image_topic="/nope")
    with closing(sqlite3.connect(path / "bag.db3")) as connection, connection:
        connection.execute("UPDATE topics SET type = 'acme/msg/Odd' WHERE name = '/imu'")
    assert_whole(path, 2)  # unknown types on other topics do not matter
    with pytest.raises(BagError, match=r"/imu .* is of type acme/msg/Odd, but images are"):
        read(path, image_topic="/imu")
    with closing(sqlite3.connect(path / "bag.db3")) as connection, connection:
        connection.execute("UPDATE topics SET serialization_format = 'json'")
    with pytest.raises(BagError, match="encoded as 'json'; only messages as ROS writes them"):
        read(path)


def test_calibration_is_only_guessed_where_it_is_clear(tmp_path):
    far = write_bag(tmp_path / "far", {"/a/image": [image(0)], "/b/info": [info(0)]})
    with Bag(far) as bag:
        assert BagCamera(bag).info.name == "/b/info"  # the only one, of the only camera
    two = {"/a/image": [image(0)], "/b/info": [info(0)], "/c/info": [info(0)]}
    with Bag(write_bag(tmp_path / "two", two)) as bag:
        assert BagCamera(bag).info is None
        assert BagCamera(bag, camera_info_topic="/c/info").info.name == "/c/info"
        with pytest.raises(BagError, match=r"/a/image .* but camera_info messages are"):
            BagCamera(bag, camera_info_topic="/a/image")


@pytest.mark.skipif(not SOCCER.is_dir(), reason=f"the real bag is not at {SOCCER}")
@pytest.mark.parametrize("name", ["", "soccer_goal_12.mcap", "metadata.yaml"])
def test_the_awkward_real_bag_is_read(name):
    stamps, images, notes = read(SOCCER / name)
    assert stamps == [8_297_777_777, 8_331_088_888]
    assert [pixels.shape for pixels in images] == [(480, 640, 3)] * 2
    text = "\n".join(notes)
    assert "read as sensor_msgs/msg/Image" in text
    assert "zstd-compressed one by one" in text
    if name != "soccer_goal_12.mcap":
        assert "lists 13 files, of which 12 are not there" in text
        assert "promises 251 messages of /camera/image_raw, its files hold 2" in text
