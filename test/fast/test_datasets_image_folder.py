"""Folders of images: order, intrinsics, stamps; calibration files that are wrong are refused."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from tiekd_ros.datasets import DatasetError, ImageFolder, ReadOptions
from tiekd_ros.datasets.calibration import read_camera_model

WIDTH, HEIGHT = 40, 30
CAMERA_YAML = """
image_width: {width}
image_height: {height}
camera_name: front
camera_matrix:
  rows: 3
  cols: 3
  data: [100.0, 0.0, 39.5, 0.0, 102.0, 29.5, 0.0, 0.0, 1.0]
distortion_model: plumb_bob
distortion_coefficients: {{rows: 1, cols: 5, data: [0.0, 0.0, 0.0, 0.0, 0.0]}}
"""


def write_images(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        cv2.imwrite(str(folder / name), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    return folder


def test_images_are_found_in_the_folder_or_in_its_images_subfolder(tmp_path):
    assert ImageFolder(write_images(tmp_path / "a", "x.png")).names == ["x"]
    write_images(tmp_path / "b" / "images", "y.png")
    assert ImageFolder(write_images(tmp_path / "b", "preview.png")).names == ["y"]


def test_numbers_in_names_order_by_value_and_hidden_files_are_left_out(tmp_path):
    names = ("f10.png", "f9.PNG", "f1.jpg", "._f1.jpg", "notes.txt")
    folder = write_images(tmp_path, *names[:3])
    (folder / names[3]).write_bytes(b"")
    (folder / names[4]).write_text("")
    assert ImageFolder(folder).names == ["f1", "f9", "f10"]
    with pytest.raises(DatasetError, match="share a name"):
        ImageFolder(write_images(folder, "f1.png"))


def test_a_ros_calibration_is_read_and_scaled_to_the_images(tmp_path):
    write_images(tmp_path, "a.png")
    assert ImageFolder(tmp_path).intrinsics is None
    for name in ("camera_info.yaml", "camera.yaml"):
        (tmp_path / name).write_text(CAMERA_YAML.format(width=80, height=60))
        assert ImageFolder(tmp_path).intrinsics.as_tuple() == (50.0, 51.0, 19.5, 14.5)
        (tmp_path / name).unlink()


def test_a_calibration_of_another_camera_or_none_is_refused(tmp_path):
    write_images(tmp_path, "a.png")
    for text, reason in (
        (CAMERA_YAML.format(width=80, height=80), "80x80, those here are 40x30"),
        (CAMERA_YAML.format(width=-80, height=-60), "not the same view"),
        (CAMERA_YAML.format(width=80, height=60).replace("39.5", "139.5"), "principal point"),
        ("image_width: 40\nimage_height: 30\n", "camera_matrix: {data"),
        ("camera_matrix: 5\nimage_width: 40\nimage_height: 30\n", "no camera_calibration file"),
    ):
        (tmp_path / "camera.yaml").write_text(text)
        with pytest.raises(DatasetError, match=rf"camera\.yaml.*{reason}"):
            ImageFolder(tmp_path)


def test_without_recorded_stamps_the_rate_makes_them(tmp_path):
    images = ImageFolder(write_images(tmp_path, "00001.png", "00002.png", "00003.png"))
    assert images.stamps_ns(30.0) == [0, 33_333_333, 66_666_667]
    with pytest.raises(DatasetError, match="got 0"):
        images.stamps_ns(0.0)


def test_recorded_stamps_are_exact_in_seconds_and_nanoseconds(tmp_path):
    for number, (text, stamps) in enumerate(
        (
            ("1690000000.000000001\n1690000000.5\n", [1690000000000000001, 1690000000500000000]),
            (
                "1690000000000000001\n1690000000033333333\n",
                [1690000000000000001, 1690000000033333333],
            ),
            ("0\n33333333\n", [0, 33333333]),
            ("# seconds, file\n0.0 a.png\n\n1 b.png\n", [0, 1_000_000_000]),
            ("1.69e9\n1690000001\n", [1690000000000000000, 1690000001000000000]),
        )
    ):
        folder = write_images(tmp_path / str(number), "a.png", "b.png")
        (folder / ("timestamps.txt" if number % 2 else "times.txt")).write_text(text)
        assert ImageFolder(folder).stamps_ns(30.0) == stamps


def test_stamps_that_do_not_fit_the_images_are_refused(tmp_path):
    write_images(tmp_path, "a.png", "b.png")
    for text, reason in (
        ("0\n", "1 stamps for 2 images"),
        ("0\nnoon\n", "'noon' is no stamp"),
        ("0\nnan\n", "finite"),
        ("1.0\n0.5\n", "the stamp of b"),
        ("1.0\n1.0\n", "must rise"),
    ):
        (tmp_path / "times.txt").write_text(text)
        with pytest.raises(DatasetError, match=reason):
            ImageFolder(tmp_path).stamps_ns(30.0)


def test_numeric_names_are_stamps(tmp_path):
    for number, (stems, stamps) in enumerate(
        (
            (("1690000000000001", "1690000000100001"), [1690000000000001000, 1690000000100001000]),
            (
                ("15569195938415230", "15569195939415230"),
                [1556919593841523000, 1556919593941523000],
            ),
            (("1690000000000000001",), [1690000000000000001]),
        )
    ):
        folder = write_images(tmp_path / str(number), *(f"{stem}.png" for stem in stems))
        assert ImageFolder(folder).stamps_ns(30.0) == stamps


def part(folder: Path, split: Path, **options) -> ImageFolder:
    return ImageFolder(folder, ReadOptions(split=split, truth=False, **options))


def test_a_split_file_names_some_images_with_or_without_suffix_in_the_folders_order(tmp_path):
    folder = write_images(tmp_path / "data", "f1.png", "f2.jpg", "f9.png", "f10.png", "v1.2.png")
    (folder / "split").mkdir()
    (folder / "split" / "some.txt").write_text("# views\nf10.PNG\n\nf2\nv1.2\n")
    opened = part(folder, Path("some.txt"))
    assert opened.names == ["f2", "f10", "v1.2"]
    assert opened.split == folder / "split" / "some.txt"
    files = [opened.file(index).name for index in range(len(opened))]
    assert files == ["f2.jpg", "f10.png", "v1.2.png"]
    (folder / "times.txt").write_text("1.5\n2.5\n3.5\n4.5\n5.5\n")  # f1 f2 f9 f10 v1.2
    stamps = part(folder, Path("some.txt")).stamps_ns(30.0)
    assert stamps == [2_500_000_000, 4_500_000_000, 5_500_000_000]


def test_a_split_file_that_does_not_fit_is_refused_or_what_is_missing_listed(tmp_path):
    folder = write_images(tmp_path, "a.png", "b.png")
    with pytest.raises(DatasetError, match=r"there is no split file nowhere\.txt"):
        part(folder, Path("nowhere.txt"))
    for text, reason in (
        ("a\nz\n", r"names z, which .* does not hold \(it holds a, b\).*--skip-bad"),
        ("a.png depth/a.png 500\n", "write one image name a line"),
        ("\n", "is empty; it needs one image name a line"),
        ("a\na.png\n", "line 2 names a again"),
    ):
        (folder / "some.txt").write_text(text)
        with pytest.raises(DatasetError, match=reason):
            part(folder, folder / "some.txt")
    (folder / "some.txt").write_text("a\nz\n")
    opened = part(folder, folder / "some.txt", skip_bad=True)
    assert opened.names == ["a"]
    assert list(opened.report.bad) == ["z"]
    (folder / "some.txt").write_text("y\nz\n")
    with pytest.raises(DatasetError, match="names y, z"):
        part(folder, folder / "some.txt", skip_bad=True)


GOOD = {
    "image_width": 64,
    "image_height": 48,
    "distortion_model": "plumb_bob",
    "camera_matrix": {"data": [60, 0, 31.5, 0, 61, 23.5, 0, 0, 1]},
    "distortion_coefficients": {"data": [0.1, 0, 0, 0, 0]},
    "rectification_matrix": {"data": [1, 0, 0, 0, 1, 0, 0, 0, 1]},
    "projection_matrix": {"data": [50, 0, 31, 0, 0, 51, 23, 0, 0, 0, 1, 0]},
}


def read(tmp_path, **changes):
    (tmp_path / "camera.yaml").write_text(yaml.safe_dump({**GOOD, **changes}))
    return read_camera_model(tmp_path / "camera.yaml", (64, 48))


def test_a_whole_calibration_is_read(tmp_path):
    model = read(tmp_path)
    assert (model.d[0], model.k[0], model.p[0]) == (0.1, 60.0, 50.0)
    assert read(tmp_path, projection_matrix=None).p[0] == 60.0


def test_what_is_malformed_is_refused_with_the_files_name(tmp_path):
    for changes in (
        {"projection_matrix": [1, 2, 3]},
        {"projection_matrix": "none"},
        {"projection_matrix": {"rows": 3}},
        {"projection_matrix": {"data": ["a"] * 12}},
        {"projection_matrix": {"data": [float("nan")] * 12}},
        {"distortion_coefficients": {"data": [float("inf")] * 5}},
        {"distortion_coefficients": {"data": None}},
        {"rectification_matrix": {"data": [float("nan")] * 9}},
        {"rectification_matrix": {"data": [1, 2]}},
        {"image_width": float("inf")},
        {"camera_matrix": {"data": [60] * 8}},
    ):
        with pytest.raises(DatasetError, match=r"camera\.yaml"):
            read(tmp_path, **changes)
