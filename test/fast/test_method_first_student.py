"""What a first student starts from: the base that ships, at the camera's scale, or nothing."""

from __future__ import annotations

import shutil
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from random_world import HELD_OUT_SEEDS_FROM, TRAINING_SEEDS_FROM

from helpers.frames import small_plan
from helpers.students import FASTEST
from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.method.comparison import mean_errors, student_predictor
from tiekd_ros.method.first_student import StudentSettings, first_network, first_student
from tiekd_ros.method.losses import LossSettings
from tiekd_ros.method.samples import AugmentSettings, Sample, fit_sample
from tiekd_ros.rounds.round import run_round
from tiekd_ros.rounds.trainer import Trainer, TrainSettings
from tiekd_ros.student import base_student as transfer
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.base_student import depth_scale, load_base
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import CheckpointError, Student
from tiekd_ros.student.networks import DEFAULT_ARCHITECTURE
from tiekd_ros.student.preprocessing import normalise
from tiekd_ros.student.registry import StudentRegistry
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime
from tiekd_ros.worlds import IndoorWorld, WorldSettings

SIZE = InputSize(96, 128)
MOST_BYTES = 11_000_000
UNSEEN_SEED = 3  # far below the seeds that the base was trained on
SCALE_TOLERANCE = 0.02  # of the depth, where interpolation between bins is not exact


