"""What trains and what validates: never the same images by accident."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from helpers.training import COUNT
from tiekd_ros.datasets import DatasetError
from tiekd_ros.training.data import DataOptions, TrainingData, open_training_data
from tiekd_ros.training.recipes import RecipeError, get_recipe

TRAIN, VALIDATE = ["0000", "0002", "0003"], ["0001", "0005"]


@pytest.fixture
def folder(rgbd, tmp_path) -> Path:
    """An RGB-D folder with teacher maps of half the measured depth."""
    root = shutil.copytree(rgbd, tmp_path / "rgbd")
    (root / "teacher").mkdir()
    for file in (root / "depth").iterdir():
        units = cv2.imread(str(file), cv2.IMREAD_UNCHANGED).astype(np.float32) / 1000 * 128
        assert cv2.imwrite(str(root / "teacher" / file.name), units.astype(np.uint16))
    (root / "train.txt").write_text("\n".join(TRAIN))
    (root / "val.txt").write_text("\n".join(VALIDATE))
    return root


def opened(folder: Path, kind: str = "rgbd", *, skip_bad: bool = False, **more) -> TrainingData:
    recipe = get_recipe("tiekd")
    return open_training_data(DataOptions(folder, kind, **more), recipe, recipe.plan, skip_bad)


@pytest.mark.parametrize("kind", ["rgbd", "images"])
def test_split_files_say_what_trains_and_what_validates_in_folders(folder, kind):
    data = opened(folder, kind, split=Path("train.txt"), val_split=Path("val.txt"))
    assert (data.train.names, data.validation.names) == (TRAIN, VALIDATE)
    assert [data.train.item(index).name for index in range(3)] == TRAIN
    assert "warning" not in data.describe()


@pytest.mark.parametrize("kind", ["rgbd", "images"])
def test_a_split_file_that_is_not_there_is_refused(folder, kind):
    for name in ("split", "val_split"):
        with pytest.raises(DatasetError, match=r"there is no split file nowhere\.txt"):
            opened(folder, kind, **{name: Path("nowhere.txt")})


@pytest.mark.parametrize("kind", ["rgbd", "images"])
def test_without_a_training_split_a_folders_other_images_train(folder, kind):
    data = opened(folder, kind, val_split=folder / "val.txt")
    assert data.validation.names == VALIDATE
    assert data.train.names == [f"{k:04d}" for k in range(COUNT) if f"{k:04d}" not in VALIDATE]
    (folder / "val.txt").write_text("\n".join(f"{k:04d}" for k in range(COUNT)))
    with pytest.raises(RecipeError, match="none is left to train on"):
        opened(folder, kind, val_split=folder / "val.txt")


def test_without_a_validation_split_the_last_part_of_the_training_split_validates(folder):
    (folder / "val.txt").write_text("0000\n0001\n")
    data = opened(folder, split=folder / "train.txt", val_split=folder / "val.txt")
    assert "warning: 1 of the 2 images that validate are trained on as well" in data.describe()
    (folder / "train.txt").write_text("\n".join(f"{k:04d}" for k in range(10)))
    data = opened(folder, split=folder / "train.txt")
    assert (len(data.train), data.validation.names) == (9, ["0009"])


def test_validation_images_have_measured_depth_or_else_the_teachers(folder):
    splits = {"split": folder / "train.txt", "val_split": folder / "val.txt"}
    measured = opened(folder, **splits).validation.item(0)
    taught = opened(folder, "images", **splits).validation.item(0)
    assert measured.truth is not None
    assert measured.teacher is None
    assert taught.truth is None
    known = np.isfinite(measured.truth) & np.isfinite(taught.teacher)
    np.testing.assert_allclose(taught.teacher[known], measured.truth[known] / 2, atol=0.01)


def test_what_is_left_out_of_both_parts_is_named(folder):
    (folder / "train.txt").write_text("0000\n0002\n0003\nghost\n")
    (folder / "depth" / "0005.png").unlink()
    splits = {"split": folder / "train.txt", "val_split": folder / "val.txt"}
    with pytest.raises(DatasetError, match="names ghost"):
        opened(folder, **splits)
    data = opened(folder, skip_bad=True, **splits)
    assert set(data.left_out) == {"ghost", "0005"}
    assert "no depth map" in data.left_out["0005"]
    assert "2 left out" in data.describe()


def test_a_frame_log_has_its_own_split(labelled, tmp_path):
    with pytest.raises(RecipeError, match="is a frame log: it has its own split"):
        opened(labelled.root, "auto", split=tmp_path / "train.txt")
