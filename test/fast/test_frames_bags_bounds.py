"""Bags that would unfold to more than memory or disk have are refused, or read in parts."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("rosbags", reason='bags need rosbags: pip install "tiekd_ros[bags]"')

import lz4.frame
from rosbags.rosbag1 import reader as ros1
from rosbags.rosbag2 import storage_mcap

from helpers.bags import MODES, camera_topics, write_bag
from tiekd_ros.bags import BagError, scratch
from tiekd_ros.bags.bag import Bag
from tiekd_ros.bags.images import BagCamera
from tiekd_ros.bags.scratch import decompress_chunk, zstd
from tiekd_ros.core.encodings import compressed_to_rgb
from tiekd_ros.core.errors import BadImageError

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


def test_chunks_of_ros_1_are_bounded_as_well():
    with pytest.raises(BagError, match="damaged"):
        ros1.decompressors["bz2"](b"no bz2")
    assert ros1.decompressors["lz4"](lz4.frame.compress(b"abc")) == b"abc"


def test_an_image_that_unfolds_to_gigabytes_is_refused_by_its_header():
    written, data = cv2.imencode(".png", np.zeros((10000, 5001), np.uint8))
    assert written
    with pytest.raises(BadImageError, match="5001x10000 pixels is larger than the 50 million"):
        compressed_to_rgb("png", data)


def split_bag(folder: Path, scratch_of_test: Path, files: int) -> Path:
    folder.mkdir()
    topics = camera_topics(3 * files)
    for number in range(files):
        part = {name: each[3 * number : 3 * number + 3] for name, each in topics.items()}
        written = write_bag(scratch_of_test / f"p{number}", part, "mcap", MODES["by file"])
        (packed,) = written.glob("*.zstd")
        shutil.move(packed, folder / f"bag_{number}.mcap.zstd")
    return folder


def test_one_packed_file_at_a_time_lies_on_the_disk(tmp_path, monkeypatch):
    path = split_bag(tmp_path / "bag", tmp_path, 4)
    used = tmp_path / "tmp"
    used.mkdir()
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
