"""Frozen batch norms in training are folded into their convolutions: the same function."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tiekd_ros.method.stepping import freeze_batch_norms
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.networks import build_network
from tiekd_ros.student.networks.mobilenetv2 import ConvNormAct, FastStudent

BINS = DepthBins(count=17)
TOLERANCE = 1e-4  # relative: float32 over fifty layers


def network(architecture: str = "mobilenetv2-fast") -> nn.Module:
    """Return a network whose norms do something, with frozen statistics, in training mode."""
    torch.manual_seed(0)
    made = build_network(architecture, BINS)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)
    made.train()
    freeze_batch_norms(made)
    return made


def apart(made: nn.Module) -> nn.Module:
    """Return a copy that computes convolution and norm one after the other."""
    copied = copy.deepcopy(made)
    for module in copied.modules():
        if isinstance(module, ConvNormAct):
            module.eval()
    return copied


def gradients_of(made: nn.Module) -> dict[str, torch.Tensor]:
    """Return the gradients by name, without what takes no part in the answer."""
    return {name: p.grad for name, p in made.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("architecture", ["mobilenetv2-fast", "mobilenetv2"])
def test_answer_and_gradients_are_those_of_convolution_and_norm(architecture):
    folded = network(architecture)
    separate = apart(folded)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    answers = [made(images) for made in (folded, separate)]
    torch.testing.assert_close(answers[0], answers[1], rtol=TOLERANCE, atol=1e-5)
    for answer in answers:
        answer.square().mean().backward()
    gradients = [gradients_of(made) for made in (folded, separate)]
    assert gradients[0].keys() == gradients[1].keys()
    assert any("bn.weight" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        scale = float(gradients[1][name].abs().max())
        difference = float((gradient - gradients[1][name]).abs().max())
        assert difference <= TOLERANCE * scale + 1e-9, name


def test_a_norm_that_measures_its_batch_is_not_folded():
    made = FastStudent(BINS).train()
    before = made.backbone.conv1.bn.running_mean.clone()
    made(torch.randn(2, 3, 64, 64))
    assert not torch.equal(made.backbone.conv1.bn.running_mean, before)
