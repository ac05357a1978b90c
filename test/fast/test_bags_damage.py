"""Bags that were cut off or damaged give what is whole; those that unfold too far are refused."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import closing, suppress

import cv2
import numpy as np
import pytest

pytest.importorskip("rosbags", reason='bags need rosbags: pip install "tiekd_ros[bags]"')

import lz4.frame
from rosbags.rosbag1 import reader as ros1
from rosbags.rosbag2 import CompressionMode, storage_mcap

from helpers.bags import (
    HEIGHT,
    MODES,
    STEP_NS,
    TYPES,
    WIDTH,
    assert_whole,
    camera_topics,
    image,
    read,
    shown,
    stamp_of,
    write_bag,
)
from tiekd_ros.bags import BagError, scratch
from tiekd_ros.bags.bag import Bag, is_bag
from tiekd_ros.bags.images import BagCamera
from tiekd_ros.bags.scratch import ZSTD_MAGIC, decompress_chunk, zstd
from tiekd_ros.core.encodings import compressed_to_rgb
from tiekd_ros.core.errors import BadImageError


def test_a_message_that_is_damaged_does_not_stop_the_others(tmp_path):
    path = write_bag(tmp_path / "bag", camera_topics(3), "sqlite3")
    with closing(sqlite3.connect(path / "bag.db3")) as connection, connection:
        (topic,) = connection.execute(
            "SELECT id FROM topics WHERE name = '/cam/image_raw'"
        ).fetchone()
        connection.execute(
            "UPDATE messages SET data = substr(data, 1, 500) WHERE topic_id = ? AND timestamp = ?",
            (topic, stamp_of(1) + 10**6),
        )
    with Bag(path) as bag:
        good, bad, last = BagCamera(bag)
        assert (good.stamp_ns, last.stamp_ns) == (stamp_of(0), stamp_of(2))
        assert last.rgb().shape == (HEIGHT, WIDTH, 3)
        with pytest.raises(BadImageError, match="is damaged"):
            bad.rgb()


@pytest.mark.parametrize("mode", ["plain", "by message"])
def test_an_mcap_that_was_cut_off_gives_what_is_whole(tmp_path, mode):
    count = 400
    folder = write_bag(tmp_path / "bag", camera_topics(count), "mcap", MODES[mode])
    file = folder / "bag.mcap"
    whole = file.read_bytes()
    (folder / "metadata.yaml").unlink()
    seen = []
    for share in (0.9, 0.5, 0.2):
        file.write_bytes(whole[: int(len(whole) * share)])
        stamps, images, notes = read(folder)
        assert stamps == [stamp_of(n) for n in range(len(stamps))]
        np.testing.assert_array_equal(images[-1], shown(len(stamps) - 1))
        assert 0.8 * share < len(stamps) / count < 1.2 * share  # to the last whole message
        assert any("was cut off while it was recorded" in note for note in notes)
        seen.append(len(stamps))
    assert seen == sorted(seen, reverse=True)


def test_an_mcap_without_its_index_is_whole(tmp_path):
    folder = write_bag(tmp_path / "bag", camera_topics())
    file = folder / "bag.mcap"
    file.write_bytes(file.read_bytes()[:-60])
    notes = assert_whole(folder)
    assert any("was not closed by its recorder" in note for note in notes)


def test_a_damaged_chunk_is_left_out(tmp_path):
    folder = write_bag(tmp_path / "bag", camera_topics(400), "mcap", CompressionMode.STORAGE)
    file = folder / "bag.mcap"
    data = bytearray(file.read_bytes()[:-60])  # without its index: read record by record
    second = data.index(ZSTD_MAGIC, data.index(ZSTD_MAGIC) + 1)  # chunk
    data[second : second + 4] = b"gone"
    file.write_bytes(data)
    stamps, _, notes = read(folder)
    assert 0 < len(stamps) < 400
    assert {stamp_of(0), stamp_of(399)} <= set(stamps)
    assert any("1 damaged chunks were left out" in note for note in notes)


def test_a_database_that_was_cut_off_gives_what_is_whole(tmp_path):
    folder = write_bag(tmp_path / "bag", camera_topics(400), "sqlite3")
    file = folder / "bag.db3"
    whole = file.read_bytes()
    for share in (0.8, 0.4):
        file.write_bytes(whole[: int(len(whole) * share)])
        stamps, images, notes = read(folder)
        assert stamps == [stamp_of(n) for n in range(len(stamps))]
        assert len(stamps) > 20
        np.testing.assert_array_equal(images[-1], shown(len(stamps) - 1))
        assert any("is damaged or was cut off" in note for note in notes)
        assert any("promises 400 messages of /cam/image_raw" in note for note in notes)


def test_what_a_killed_recorder_left_in_the_databases_log_is_read(tmp_path):
    folder = write_bag(tmp_path / "bag", camera_topics(5), "sqlite3")
    file = folder / "bag.db3"
    recorder = sqlite3.connect(file)
    recorder.execute("PRAGMA journal_mode = WAL")
    recorder.execute("PRAGMA wal_autocheckpoint = 0")
    ((topic,),) = recorder.execute("SELECT id FROM topics WHERE name = '/cam/image_raw'").fetchall()
    for number in (5, 6):
        data = bytes(TYPES.serialize_cdr(image(number), "sensor_msgs/msg/Image"))
        row = (topic, stamp_of(number) + STEP_NS // 1000, data)
        recorder.execute("INSERT INTO messages (topic_id, timestamp, data) VALUES (?, ?, ?)", row)
    recorder.commit()
    left = tmp_path / "left"
    left.mkdir()
    for each in (file, file.with_name("bag.db3-wal")):  # as they lie on the disk now
        (left / each.name).write_bytes(each.read_bytes())
    recorder.close()
    before = {each.name: each.read_bytes() for each in left.iterdir()}
    notes = assert_whole(left, 7)
    assert any("its write-ahead log was read as well" in note for note in notes)
    assert {each.name: each.read_bytes() for each in left.iterdir()} == before


def test_a_compressed_file_that_was_cut_off_gives_what_is_whole(tmp_path):
    folder = write_bag(tmp_path / "bag", camera_topics(400), "mcap", CompressionMode.FILE)
    file = folder / "bag.mcap.zstd"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    stamps, _, notes = read(folder)
    assert 50 < len(stamps) < 350
    assert any("was cut off: unpacked what there is" in note for note in notes)


def test_what_holds_no_bag_is_refused_with_the_reason(tmp_path):
    with pytest.raises(BagError, match="does not exist; give the folder of a rosbag2"):
        Bag(tmp_path / "gone")
    with pytest.raises(BagError, match=r"holds no bag: there is no file of \.mcap"):
        Bag(tmp_path)
    assert not is_bag(tmp_path)
    file = tmp_path / "bag.mcap"
    for content, message in (
        (b"", "is empty: its recorder was stopped"),
        (b"hello, this is not a bag", "is no bag: it begins like neither"),
        (b"\x89MCAP0\r\n\x01", "cut off before its first message"),
        (b"SQLite format 3\x00 and then nothing", "too damaged to be read"),
        (b"#ROSBAG V2.0\nE", "ROS 1 bag that cannot be opened"),
        (b"\x28\xb5\x2f\xfd\x00", "cannot be unpacked"),
    ):
        file.write_bytes(content)
        with pytest.raises(BagError, match=message):
            Bag(file)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_whatever_happens_to_a_file_it_is_read_or_refused(tmp_path, storage):
    folder = write_bag(tmp_path / "bag", camera_topics(12), storage)
    (file,) = (each for each in folder.iterdir() if each.suffix != ".yaml")
    whole = file.read_bytes()
    for seed in range(20):
        rng, data = np.random.default_rng(seed), bytearray(whole)
        if seed % 2:
            del data[rng.integers(len(data)) :]
        for _ in range(rng.integers(1, 20)):
            start = rng.integers(max(1, len(data)))
            data[start : start + 50] = bytes(len(data[start : start + 50]))
        file.write_bytes(data)
        with suppress(BagError), Bag(folder) as bag:  # anything else is a mistake of the reader's
            for each in BagCamera(bag):
                with suppress(BadImageError):
                    assert each.rgb().ndim == 3


MANY = bytes(64 * 2**20)
PACK = {"zstd": zstd.compress, "lz4": lz4.frame.compress}


@pytest.mark.parametrize("packing", sorted(PACK))
def test_a_chunk_that_unfolds_to_more_than_it_says_is_refused(packing):
    packed = PACK[packing](MANY)
    for decompress in (
        decompress_chunk,
        lambda how, data, size: storage_mcap.decompress(data, how, size, 0),
    ):
        with pytest.raises(BagError, match="more than"):
            decompress(packing, packed, 1000)
        with pytest.raises(BagError, match=r"claims .* more than any recorder"):
            decompress(packing, packed, 2**40)
        with pytest.raises(BagError):
            decompress(packing, packed[: len(packed) // 2], len(MANY))
        assert decompress(packing, PACK[packing](b"abc" * 99), 297) == b"abc" * 99


def test_chunks_of_ros_1_and_images_are_bounded_as_well():
    with pytest.raises(BagError, match="damaged"):
        ros1.decompressors["bz2"](b"no bz2")
    assert ros1.decompressors["lz4"](lz4.frame.compress(b"abc")) == b"abc"
    written, data = cv2.imencode(".png", np.zeros((10000, 5001), np.uint8))
    assert written
    with pytest.raises(BadImageError, match="5001x10000 pixels is larger than the 50 million"):
        compressed_to_rgb("png", data)


def test_one_packed_file_at_a_time_lies_on_the_disk(tmp_path, monkeypatch):
    path, used = tmp_path / "bag", tmp_path / "tmp"
    path.mkdir()
    used.mkdir()
    topics = camera_topics(12)
    for number in range(4):
        part = {name: each[3 * number : 3 * number + 3] for name, each in topics.items()}
        (packed,) = write_bag(tmp_path / str(number), part, "mcap", MODES["by file"]).glob("*.zstd")
        packed.rename(path / f"bag_{number}.mcap.zstd")
    monkeypatch.setattr(tempfile, "tempdir", str(used))
    most, seen = 0, []
    with Bag(path) as bag:
        for image in BagCamera(bag):
            most = max(most, len(list(used.rglob("*.mcap"))))
            seen.append(image.stamp_ns)
        assert bag.topics["/cam/image_raw"].count == 12
    assert most == 1
    assert (seen, len(seen)) == (sorted(set(seen)), 12)
    assert list(used.iterdir()) == []


def test_where_the_disk_has_no_room_it_says_how_to_use_another(tmp_path, monkeypatch):
    path = write_bag(tmp_path / "bag", camera_topics(3), "mcap", MODES["by file"])
    monkeypatch.setattr(scratch, "SPARED_BYTES", 2**62)
    with pytest.raises(BagError, match=r"no room for .*unpacked.* set TMPDIR"):
        Bag(path)


def test_a_write_ahead_log_that_cannot_be_had_is_not_passed_over_in_silence(tmp_path, monkeypatch):
    path = write_bag(tmp_path / "bag", camera_topics(3), "sqlite3")
    (file,) = path.glob("*.db3")
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE more (number INTEGER)")
        killed = tmp_path / "killed"
        shutil.copytree(path, killed)
    assert (killed / f"{file.name}-wal").stat().st_size
    (killed / f"{file.name}-shm").unlink(missing_ok=True)
    monkeypatch.setattr(scratch, "SPARED_BYTES", 2**62)
    with Bag(killed) as bag:
        assert any("write-ahead log could not be read" in note for note in bag.notes)
        assert any("TMPDIR" in note for note in bag.notes)
