"""The decoder's stage: what rests is left as it is, and it ends where it should."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from helpers.frames import samples
from tiekd_ros.method.losses import LossSettings
from tiekd_ros.method.samples import AugmentSettings, Sample
from tiekd_ros.rounds.trainer import DecoderStage, Trainer, TrainResult, TrainSettings, hold_back
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.networks.mobilenetv2 import FastStudent

BINS = DepthBins(count=17)


def student() -> FastStudent:
    torch.manual_seed(0)
    return FastStudent(BINS)


def small(count: int = 8) -> list[Sample]:
    """Return samples of 64x64 pixels."""
    return [Sample(s.image[:, :64].copy(), s.depth[:, :64].copy()) for s in samples(count)]


def train(
    network: FastStudent, data: Sequence[Sample], *, has_parent: bool = True, **settings: object
) -> TrainResult:
    values = {"iterations": 8, "batch_size": 2, "decoder_gain": 0.0, "device": "cpu", **settings}
    return Trainer(
        network,
        data,
        TrainSettings.from_mapping(values),
        loss=LossSettings(),
        augmentation=AugmentSettings(),
        has_parent=has_parent,
    ).run(lambda progress: None)


def state_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(network: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    """Return the parts of a network, by their first name, in which something changed."""
    after = network.state_dict()
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(("steps", "gain"), [(8, 0.0), (1, 0.01)])  # with and without a look
def test_the_decoder_alone_leaves_the_backbone_bitwise_as_it_was(steps, gain):
    network = student()
    before = state_of(network)
    result = train(network, small(), iterations=steps, decoder_first=1.0, decoder_gain=gain)
    assert (result.steps, result.decoder_steps) == (steps, steps)
    assert changed(network, before) == {"neck", "up", "skip", "refine", "head"}
    assert all(p.requires_grad for p in network.parameters())


def test_looks_leave_frozen_batch_norms_as_they_were():
    network = student()
    assert network.training  # as it comes from the base student
    before = {name: value for name, value in state_of(network).items() if "running_" in name}
    train(network, small(), decoder_first=1.0, decoder_gain=0.01)
    assert len(before) > 100
    assert not changed(network, before)


def test_after_its_share_the_whole_network_is_trained():
    network = student()
    before = state_of(network)
    result = train(network, small(), decoder_first=0.5)
    assert (result.steps, result.decoder_steps) == (8, 4)
    assert "backbone" in changed(network, before)


def test_a_stage_that_does_not_pay_ends_at_the_second_look():
    # No loss falls by all of itself: looks are a twentieth of 40 steps apart.
    result = train(student(), small(), iterations=40, decoder_first=1.0, decoder_gain=1.0)
    assert (result.steps, result.decoder_steps) == (40, 2)


@pytest.mark.parametrize(
    ("has_parent", "count", "settings"),
    [
        (False, 8, {}),  # random weights: the backbone has everything to learn
        (True, 8, {"batch_norm": "batch"}),
        (True, 7, {"decoder_gain": 0.01}),  # too few to hold one back
        (True, 8, {"decoder_first": 0.0}),
    ],
)
def test_where_it_cannot_be_there_is_no_such_stage(has_parent, count, settings):
    settings = {"iterations": 2, "decoder_first": 1.0, **settings}
    result = train(student(), small(count), has_parent=has_parent, **settings)
    assert result.decoder_steps == 0


def test_the_same_seed_gives_the_same_student_with_a_decoder_stage_too():
    networks = [student() for _ in range(3)]
    for network, seed in zip(networks, (5, 5, 6), strict=True):
        train(network, small(), decoder_first=0.5, seed=seed)
    assert not changed(networks[0], state_of(networks[1]))
    assert changed(networks[0], state_of(networks[2]))


def stage_with(network: nn.Module, losses: Sequence[float]) -> DecoderStage:
    return DecoderStage(network, 0.9, 0.01, iter(losses).__next__)


@pytest.mark.parametrize(
    ("losses", "looks"),
    [
        ([1.0, 0.98, 0.96, 0.955], 4),  # the last gain is too small
        ([1.0, 1.1], 2),
        ([1.0, 0.9, 0.95], 3),  # compared with the lowest
        ([math.inf, 1.0, 1.0], 3),
    ],
)
def test_it_ends_where_the_held_back_loss_falls_no_more(losses, looks):
    network = student()
    with stage_with(network, losses) as stage:
        for look in range(looks):
            assert stage.running
            assert not any(p.requires_grad for p in network.backbone.parameters())
            stage.follow(0.06 * look)
        assert not stage.running
        assert all(p.requires_grad for p in network.backbone.parameters())
        stage.follow(0.8)  # looks no more


def test_between_looks_nothing_is_measured():
    with stage_with(student(), [1.0]) as stage:
        for step in range(5):
            stage.follow(0.01 * step)
        assert stage.running


def test_a_training_that_fails_leaves_the_backbone_trainable():
    network = student()
    frozen_before = network.backbone.conv1.conv.weight
    frozen_before.requires_grad_(False)  # someone's own wish
    with pytest.raises(RuntimeError, match="broken"), stage_with(network, [1.0]):
        raise RuntimeError("broken")
    resting = [p for p in network.backbone.parameters() if not p.requires_grad]
    assert [p is frozen_before for p in resting] == [True]


@pytest.mark.parametrize(("count", "few"), [(7, 0), (8, 1), (64, 8), (400, 8)])
def test_a_few_frames_spread_over_all_are_held_back(count, few):
    trained, held = hold_back(range(count))
    assert len(held) == few
    assert sorted([*trained, *held]) == list(range(count))
    if few > 1:
        gaps = {b - a for a, b in itertools.pairwise(held)}
        assert max(gaps) - min(gaps) <= 1
