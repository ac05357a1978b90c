"""NYU Depth v2: what is read, and what is refused with a way out."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.depth_data import write_nyu, write_png
from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.datasets import DatasetError, NyuDataset, ReadOptions, open_dataset, open_images


@pytest.mark.parametrize("slash", ["/", ""])
@pytest.mark.parametrize("folder", ["", "sync", "official_splits/test"])
def test_images_truth_and_focal_length_are_read(tmp_path, slash, folder):
    written = write_nyu(tmp_path / folder, slash=slash)
    if folder:
        (tmp_path / folder / "nyu_test.txt").rename(tmp_path / "nyu_test.txt")
    data = open_dataset("auto", tmp_path)
    assert (data.kind, list(data.names)) == ("nyu", [one.name for one in written])
    item = data.item(1)
    assert item.image.shape == (480, 640, 3)
    assert np.isnan(item.truth[:5]).all()
    np.testing.assert_allclose(item.truth[5:], written[1].truth[5:], atol=0.0006)
    assert item.intrinsics == Intrinsics(518.8579, 518.8579, 319.5, 239.5)


def test_a_camera_file_beside_the_scenes_comes_before_the_focal_length(tmp_path):
    write_nyu(tmp_path)
    (tmp_path / "K.txt").write_text("518.9 0 325.6\n0 519.5 253.7\n0 0 1\n")
    assert NyuDataset(tmp_path).item(0).intrinsics == Intrinsics(518.9, 519.5, 325.6, 253.7)


@pytest.mark.parametrize("prefix", ["data_nyu_", ""])
def test_teacher_maps_are_shares_of_ten_metres(tmp_path, prefix):
    write_nyu(tmp_path, 1)
    units = np.full((480, 640), 6553, np.uint16)
    units[3, 4] = 0
    write_png(tmp_path / "teacher" / f"{prefix}kitchen_0000_rgb_00040.png", units)
    data = NyuDataset(tmp_path, ReadOptions(truth=False, teacher=True))
    teacher = data.item(0).teacher
    assert np.isnan(teacher[3, 4])
    assert teacher[0, 0] == pytest.approx(6553 / 65535 * 10)
    assert data.teacher_file(0) == "data_nyu_kitchen_0000_rgb_00040.png"


def test_a_focal_length_that_does_not_fit_is_refused(tmp_path):
    write_nyu(tmp_path, 1)
    split = tmp_path / "nyu_test.txt"
    line = split.read_text()
    split.write_text(line.replace("518.8579", "5.188579"))
    with pytest.raises(DatasetError, match=r"focal of .*focal lengths between 32 and"):
        NyuDataset(tmp_path).item(0)
    split.write_text(line.replace(" 518.8579", ""))
    with pytest.raises(DatasetError, match="has no focal length; write it as third word"):
        NyuDataset(tmp_path).item(0)


def test_a_missing_image_is_named_or_left_out(tmp_path):
    write_nyu(tmp_path)
    (tmp_path / "kitchen_0000" / "rgb_00040.jpg").unlink()
    with pytest.raises(DatasetError, match=r"1 of 2 entries .*kitchen_0000/rgb_00040\.jpg"):
        NyuDataset(tmp_path)
    data = NyuDataset(tmp_path, ReadOptions(skip_bad=True))
    assert data.names == ["kitchen_0001/rgb_00041.jpg"]
    assert "image file is missing" in data.report.bad["kitchen_0000/rgb_00040.jpg"]


def test_images_alone_can_be_opened_for_a_teacher(tmp_path):
    write_nyu(tmp_path)
    source = open_images("nyu", tmp_path)
    image, intrinsics = source.view(0)
    assert image.shape == (480, 640, 3)
    assert intrinsics.fx == 518.8579
    assert source.map_format.units == "uint16 = metres / 10 * 65535, 0 = unknown"
    assert source.stamps_ns(10.0) == [0, 100_000_000]
