"""The named recipes: the published numbers, the published augmentation, and what they refuse."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.official import REFERENCE, needs_reference
from tiekd_ros.core.errors import BadDepthError, InvalidSettingError
from tiekd_ros.datasets import DepthItem
from tiekd_ros.method.paper import losses, pipeline
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import CheckpointError
from tiekd_ros.student.networks import build_network
from tiekd_ros.student.networks.official import NYU_BINS
from tiekd_ros.training.loop import make_optimizer, make_stepper
from tiekd_ros.training.recipes import PublishedPreparation, RecipeError, get_recipe, one_cycle
from tiekd_ros.training.start import load_backbone


def test_the_published_recipe_has_the_published_numbers():
    recipe = get_recipe("paper-kitti")
    train, student, loss = recipe.plan.train, recipe.plan.student, recipe.plan.loss
    assert (train.learning_rate, train.beta1, train.beta2) == (1e-3, 0.95, 0.99)
    assert (train.weight_decay, train.clip_norm) == (0.01, 35.0)
    assert (train.batch_size, train.epochs) == (16, 24)
    assert (student.bins, student.min_depth_m, student.max_depth_m) == (257, 1e-3, 80.0)
    assert (loss.objective, loss.paper_weight, loss.paper_sigma_m) == ("paper", 0.1, 0.5)
    assert recipe.augmentation == pipeline.KITTI_AUGMENTATION
    assert pipeline.KITTI_AUGMENTATION.crop_size == (352, 704)
    assert recipe.flip_test
    nyu = get_recipe("paper-nyu")
    assert (nyu.plan.student.bins, nyu.plan.student.max_depth_m) == (49, 10.0)
    assert nyu.augmentation == pipeline.NYU_AUGMENTATION
    assert pipeline.NYU_AUGMENTATION.crop_size == (416, 544)
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
        wanted = losses.PublishedLoss(network.bins)(network(image), depth).total
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


def test_a_single_term_has_the_number_of_its_own_config():
    for recipe, arch, objective, baseline, name, number in (
        ("paper-kitti", "mobilenetv2", "paper-dpm", False, "paper_sigma_m", 0.8),
        ("paper-kitti", "resnet18", "paper-dpm", False, "paper_sigma_m", 0.8),
        ("paper-kitti", "resnet50", "paper-dpm", False, "paper_sigma_m", 0.5),
        ("paper-kitti", "mobilenetv2", "paper", False, "paper_sigma_m", 0.5),
        ("paper-nyu", "mobilenetv2", "paper-dpm", False, "paper_sigma_m", 0.15),
        ("paper-nyu", "resnet50", "paper-dpm", False, "paper_sigma_m", 0.15),
        ("paper-nyu", "mobilenetv2", "paper", False, "paper_sigma_m", 0.5),
        ("tiekd", "mobilenetv2", "paper-dpm", False, "paper_sigma_m", 0.5),
        ("paper-kitti", "mobilenetv2", "si", False, "si_weight", 1.0),
        ("paper-nyu", "mobilenetv2", "si", False, "si_weight", 1.5),
        ("paper-nyu", "mobilenetv2", "si", True, "si_weight", 1.0),
    ):
        asked = {"student": {"architecture": arch}, "loss": {"objective": objective}}
        plan = get_recipe(recipe).plan_for(asked, baseline=baseline)
        assert getattr(plan.loss, name) == number
        asked["loss"][name] = 3.0
        plan = get_recipe(recipe).plan_for(asked, baseline=baseline)
        assert getattr(plan.loss, name) == 3.0
    recipe = get_recipe("paper-kitti")  # keeps its numbers wherever it starts
    assert recipe.plan_for({}, from_base=True) == recipe.plan_for({})


def rates(steps: int) -> list[float]:
    return [get_recipe("paper-kitti").rate(step, steps, 1e-3) for step in range(steps)]


def test_the_published_rate_rises_for_three_tenths_and_falls_to_almost_nothing():
    lr = rates(200)
    assert (lr[0], lr[59], lr[-1]) == pytest.approx((4e-5, 1e-3, 4e-7))
    assert (np.diff(lr[:60]) > 0).all()
    assert (np.diff(lr[59:]) < 0).all()
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    for iterations, max_lr, fault in ((0, 1e-3, "at least 1 iter"), (10, -1e-3, "positive max_lr")):
        with pytest.raises(InvalidSettingError, match=fault):
            one_cycle(optimizer, iterations, max_lr)


@needs_reference
def test_the_published_rate_is_that_of_the_published_code():
    f = np.load(REFERENCE / "onecycle_lr.npz")
    assert rates(int(f["total_iters"])) == pytest.approx(f["lr"], rel=1e-9)


def test_published_samples_are_those_of_the_published_augmentation():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (352, 1216, 3), dtype=np.uint8)
    teacher = rng.uniform(1, 80, (352, 1216)).astype(np.float32)
    teacher[:100] = 0
    preparation = PublishedPreparation(pipeline.KITTI_AUGMENTATION)
    item = DepthItem("x", image, None, teacher, None)
    given, depth = preparation(item, np.random.default_rng(5))
    legacy = np.random.RandomState(np.random.default_rng(5).integers(2**32, dtype=np.uint32))
    view = pipeline.augment(image, None, teacher, pipeline.KITTI_AUGMENTATION, legacy)
    np.testing.assert_array_equal(given, view.image)
    assert given.shape == (352, 704, 3)
    assert np.isnan(depth[view.teacher == 0]).all()
    np.testing.assert_array_equal(depth[view.teacher > 0], view.teacher[view.teacher > 0])
    with pytest.raises(BadDepthError, match="x has neither a teacher's map nor measured depth"):
        preparation(DepthItem("x", image, None, None, None), np.random.default_rng(0))


@pytest.mark.parametrize("architecture", ["mobilenetv2-fast", "mobilenetv2", "resnet18"])
def test_imagenet_weights_go_into_the_backbone_and_nowhere_else(tmp_path, architecture):
    torch.manual_seed(0)
    source = build_network(architecture, NYU_BINS)
    given = {f"backbone.{k}": v for k, v in source.backbone.state_dict().items()}
    weights = {**given, "head.fc.weight": torch.zeros(1000, 4)}
    path = tmp_path / "imagenet.pth"
    for zipped in (True, False):  # torch's format of today and its former one
        network = build_network(architecture, NYU_BINS)
        before = {k: v.clone() for k, v in network.state_dict().items()}
        content = {"meta": {"best": np.float64(0.7)}, "state_dict": weights}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        load_backbone(network, path)
        for name, value in network.state_dict().items():
            inside = name.startswith("backbone.")
            assert torch.equal(value, given[name] if inside else before[name]), name
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"are missing or misshapen \(first: conv1"):
        load_backbone(network, path)


class Trap:
    """Runs code when a careless reader unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_backbone_weights_that_would_run_code_are_refused(tmp_path, zipped):
    path, trap = tmp_path / "weights.pth", tmp_path / "trap"
    content = {"a": torch.zeros(1), "b": Trap(trap)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="mkdir") as refused:
        load_backbone(build_network("resnet18", NYU_BINS), path)
    assert "weights_only" not in str(refused.value)
    assert not trap.exists()


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_a_file_without_weights_is_refused_by_name(tmp_path, name):
    network = build_network("resnet18", NYU_BINS)
    for data in (b"", b"weights" * 100, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=name) as refused:
            load_backbone(network, tmp_path / name)
        assert "weights_only" not in str(refused.value)
