"""Bags that were mended after an import, and calibrations of a part of the image."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("rosbags", reason='bags need rosbags: pip install "tiekd_ros[bags]"')

from rosbags.rosbag2 import Writer

from helpers.bags import (
    KEEP_ALL,
    TYPES,
    camera_topics,
    image,
    info,
    report,
    run,
    stamp_of,
    stored,
    write_bag,
)
from tiekd_ros.bags.bag import Bag
from tiekd_ros.bags.images import BagCamera
from tiekd_ros.core.state import StateFolder


@pytest.fixture
def state(tmp_path) -> StateFolder:
    return StateFolder(tmp_path / "state")


def test_a_bag_that_is_mended_later_loses_no_image(tmp_path, state):
    late = {name: messages[4:] for name, messages in camera_topics(8).items()}
    parts = [
        write_bag(tmp_path / "early", camera_topics(4)),
        write_bag(tmp_path / "late", late),
    ]
    whole = tmp_path / "bag"
    whole.mkdir()
    files = [whole / f"bag_{n}.mcap" for n in range(2)]
    for part, file in zip(parts, files, strict=True):
        (source,) = part.glob("*.mcap")
        file.write_bytes(source.read_bytes())
    sound = files[0].read_bytes()
    files[0].write_bytes(sound[: len(sound) * 6 // 10])
    before = report(state, whole, *KEEP_ALL)
    assert 4 < before["kept"] < 8
    files[0].write_bytes(sound)
    after = report(state, whole, *KEEP_ALL)
    assert before["kept"] + after["kept"] == 8
    assert len(stored(state)) == 8


def test_an_image_that_comes_to_light_in_the_midst_of_a_file_is_imported(tmp_path, state):
    def write(name: str, numbers: tuple[int, ...]) -> Path:
        with Writer(tmp_path / name, version=8) as writer:
            kind = image(0).__msgtype__
            connection = writer.add_connection("/image", kind, typestore=TYPES)
            for number in numbers:
                data = TYPES.serialize_cdr(image(number), kind)
                writer.write(connection, stamp_of(number), data)
        return tmp_path / name

    run(state, write("hole", (0, 2, 3)), *KEEP_ALL)
    mended = report(state, write("mended", (0, 1, 2, 3)), *KEEP_ALL)
    assert len(stored(state)) == 4
    assert mended["kept"] == 1


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
    bent = [info(0, d=(0.1, 0, 0, 0, 0))]
    for name, rectified in (
        ("/image_rect_test/image_raw", False),
        ("/cam/image_rect_color/compressed", True),
    ):
        kind = "jpeg" if rectified else "rgb8"
        topics = {name: [image(0, kind)], "/info": bent}
        with Bag(write_bag(tmp_path / str(rectified), topics)) as bag:
            assert BagCamera(bag).rectified is rectified
