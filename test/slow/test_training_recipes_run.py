"""Trainings by the recipes, from the command line: what they start from and what they write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers.depth_data import write_kitti
from helpers.training import train, train_arguments
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.images import encode_share_png
from tiekd_ros.student.checkpoint import load_student
from tiekd_ros.training.data import DataOptions, open_training_data
from tiekd_ros.training.recipes import TrainingPlan, get_recipe
from tiekd_ros.training.start import check_labels, sample_items

IMAGES = 3


@pytest.fixture(scope="module")
def kitti(tmp_path_factory) -> Path:
    """KITTI's layout with a training split and teacher maps of 352x1216."""
    root = tmp_path_factory.mktemp("kitti")
    written = write_kitti(root, IMAGES)
    shutil.copy(root / "kitti_eigen_test.txt", root / "kitti_eigen_train.txt")
    (root / "teacher").mkdir()
    rng = np.random.default_rng(0)
    for image in written:
        depth = np.full((352, 1216), rng.uniform(5, 30), np.float32)
        name = image.name.replace("/", "_")
        (root / "teacher" / name).write_bytes(encode_share_png(depth, 80.0))
    return root


def run(kitti: Path, output: Path, *more: str) -> dict:
    return train(
        "train", "--data", str(kitti), "--output", str(output), "--recipe", "paper-kitti",
        "--batch-size", "2", "--iterations", "2", "--workers", "0", "--device", "cpu",
        "--input-size", "64x96", *more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("more", "settings", "used"),
    [
        (["--init", "auto"], {}, ("batch", 4e-3)),
        (["--init", "base"], {}, ("batch", 4e-3)),
        (["--init", "base", "--lr", "0.002"], {}, ("batch", 2e-3)),
        (["--init", "base"], {"batch_norm": "frozen", "learning_rate": 3e-3}, ("frozen", 3e-3)),
        (["--init", "random"], {}, ("batch", 1e-3)),
    ],
)
def test_a_start_from_the_base_student_has_the_measured_settings(
    rgbd, tmp_path, more, settings, used
):
    settings = {"train": settings, "student": {"bins": 17, "max_depth_m": 10.0}}
    more = [*more, "--iterations", "1", "--settings", json.dumps(settings)]
    train(*train_arguments(rgbd, tmp_path / "out", *more))
    written = json.loads((tmp_path / "out" / "run.json").read_text())["train"]
    assert (written["batch_norm"], written["learning_rate"]) == used


def test_the_published_student_trains_on_kitti_with_the_numbers_of_its_objective(kitti, tmp_path):
    outcome = run(kitti, tmp_path / "out", "--objective", "paper-dpm", "--batch-size", "1")
    written = json.loads((tmp_path / "out" / "run.json").read_text())
    assert written["loss"]["paper_sigma_m"] == 0.8
    card = load_student(Path(outcome["student"])).card
    assert (card.target.floor_m, card.target.relative) == (pytest.approx(3.77, abs=0.01), 0.0)
    assert (card.architecture, card.bins.count) == ("mobilenetv2", 257)
    assert (card.input_size.height, card.input_size.width) == (352, 1216)
    assert card.training["recipe"] == "paper-kitti"
    assert card.teacher == "teacher maps in teacher"


def test_a_baseline_learns_measured_depth_and_is_scored_by_the_published_protocol(kitti, tmp_path):
    outcome = run(
        kitti, tmp_path / "out", "--arch", "mobilenetv2-fast", "--objective", "si",
        "--labels", "truth", "--val-split", str(kitti / "kitti_eigen_test.txt"),
    )  # fmt: skip
    assert load_student(Path(outcome["student"])).card.teacher == "measured depth"
    assert {"abs_rel", "rmse", "silog", "a1"} <= set(outcome["scores"])
    with pytest.raises(TiekdError, match=r"'mse' takes unknown depth for 0 m, and 3 of 3 .* teach"):
        run(kitti, tmp_path / "mse", "--labels", "truth", "--objective", "mse")


def test_holes_in_a_teachers_maps_are_told(kitti, tmp_path):
    maps = shutil.copytree(kitti / "teacher", tmp_path / "maps")
    depth = np.full((352, 1216), 9.0, np.float32)
    depth[:88] = np.nan
    sorted(maps.iterdir())[0].write_bytes(encode_share_png(depth, 80.0))
    options = DataOptions(kitti, "kitti", teacher_dir=maps)
    data = open_training_data(options, get_recipe("paper-kitti"), TrainingPlan(), False)
    sampled = sample_items(data.train)
    plan = TrainingPlan.from_mapping({"loss": {"objective": "ssim"}})
    warning = check_labels(plan, data, sampled)
    assert "1 of 3 depth maps looked at have unknown pixels (25.0% of theirs)" in warning
    assert check_labels(TrainingPlan(), data, sampled) == ""


def test_missing_teacher_maps_are_named_with_the_way_out(kitti, tmp_path):
    empty = tmp_path / "maps"
    empty.mkdir()
    with pytest.raises(TiekdError, match=r"image_02_data_.*\.png.*make it with `tiekd label`"):
        run(kitti, tmp_path / "out", "--teacher-dir", str(empty))
