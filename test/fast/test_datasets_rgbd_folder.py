"""RGB-D folders: what is read, and what is refused with a way out."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.datasets import DatasetError, ReadOptions, RgbdFolder

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
WIDTH, HEIGHT = 40, 30
SKIPPING = ReadOptions(skip_bad=True)
K = "50 0 19.5\n0 51 14.5\n0 0 1\n"


def write_depth(path: Path, value: int, size=(WIDTH, HEIGHT), dtype=np.uint16) -> None:
    depth = np.full((size[1], size[0]), value, dtype)
    depth[0, 0] = 0
    cv2.imwrite(str(path), depth)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "depth").mkdir()
    for index, suffix in enumerate((".png", ".jpg", ".jpeg")):
        image = np.full((HEIGHT, WIDTH, 3), (10, 20, 200), np.uint8)  # BGR: red
        cv2.imwrite(str(tmp_path / "images" / f"f{index}{suffix}"), image)
        write_depth(tmp_path / "depth" / f"f{index}.png", 1500 + index)
    (tmp_path / "K.txt").write_text(K)
    return tmp_path


def refused(folder: Path, *parts: str, **arguments) -> None:
    with pytest.raises(DatasetError) as raised:
        RgbdFolder(folder, **arguments)
    for part in parts:
        assert part in str(raised.value)


def test_images_depth_and_intrinsics_are_read(folder):
    frames = RgbdFolder(folder)
    assert frames.names == ["f0", "f1", "f2"]
    assert len(frames) == 3
    assert frames.image_size == (WIDTH, HEIGHT)
    assert frames.intrinsics == Intrinsics(50, 51, 19.5, 14.5)
    assert frames.image(0)[5, 5].tolist() == [200, 20, 10]
    depth = frames.depth(2)
    assert depth.dtype == np.float32
    assert np.isnan(depth[0, 0])
    assert depth[1, 1] == pytest.approx(1.502)


def test_meta_yaml_sets_the_units_and_one_that_cannot_be_meant_is_refused(folder):
    (folder / "meta.yaml").write_text("depth_units_per_m: 256\n")
    assert RgbdFolder(folder).depth(0)[1, 1] == pytest.approx(1500 / 256)
    for text, reason in (
        ("depth_unit: 256", "unknown key 'depth_unit'"),
        ("depth_units_per_m: mm", "got 'mm'"),
        ("depth_units_per_m: 0", "got 0"),
        ("depth_units_per_m: true", "got True"),
        ("- 1", "got list"),
        ("a: [", "no readable YAML"),
    ):
        (folder / "meta.yaml").write_text(text)
        refused(folder, "meta.yaml", reason)


def test_images_without_depth_are_refused_by_name_or_some_of_them_skipped(folder):
    (folder / "depth" / "f1.png").unlink()
    refused(folder, "for f1;", "--skip-bad")
    frames = RgbdFolder(folder, SKIPPING)
    assert (frames.names, list(frames.report.bad)) == (["f0", "f2"], ["f1"])
    assert frames.depth(1)[1, 1] == pytest.approx(1.502)
    assert frames.stamps_ns(10.0) == [0, 200_000_000]  # by their places among all images
    for file in (folder / "depth").iterdir():
        file.unlink()
    refused(folder, "no depth in", "f0, f1, f2", options=SKIPPING)
    (folder / "depth").rmdir()
    refused(folder, "depth does not exist", options=SKIPPING)


def test_a_missing_or_empty_folder_is_refused(tmp_path):
    refused(tmp_path / "nowhere", "nowhere does not exist")
    refused(tmp_path, "no images in", "images/")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "is a file, not a folder")


def test_depth_of_another_resolution_is_read_and_of_another_aspect_or_8_bits_refused(folder):
    write_depth(folder / "depth" / "f1.png", 700, size=(WIDTH // 2, HEIGHT // 2))
    write_depth(folder / "depth" / "f2.png", 700, size=(HEIGHT, HEIGHT))
    frames = RgbdFolder(folder)
    assert frames.depth(1).shape == (HEIGHT // 2, WIDTH // 2)
    with pytest.raises(DatasetError, match=r"f2\.png is 30x30, its image 40x30"):
        frames.depth(2)
    cv2.imwrite(str(folder / "images" / "f1.jpg"), np.zeros((10, 10, 3), np.uint8))
    with pytest.raises(DatasetError, match=r"f1\.jpg is 10x10, the first image is 40x30"):
        frames.image(1)
    write_depth(folder / "depth" / "f0.png", 100, dtype=np.uint8)
    refused(folder, "f0.png", "16 bits", "uint8", "save it as uint16")  # at once


def test_a_k_txt_that_is_missing_or_no_camera_matrix_of_these_images_is_refused(folder):
    (folder / "K.txt").unlink()
    frames = RgbdFolder(folder)
    with pytest.raises(DatasetError, match=r"K\.txt is missing: write the camera matrix"):
        _ = frames.intrinsics  # only where they are asked for
    for text, reason in (
        ("50 0 19.5\n0 51 14.5\n", "rows of [3, 3]"),
        ("50 0 19.5 0\n0 51 14.5 0\n0 0 1 0\n", "rows of [4, 4, 4]"),
        ("fx 0 cx\n0 fy cy\n0 0 1\n", "3 rows of 3 numbers"),
        ("50 0 190.5\n0 51 14.5\n0 0 1\n", "principal point must lie inside"),
        ("-50 0 19.5\n0 51 14.5\n0 0 1\n", "describe no camera"),
        ("50 0 19.5\n0 51 14.5\n19 14 1\n", "last row"),
        ("0.5 0 19.5\n0 0.5 14.5\n0 0 1\n", "focal lengths"),
        ("", "rows of []"),
    ):
        (folder / "K.txt").write_text(text)
        refused(folder, "K.txt", reason)


def test_a_file_damaged_later_is_named(folder):
    frames = RgbdFolder(folder)
    (folder / "images" / "f2.jpeg").write_bytes(b"junk")
    (folder / "depth" / "f2.png").unlink()
    with pytest.raises(DatasetError, match=r"f2\.jpeg: 4 bytes are no readable"):
        frames.image(2)
    with pytest.raises(DatasetError, match=r"cannot read .*f2\.png: No such file"):
        frames.depth(2)


@pytest.mark.skipif(not (DATA / "hololens").is_dir(), reason=f"real frames are not in {DATA}")
def test_the_hololens_frames_are_read():
    frames = RgbdFolder(DATA / "hololens")
    assert (len(frames), frames.names[0], frames.image_size) == (45, "00003", (540, 360))
    assert frames.intrinsics.fx == pytest.approx(495.57, abs=0.01)
    depth = frames.depth(0)
    assert depth.shape == frames.image(0).shape[:2]
    assert 0.2 < np.isnan(depth).mean() < 0.6
    assert 0.3 < np.nanmedian(depth) < 10


@pytest.mark.skipif(not (DATA / "open3d_rgbd").is_dir(), reason=f"real frames are not in {DATA}")
def test_the_open3d_frames_are_read_from_their_color_folder():
    frames = RgbdFolder(DATA / "open3d_rgbd")
    assert (len(frames), frames.image_size) == (5, (640, 480))
    assert 0.3 < np.nanmedian(frames.depth(4)) < 10
