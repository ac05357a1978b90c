"""KITTI in its official layout: what is read, and what is refused with a way out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers.depth_data import (
    CX,
    CY,
    DAY,
    KITTI_FOCAL,
    write_calibration,
    write_kitti,
    write_png,
)
from tiekd_ros.core.errors import BadImageError
from tiekd_ros.core.images import KB_SIZE, kb_crop
from tiekd_ros.datasets import (
    DatasetError,
    KittiDataset,
    ReadOptions,
    detect_kind,
    open_dataset,
    readable_items,
)

FIRST = f"{DAY}/{DAY}_drive_0001_sync/image_02/data/0000000069.png"
SECOND = "2011_09_27/2011_09_27_drive_0002_sync/image_02/data/0000000068.png"
TOP, LEFT = 375 - 352, (1242 - 1216) // 2


def depth_file(root, name):
    _, drive, camera, _, number = name.split("/")
    return root / drive / "proj_depth" / "groundtruth" / camera / number


@pytest.fixture
def root(tmp_path):
    write_kitti(tmp_path)
    return tmp_path


def refused(root, *parts, index=None, options=None):
    def read():
        data = KittiDataset(root, options)
        return data if index is None else data.item(index)

    with pytest.raises(DatasetError) as raised:
        read()
    for part in parts:
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("images", "depths"),
    [("", ""), ("input", "gt_depth"), ("raw", "data_depth_annotated/val")],
)
def test_images_and_truth_are_cropped_alike_and_sorted_by_name(tmp_path, images, depths):
    written = write_kitti(tmp_path, images=images, depths=depths)
    data = open_dataset("auto", tmp_path)
    assert (data.kind, list(data.names)) == ("kitti", [FIRST, SECOND])
    for index, (one, (top, left)) in enumerate(
        zip(written, ((TOP, LEFT), (370 - 352, 5)), strict=True)
    ):
        item = data.item(index)
        assert item.name == one.name
        assert item.image.shape == (352, 1216, 3)
        np.testing.assert_array_equal(item.image, one.image[top:, left : left + 1216])
        truth = one.truth[top:, left : left + 1216]
        np.testing.assert_array_equal(np.isnan(item.truth), truth == 0)
        known = truth > 0
        np.testing.assert_allclose(item.truth[known], truth[known], atol=0.5 / 256 + 1e-5)
        assert item.teacher is None


def test_lines_without_depth_are_dropped_and_counted_and_truth_needed_only_on_request(root):
    report = KittiDataset(root).report
    assert report.without_truth == [f"{DAY}/{DAY}_drive_0009_sync/image_02/data/0000000001.png"]
    assert report.bad == {}
    depth_file(root, FIRST).unlink()
    assert KittiDataset(root, ReadOptions(truth=False)).item(0).truth is None


def test_intrinsics_come_from_the_calibration_and_move_with_the_crop(tmp_path, root):
    found = KittiDataset(root).item(0).intrinsics
    assert found.as_tuple() == pytest.approx((KITTI_FOCAL, KITTI_FOCAL, CX - LEFT, CY - TOP))
    whole = KittiDataset(root, ReadOptions(crop=False)).item(0)
    assert whole.image.shape == (375, 1242, 3)
    assert whole.truth.shape == (375, 1242)
    assert whole.intrinsics.as_tuple() == pytest.approx((KITTI_FOCAL, KITTI_FOCAL, CX, CY))
    write_kitti(tmp_path / "other", calibrated=False)  # the split's focal length counts
    found = KittiDataset(tmp_path / "other").item(0).intrinsics
    assert found.as_tuple() == pytest.approx((KITTI_FOCAL, KITTI_FOCAL, 620.5 - LEFT, 187 - TOP))


def test_teacher_maps_are_read_as_published_and_placed_in_the_whole_image(root):
    units = np.random.default_rng(3).integers(1, 65536, (352, 1216), dtype=np.uint16)
    units[0, 0] = 0
    for name in (FIRST, SECOND):
        write_png(root / "teacher" / name.replace("/", "_"), units)
    wanted = ReadOptions(truth=False, teacher=True)
    item = KittiDataset(root, wanted).item(1)
    assert item.truth is None
    assert np.isnan(item.teacher[0, 0])
    expected = units.astype(np.float64) / 65535 * 80
    np.testing.assert_allclose(item.teacher[1:], expected[1:], rtol=1e-6)
    whole = KittiDataset(root, ReadOptions(truth=False, teacher=True, crop=False)).item(0)
    np.testing.assert_array_equal(whole.teacher[TOP:, LEFT : LEFT + 1216], item.teacher)
    assert np.isnan(whole.teacher[:TOP]).all()
    write_png(root / "teacher" / FIRST.replace("/", "_"), np.ones((375, 1242), np.uint16))
    refused(root, "expected 1216x352", index=0, options=wanted)


def test_another_layout_is_refused_with_what_is_there_and_what_was_expected(root):
    (root / DAY).rename(root / "images")
    (root / "2011_09_27").rename(root / "more")
    refused(root, "not laid out as kitti", "2 of 3 entries", "there is", "images, ", "expected")


def test_missing_entries_are_named_or_left_out(root):
    (root / FIRST).unlink()
    depth_file(root, SECOND).unlink()
    refused(root, "1 of 3 entries", "no image file", FIRST, "no depth file", "--skip-bad")
    options = ReadOptions(skip_bad=True)
    refused(root, "2011_09_27_drive_0002_sync", options=options)  # nothing is left
    write_png(depth_file(root, SECOND), np.ones((370, 1226), np.uint16))
    data = KittiDataset(root, options)
    assert (data.names, list(data.report.bad)) == ([SECOND], [FIRST])


def test_an_image_without_teacher_map_is_named_or_left_out(root):
    file = FIRST.replace("/", "_")
    write_png(root / "maps" / file, np.ones((352, 1216), np.uint16))
    options = ReadOptions(teacher=True, teacher_maps=root / "maps")
    refused(root, "no teacher file", SECOND.replace("/", "_"), "tiekd label", options=options)
    data = KittiDataset(root, ReadOptions(teacher=True, teacher_maps=root / "maps", skip_bad=True))
    assert data.names == [FIRST]


def test_files_that_do_not_fit_are_refused_when_read_or_passed_over(root):
    path = depth_file(root, FIRST)
    write_png(path, np.ones((375, 1242), np.uint8))
    refused(root, str(path), "16 bits", "uint8", index=0)
    write_png(path, np.ones((352, 1216), np.uint16))
    refused(root, str(path), "is 1216x352, expected 1242x375", index=0)
    (root / SECOND).write_bytes(b"junk")
    refused(root, SECOND, "4 bytes are no readable", index=1)
    data = KittiDataset(root)
    with pytest.raises(DatasetError):
        list(readable_items(data))
    assert list(readable_items(data, skip_bad=True)) == []
    assert set(data.report.bad) == {FIRST, SECOND}
    assert "expected 1242x375" in data.report.bad[FIRST]


def test_the_kb_crop_is_the_bottom_centre():
    rows, columns = np.mgrid[:375, :1242]
    assert kb_crop(rows).shape == KB_SIZE
    assert (kb_crop(rows)[0, 0], kb_crop(columns)[0, 0]) == (23, 13)
    assert kb_crop(np.zeros((370, 1227, 3), np.uint8)).shape == (352, 1216, 3)
    assert kb_crop(rows, (10, 20))[0, 0] == 365
    with pytest.raises(BadImageError, match="640x480, smaller than the 1216x352"):
        kb_crop(np.zeros((480, 640)))


def test_a_resized_image_is_refused(root):
    write_png(root / FIRST, np.zeros((320, 1024, 3), np.uint8))
    (root / DAY / "calib_cam_to_cam.txt").unlink()
    write_png(depth_file(root, FIRST), np.ones((320, 1024), np.uint16))
    refused(root, "1024x320, smaller than the 1216x352", index=0)


def test_a_calibration_that_does_not_fit_is_refused(root):
    write_calibration(root / DAY, 370, 1226)
    refused(root, "calib_cam_to_cam.txt was made for images of 1226x370", index=0)
    file = root / DAY / "calib_cam_to_cam.txt"
    file.write_text("S_rect_02: 1242 375\nP_rect_02: 1 2 3\n")
    refused(root, "P_rect_02 has 3 numbers", index=0)
    file.write_text("nothing\n")
    refused(root, "is no KITTI calibration of camera 02", index=0)
    file.write_text("S_rect_02: 1242 375\nP_rect_02: 7 0 9999 0 0 7 172 0 0 0 1 0\n")
    refused(root, "principal point must lie inside", index=0)


def test_a_split_file_that_cannot_be_meant_is_refused(root):
    for text, reason in (
        ("", "is empty"),
        ("one\n", "line 1 has 1 words"),
        ("a b c d\n", "line 1 has 4 words"),
        ("a b wide\n", "focal must be positive pixels, got 'wide'"),
        ("a b -1\n", "got '-1'"),
        ("a b 1\na c 1\n", "line 2 names a again"),
        ("../a b 1\n", "'../a' is no path inside the data set"),
        ("a None 1\n", "every line says None"),
    ):
        (root / "kitti_eigen_test.txt").write_text(text)
        refused(root, reason)


def test_the_split_file_is_found_named_or_asked_for(root):
    (root / "splits").mkdir()
    (root / "kitti_eigen_test.txt").rename(root / "splits" / "mine.txt")
    refused(root, "no split file kitti_eigen_test.txt", "--split FILE")
    refused(root, "no split file", "other.txt", options=ReadOptions(split=root / "other.txt"))
    assert len(KittiDataset(root, ReadOptions(split=root / "splits" / "mine.txt"))) == 2
    assert len(KittiDataset(root, ReadOptions(split=Path("mine.txt")))) == 2
    refused(root / "nowhere", "does not exist")


def test_the_layout_is_recognised_or_asked_for(tmp_path, root):
    assert detect_kind(root) == "kitti"
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DatasetError, match=r"like no data set .* holds nothing.*--kind"):
        detect_kind(empty)
    (root / "images").mkdir()
    (root / "depth").mkdir()
    with pytest.raises(DatasetError, match="like kitti and rgbd"):
        detect_kind(root)
    with pytest.raises(DatasetError, match="unknown kind of data set 'kiti'"):
        open_dataset("kiti", root)