@lru_cache(maxsize=1)
def unseen() -> tuple[list[Sample], list[Sample]]:
    """Return 24 views of one half of a walk through an unseen world, and 10 of the other."""
    world = IndoorWorld(WorldSettings(seed=UNSEEN_SEED))
    camera = IndoorWorld.default_intrinsics(SIZE.width, SIZE.height)
    views = [world.render(k * 10**9 * 60 // 48, SIZE.width, SIZE.height) for k in range(48)]
    samples = [fit_sample(v.image, v.depth, camera, SIZE) for v in views]
    return samples[:24], samples[30:40]


def images() -> torch.Tensor:
    return normalise(torch.from_numpy(np.stack([s.image for s in unseen()[1][:4]])))


@torch.inference_mode()
def depth_of(network: torch.nn.Module) -> torch.Tensor:
    network.eval()
    return network.moments(network(images())).mean


def test_the_base_that_ships_is_small_and_says_what_it_is():
    assert StudentSettings().start == "base"
    base = load_base()
    folder = Path(transfer.__file__).parent / "base"
    assert (folder / "student.safetensors").stat().st_size <= MOST_BYTES
    card = base.card
    assert card.status == "base"
    assert card.architecture == StudentSettings().architecture == DEFAULT_ARCHITECTURE
    assert "never live before a gate has passed" in card.reason
    first, last = card.training["world_seeds"]
    assert TRAINING_SEEDS_FROM <= first <= last < HELD_OUT_SEEDS_FROM
    assert card.training["canonical_focal_px"] == card.focal_px[0] == card.focal_px[1]
    scores = card.scores
    assert scores["held_out_worlds"]["abs_rel"] < scores["best_constant"]["abs_rel"]


@pytest.mark.parametrize(
    "bins",
    [
        DepthBins(count=257, min_depth_m=0.1, max_depth_m=20.0),
        DepthBins(count=101, min_depth_m=0.05, max_depth_m=25.0),
        DepthBins(count=300, min_depth_m=0.1, max_depth_m=40.0, spacing="log"),
    ],
    ids=str,
)
def test_a_start_from_the_base_has_the_scale_of_its_camera(bins: DepthBins):
    base = load_base()
    for focal_px in (60.0, 90.0, 120.0):
        focal = (focal_px, focal_px)
        scale = depth_scale(base.card, SIZE, focal_px)
        wanted = scale * depth_of(base.network)
        found = depth_of(first_network(DEFAULT_ARCHITECTURE, bins, SIZE, "base", focal))
        far = 0.5 * min(12.0 * scale, bins.max_depth_m)
        common = (wanted > 4 * bins.min_depth_m) & (wanted < far)
        assert common.float().mean() > 0.3
        error = (found - wanted).abs()[common]
        tolerance = (0.35 * bins.width_at(wanted) + SCALE_TOLERANCE * wanted)[common]
        assert (error <= tolerance).float().mean() > 0.95


def test_a_camera_of_unknown_focal_length_is_taken_for_the_canonical_one_at_any_resolution():
    base = load_base()
    found = depth_of(first_network(DEFAULT_ARCHITECTURE, base.card.bins, SIZE, "base", None))
    assert torch.allclose(found, depth_of(base.network), atol=1e-3)
    half, whole = InputSize(96, 160), InputSize(192, 320)
    scale = depth_scale(base.card, half, 100.0)
    assert depth_scale(base.card, whole, 200.0) == pytest.approx(scale)


def trained(start: str, iterations: int) -> Student:
    train, _ = unseen()
    torch.manual_seed(0)
    student = first_student(train, SIZE, StudentSettings(start=start), LossSettings().target_width)
    Trainer(
        student.network,
        train,
        TrainSettings(iterations=iterations, threads=1, device="cpu"),
        loss=LossSettings(),
        augmentation=AugmentSettings(),
        has_parent=start == "base",
    ).run(lambda progress: None)
    return student


def test_a_few_iterations_from_the_base_beat_as_many_from_random_weights():
    """In a world that the base has never seen, on views that neither was trained on."""
    held_out = unseen()[1]
    errors = {}
    for start in ("base", "random"):
        student = trained(start, 25)
        errors[start] = mean_errors(
            student_predictor(TorchRuntime(student)), held_out, student.card.bins
        )
    assert errors["base"].abs_rel < 0.8 * errors["random"].abs_rel
    assert errors["base"].rmse < 0.9 * errors["random"].rmse


@pytest.mark.parametrize("start", ["base", "random"])
def test_a_first_round_judges_what_came_of_its_start_against_the_best_constant(start, state):
    architecture = DEFAULT_ARCHITECTURE if start == "base" else FASTEST
    student = {"start": start, "architecture": architecture}
    plan = small_plan(student=student, train={"iterations": 2})
    events = []
    run_round(state, plan, 1, events.append)
    assert (events[-1]["baseline"], events[-1]["parent"]) == ("best constant", None)
    registry = StudentRegistry(state.students)
    assert (registry.versions(), registry.live()) == (["000001"], None)  # no base among them
    card = registry.card("000001")
    assert card.training["start"] == start
    assert card.status in ("accepted", "refused")


@pytest.mark.parametrize("damage", ["missing", "cut", "no focal length"])
def test_a_base_that_cannot_be_used_is_an_error_that_names_the_way_out(
    damage, tmp_path, monkeypatch
):
    shipped = Path(transfer.__file__).parent / "base"
    if damage != "missing":
        shutil.copytree(shipped, tmp_path / "base")
    if damage == "cut":
        weights = tmp_path / "base" / "student.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    if damage == "no focal length":
        card = tmp_path / "base" / "card.json"
        lines = card.read_text().split('"focal_px"')
        card.write_text(lines[0] + '"focal_px": null' + lines[1][lines[1].index("]") + 1 :])
    monkeypatch.setattr(transfer, "files", lambda package: tmp_path)
    with pytest.raises(CheckpointError, match=r"student\.start: random"):
        first_network(DEFAULT_ARCHITECTURE, DepthBins(), SIZE, "base", None)
    first_network(DEFAULT_ARCHITECTURE, DepthBins(count=17), SIZE, "random", None)  # needs no file


def test_the_focal_length_is_that_of_the_samples():
    train, _ = unseen()
    tele = [
        Sample(s.image, 2 * s.depth, Intrinsics(2 * s.intrinsics.fx, 2 * s.intrinsics.fy, 64, 48))
        for s in train
    ]
    settings = StudentSettings(max_depth_m=20.0)
    target = LossSettings().target_width
    near, far = (
        depth_of(first_student(data, SIZE, settings, target).network) for data in (train, tele)
    )
    common = (far > 0.5) & (far < 10.0)
    assert (far / near)[common].median() == pytest.approx(2.0, rel=0.05)


def test_of_a_focal_length_that_is_wrong_or_not_known_little_is_left_in_depth():
    train, _ = unseen()
    settings, target = StudentSettings(max_depth_m=20.0), LossSettings().target_width
    camera = train[0].intrinsics
    twice = Intrinsics(2 * camera.fx, 2 * camera.fy, camera.cx, camera.cy)
    right, wrong, unknown = (
        first_student([Sample(s.image, s.depth, known) for s in train], SIZE, settings, target)
        for known in (camera, twice, None)
    )
    wanted = depth_of(right.network)
    common = (wanted > 0.5) & (wanted < 10.0)
    for other in (wrong, unknown):
        ratio = depth_of(other.network) / wanted
        assert (ratio[common] - 1).abs().median() < 0.2  # the dead zone, and no factor of two
    assert wrong.card.training["scale"] < 0.6 * right.card.training["scale"]
    assert (wrong.card.training["focal_px_known"], unknown.card.training["focal_px_known"]) == (
        True, False,
    )  # fmt: skip
