"""Trainings by the recipes, from the command line: what they start from and what they write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from helpers.depth_data import write_kitti
from helpers.training import train_arguments, write_rgbd
from tiekd_ros.cli.main import app
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
    arguments = [
        "train", "--data", str(kitti), "--output", str(output), "--recipe", "paper-kitti",
        "--batch-size", "2", "--iterations", "2", "--workers", "0", "--device", "cpu",
        "--json", "--input-size", "64x96", *more,
    ]  # fmt: skip
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("more", "train", "used"),
    [
        (["--init", "auto"], {}, ("frozen", 2e-3)),
        (["--init", "base"], {}, ("frozen", 2e-3)),
        (["--init", "base", "--lr", "0.004"], {}, ("frozen", 4e-3)),
        (["--init", "base"], {"batch_norm": "batch", "learning_rate": 3e-3}, ("batch", 3e-3)),
        (["--init", "random"], {}, ("batch", 1e-3)),
    ],
)
def test_a_start_from_the_base_student_has_the_measured_settings(tmp_path, more, train, used):
    data, output = write_rgbd(tmp_path / "data", 5), tmp_path / "out"
    settings = {"train": train, "student": {"bins": 17, "max_depth_m": 10.0}}
    more = [*more, "--iterations", "1", "--settings", json.dumps(settings)]
    result = CliRunner().invoke(app, train_arguments(data, output, *more), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    written = json.loads((output / "run.json").read_text())["train"]
    assert (written["batch_norm"], written["learning_rate"]) == used


def test_the_published_numbers_of_an_objective_reach_the_training(kitti, tmp_path):
    outcome = run(kitti, tmp_path / "out", "--objective", "paper-dpm", "--batch-size", "1")
    written = json.loads((tmp_path / "out" / "run.json").read_text())
    assert written["loss"]["paper_sigma_m"] == 0.8
    target = load_student(Path(outcome["student"])).card.target
    assert (target.floor_m, target.relative) == (pytest.approx(3.77, abs=0.01), 0.0)


def test_the_published_student_trains_on_kitti(kitti, tmp_path):
    outcome = run(kitti, tmp_path / "out", "--batch-size", "1")
    student = load_student(Path(outcome["student"]))
    assert student.card.architecture == "mobilenetv2"
    assert (student.card.input_size.height, student.card.input_size.width) == (352, 1216)
    assert student.card.bins.count == 257
    assert student.card.training["recipe"] == "paper-kitti"
    assert "student/" not in student.card.teacher
    assert "teacher" in student.card.teacher


def test_a_validation_split_is_scored_by_the_published_protocol(kitti, tmp_path):
    outcome = run(
        kitti, tmp_path / "out", "--arch", "mobilenetv2-fast",
        "--val-split", str(kitti / "kitti_eigen_test.txt"),
    )  # fmt: skip
    assert {"abs_rel", "rmse", "silog", "a1"} <= set(outcome["scores"])


def test_a_baseline_learns_measured_depth(kitti, tmp_path):
    outcome = run(
        kitti, tmp_path / "out", "--arch", "mobilenetv2-fast", "--objective", "si",
        "--labels", "truth",
    )  # fmt: skip
    assert load_student(Path(outcome["student"])).card.teacher == "measured depth"
    with pytest.raises(TiekdError, match=r"'mse' takes unknown depth for 0 m, and 3 of 3 .* teach"):
        run(kitti, tmp_path / "mse", "--labels", "truth", "--objective", "mse")


@pytest.mark.parametrize(("objective", "warned"), [("ssim", True), ("tiekd", False)])
def test_holes_in_a_teachers_maps_are_told(kitti, tmp_path, objective, warned):
    maps = shutil.copytree(kitti / "teacher", tmp_path / "maps")
    depth = np.full((352, 1216), 9.0, np.float32)
    depth[:88] = np.nan
    sorted(maps.iterdir())[0].write_bytes(encode_share_png(depth, 80.0))
    data = open_training_data(
        DataOptions(kitti, "kitti", teacher_dir=maps),
        get_recipe("paper-kitti"),
        TrainingPlan(),
        False,
    )
    plan = TrainingPlan.from_mapping({"loss": {"objective": objective}})
    warning = check_labels(plan, data, sample_items(data.train))
    assert bool(warning) == warned
    if warned:
        assert "1 of 3 depth maps looked at have unknown pixels (25.0% of theirs)" in warning


def test_missing_teacher_maps_are_named_with_the_way_out(kitti, tmp_path):
    empty = tmp_path / "maps"
    empty.mkdir()
    with pytest.raises(TiekdError, match=r"image_02_data_.*\.png.*make it with `tiekd label`"):
        run(kitti, tmp_path / "out", "--teacher-dir", str(empty))
