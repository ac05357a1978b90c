"""The named recipes: the published numbers, the published augmentation, and what they refuse."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from helpers.depth_data import write_kitti
from helpers.training import train_arguments, write_rgbd
from tiekd_ros.cli.main import app
from tiekd_ros.core.errors import BadDepthError, TiekdError
from tiekd_ros.core.images import encode_share_png
from tiekd_ros.datasets import DepthItem
from tiekd_ros.method import paper
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import CheckpointError, load_student
from tiekd_ros.student.networks import build_network
from tiekd_ros.student.networks.official import NYU_BINS
from tiekd_ros.training.data import DataOptions, open_training_data
from tiekd_ros.training.loop import make_optimizer, make_stepper
from tiekd_ros.training.recipes import PublishedPreparation, RecipeError, TrainingPlan, get_recipe
from tiekd_ros.training.start import check_labels, load_backbone, sample_items

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


def test_the_published_recipe_has_the_published_numbers():
    recipe = get_recipe("paper-kitti")
    train, student, loss = recipe.plan.train, recipe.plan.student, recipe.plan.loss
    assert (train.learning_rate, train.beta1, train.beta2) == (1e-3, 0.95, 0.99)
    assert (train.weight_decay, train.clip_norm) == (0.01, 35.0)
    assert (train.batch_size, train.epochs) == (16, 24)
    assert (student.bins, student.min_depth_m, student.max_depth_m) == (257, 1e-3, 80.0)
    assert (loss.objective, loss.paper_weight, loss.paper_sigma_m) == ("paper", 0.1, 0.5)
    assert recipe.augmentation == paper.KITTI_AUGMENTATION
    assert paper.KITTI_AUGMENTATION.crop_size == (352, 704)
    assert recipe.flip_test
    nyu = get_recipe("paper-nyu")
    assert (nyu.plan.student.bins, nyu.plan.student.max_depth_m) == (49, 10.0)
    assert nyu.augmentation == paper.NYU_AUGMENTATION
    assert paper.NYU_AUGMENTATION.crop_size == (416, 544)
    assert nyu.plan.train == train
    with pytest.raises(RecipeError, match="'paper-cityscapes': known are tiekd, paper-kitti"):
        get_recipe("paper-cityscapes")


def test_a_training_takes_the_optimiser_and_the_step_of_its_recipe():
    torch.manual_seed(0)
    plan = get_recipe("paper-kitti").plan
    network = build_network("mobilenetv2", DepthBins(9, 1e-3, 80.0))
    optimizer = make_optimizer(network, plan.train)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-3, (0.95, 0.99), 0.01)
    assert sum(p.numel() for p in group["params"]) == sum(p.numel() for p in network.parameters())
    depth = torch.rand(2, 1, 64, 64) * 80
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        network.train()
        wanted = paper.PublishedLoss(network.bins)(network(image), depth).total
    before = [p.detach().clone() for p in network.parameters()]
    clipped = plan.changed({"train": {"clip_norm": 1e-3}})
    step = make_stepper(network, optimizer, clipped).step(image, depth, 4e-5)
    assert step is not None
    assert step.parts.total.item() == pytest.approx(wanted.item(), rel=1e-4)
    gradients = torch.stack([p.grad.norm() for p in network.parameters() if p.grad is not None])
    assert gradients.norm().item() == pytest.approx(1e-3, rel=1e-3)
    assert step.gradient_norm > 1e-3
    moved = max((p - b).abs().max() for p, b in zip(network.parameters(), before, strict=True))
    assert 3e-5 < moved < 1e-4


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


def test_a_published_recipe_keeps_its_numbers_wherever_it_starts():
    recipe = get_recipe("paper-kitti")
    assert recipe.plan_for({}, from_base=True) == recipe.plan_for({})


@pytest.mark.parametrize(
    ("recipe", "arch", "objective", "sigma_m"),
    [
        ("paper-kitti", "mobilenetv2", "paper-dpm", 0.8),
        ("paper-kitti", "resnet18", "paper-dpm", 0.8),
        ("paper-kitti", "resnet50", "paper-dpm", 0.5),
        ("paper-kitti", "mobilenetv2", "paper", 0.5),
        ("paper-nyu", "mobilenetv2", "paper-dpm", 0.15),
        ("paper-nyu", "resnet50", "paper-dpm", 0.15),
        ("paper-nyu", "mobilenetv2", "paper", 0.5),
        ("tiekd", "mobilenetv2", "paper-dpm", 0.5),
    ],
)
def test_a_single_term_has_the_sigma_of_its_own_config(recipe, arch, objective, sigma_m):
    asked = {"student": {"architecture": arch}, "loss": {"objective": objective}}
    assert get_recipe(recipe).plan_for(asked).loss.paper_sigma_m == sigma_m
    asked["loss"]["paper_sigma_m"] = 0.3
    assert get_recipe(recipe).plan_for(asked).loss.paper_sigma_m == 0.3


@pytest.mark.parametrize(
    ("recipe", "baseline", "weight"),
    [("paper-kitti", False, 1.0), ("paper-nyu", False, 1.5), ("paper-nyu", True, 1.0)],
)
def test_the_scale_invariant_loss_has_the_weight_of_its_own_config(recipe, baseline, weight):
    asked = {"loss": {"objective": "si"}}
    assert get_recipe(recipe).plan_for(asked, baseline=baseline).loss.si_weight == weight
    asked["loss"]["si_weight"] = 3.0
    assert get_recipe(recipe).plan_for(asked, baseline=baseline).loss.si_weight == 3.0


def test_the_published_numbers_of_an_objective_reach_the_training(kitti, tmp_path):
    outcome = run(kitti, tmp_path / "out", "--objective", "paper-dpm", "--batch-size", "1")
    written = json.loads((tmp_path / "out" / "run.json").read_text())
    assert written["loss"]["paper_sigma_m"] == 0.8
    target = load_student(Path(outcome["student"])).card.target
    assert (target.floor_m, target.relative) == (pytest.approx(3.77, abs=0.01), 0.0)


def test_the_published_rate_is_one_cycle():
    rate = get_recipe("paper-kitti").rate
    rates = [rate(step, 100, 1e-3) for step in range(100)]
    assert rates[0] == pytest.approx(4e-5)
    assert max(rates) == pytest.approx(1e-3)
    assert int(np.argmax(rates)) == 29
    assert rates[-1] == pytest.approx(4e-7)


def test_published_samples_are_those_of_the_published_augmentation():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (352, 1216, 3), dtype=np.uint8)
    teacher = rng.uniform(1, 80, (352, 1216)).astype(np.float32)
    teacher[:100] = 0
    preparation = PublishedPreparation(paper.KITTI_AUGMENTATION)
    item = DepthItem("x", image, None, teacher, None)
    given, depth = preparation(item, np.random.default_rng(5))
    legacy = np.random.RandomState(np.random.default_rng(5).integers(2**32, dtype=np.uint32))
    view = paper.augment(image, None, teacher, paper.KITTI_AUGMENTATION, legacy)
    np.testing.assert_array_equal(given, view.image)
    assert given.shape == (352, 704, 3)
    assert np.isnan(depth[view.teacher == 0]).all()
    np.testing.assert_array_equal(depth[view.teacher > 0], view.teacher[view.teacher > 0])
    with pytest.raises(BadDepthError, match="x has neither a teacher's map nor measured depth"):
        preparation(DepthItem("x", image, None, None, None), np.random.default_rng(0))


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


@pytest.mark.parametrize("architecture", ["mobilenetv2-fast", "mobilenetv2", "resnet18"])
def test_imagenet_weights_go_into_the_backbone_and_nowhere_else(tmp_path, architecture):
    torch.manual_seed(0)
    source, network = (build_network(architecture, NYU_BINS) for _ in range(2))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    given = {f"backbone.{k}": v for k, v in source.backbone.state_dict().items()}
    path = tmp_path / "imagenet.pth"
    torch.save({"state_dict": {**given, "head.fc.weight": torch.zeros(1000, 4)}}, path)
    load_backbone(network, path)
    for name, value in network.state_dict().items():
        inside = name.startswith("backbone.")
        assert torch.equal(value, given[name] if inside else before[name]), name
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"are missing or misshapen \(first: conv1"):
        load_backbone(network, path)


@pytest.mark.parametrize("former", [False, True])
def test_backbone_weights_come_in_either_format_of_torch(tmp_path, former):
    torch.manual_seed(0)
    source, network = (build_network("resnet18", NYU_BINS) for _ in range(2))
    path = tmp_path / "imagenet.pth"
    given = source.backbone.state_dict()
    content = {"meta": {"best": np.float64(0.7)}, "state_dict": given}
    torch.save(content, path, _use_new_zipfile_serialization=not former)
    load_backbone(network, path)
    after = network.backbone.state_dict()
    assert all(torch.equal(after[name], given[name]) for name in given)


class Trap:
    """Runs code when a careless reader unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("former", [False, True])
def test_backbone_weights_that_would_run_code_are_refused(tmp_path, former):
    path, trap = tmp_path / "weights.pth", tmp_path / "trap"
    content = {"a": torch.zeros(1), "b": Trap(trap)}
    torch.save(content, path, _use_new_zipfile_serialization=not former)
    with pytest.raises(CheckpointError, match="mkdir") as refused:
        load_backbone(build_network("resnet18", NYU_BINS), path)
    assert "weights_only" not in str(refused.value)
    assert not trap.exists()


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
@pytest.mark.parametrize(
    "data", [b"", b"weights" * 100, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."]
)
def test_a_file_without_weights_is_refused_by_name(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=name) as refused:
        load_backbone(build_network("resnet18", NYU_BINS), path)
    assert "weights_only" not in str(refused.value)
