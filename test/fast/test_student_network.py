"""The network: its bins, its shapes, and moments that are those of the softmax."""

import copy

import pytest
import torch
from torch import nn

from helpers.students import BINS
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.method.stepping import freeze_batch_norms
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.networks import ARCHITECTURES, build_network
from tiekd_ros.student.networks.mobilenetv2 import ConvNormAct, FastStudent
from tiekd_ros.student.runtimes.base import fuse_batch_norms

FOLDED = 1e-4  # relative difference: float32 over fifty layers


def test_bins_divide_the_range_evenly_or_by_logarithm():
    bins = DepthBins(count=4, min_depth_m=1.0, max_depth_m=3.0)
    torch.testing.assert_close(bins.width_at(torch.tensor([1.0, 2.9])), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(bins.edges(), torch.tensor([1.0, 1.5, 2.0, 2.5, 3.0]))
    torch.testing.assert_close(bins.centres(), torch.tensor([1.25, 1.75, 2.25, 2.75]))
    bins = DepthBins(count=2, min_depth_m=1.0, max_depth_m=100.0, spacing="log")
    torch.testing.assert_close(bins.edges(), torch.tensor([1.0, 10.0, 100.0]))
    torch.testing.assert_close(bins.centres(), torch.tensor([5.5, 55.0]))
    torch.testing.assert_close(bins.width_at(bins.centres()), torch.tensor([9.0, 90.0]))
    with pytest.raises(InvalidSettingError, match=r"greater than min_depth_m \(5 m\), got 5 m"):
        DepthBins(min_depth_m=5.0, max_depth_m=5.0)


@pytest.mark.parametrize("spacing", ["uniform", "log"])
def test_a_position_on_the_axis_counts_bins(spacing):
    bins = DepthBins(count=100, min_depth_m=0.2, max_depth_m=20.0, spacing=spacing)
    torch.testing.assert_close(bins.position(bins.edges()), torch.arange(101.0), atol=1e-3, rtol=0)
    depths = torch.tensor([0.2, 0.21, 1.0, 7.7, 20.0])
    torch.testing.assert_close(bins.depth_at(bins.position(depths)), depths)


def test_the_map_has_a_quarter_of_the_input_size():
    network = FastStudent(BINS).eval()
    for height, width in ((64, 64), (64, 96), (96, 160)):
        with torch.inference_mode():
            logits = network(torch.zeros(2, 3, height, width))
            moments = network.moments(logits)
        assert logits.shape == (2, BINS.count, height // 4, width // 4)
        assert moments.mean.shape == moments.std.shape == (2, 1, height // 4, width // 4)


def with_frozen_norms(architecture: str) -> nn.Module:
    """Return a network whose norms do something, with frozen statistics, in training mode."""
    torch.manual_seed(0)
    made = build_network(architecture, DepthBins(count=17))
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)
    made.train()
    freeze_batch_norms(made)
    return made


def gradients_of(made: nn.Module) -> dict[str, torch.Tensor]:
    """Return the gradients by name, without what takes no part in the answer."""
    return {name: p.grad for name, p in made.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("architecture", ["mobilenetv2-fast", "mobilenetv2"])
def test_folded_frozen_norms_give_the_answer_and_gradients_of_convolution_and_norm(architecture):
    folded = with_frozen_norms(architecture)
    apart = copy.deepcopy(folded)
    for module in apart.modules():
        if isinstance(module, ConvNormAct):
            module.eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    answers = [made(images) for made in (folded, apart)]
    torch.testing.assert_close(answers[0], answers[1], rtol=FOLDED, atol=1e-5)
    for answer in answers:
        answer.square().mean().backward()
    found, wanted = gradients_of(folded), gradients_of(apart)
    assert found.keys() == wanted.keys()
    assert any("bn.weight" in name for name in found)
    for name, gradient in found.items():
        difference = float((gradient - wanted[name]).abs().max())
        assert difference <= FOLDED * float(wanted[name].abs().max()) + 1e-9, name


def test_a_norm_that_measures_its_batch_is_not_folded():
    made = FastStudent(BINS).train()
    before = made.backbone.conv1.bn.running_mean.clone()
    made(torch.randn(2, 3, 64, 64))
    assert not torch.equal(made.backbone.conv1.bn.running_mean, before)


def test_moments_are_those_of_the_softmax():
    torch.manual_seed(0)
    bins = DepthBins()
    network = FastStudent(bins)
    for scale in (0.1, 3.0, 30.0):
        logits = scale * torch.randn(2, bins.count, 6, 8)
        weights = logits.double().softmax(dim=1)
        centres = bins.centres().double().view(1, -1, 1, 1)
        mean = (weights * centres).sum(1, keepdim=True)
        std = (weights * (centres - mean) ** 2).sum(1, keepdim=True).sqrt()
        moments = network.moments(logits)
        torch.testing.assert_close(moments.mean.double(), mean, rtol=1e-5, atol=1e-5)
        # E[x^2] - E[x]^2 in float32: a spread of less than a bin is not resolved exactly.
        torch.testing.assert_close(moments.std.double(), std, rtol=2e-2, atol=0.01)
    large = torch.zeros(1, bins.count, 1, 1)
    large[:, 7] = 1e4
    mean, std, _ = network.moments(large)
    assert mean.item() == pytest.approx(bins.centres()[7].item(), abs=1e-4)
    assert std.item() == pytest.approx(0.0, abs=5e-3)


def test_an_input_size_that_is_no_multiple_of_32_is_refused():
    for height, width in ((100, 96), (64, 97)):
        with pytest.raises(InvalidSettingError, match="96 would"):
            InputSize(height, width)


def test_an_input_size_near_a_number_of_pixels_keeps_the_aspect():
    for shape in ((480, 640), (1080, 1920), (640, 480), (72, 96), (376, 1241)):
        for pixels in (4096, 71680, 500_000):
            size = InputSize.near(*shape, pixels)
            aspect = shape[1] / shape[0]
            assert size.height % 32 == size.width % 32 == 0
            # Half a step of 32 px either way, in each direction.
            assert abs(size.width - size.height * aspect) <= 16 or size.width == 64
            assert abs(size.height - (pixels / aspect) ** 0.5) <= 16 or size.height == 64
    assert InputSize.near(480, 640, 71680) == InputSize(224, 288)  # the default's


def test_every_architecture_is_what_a_round_and_the_runtimes_count_on():
    for name, spec in ARCHITECTURES.items():
        network = build_network(name, BINS).eval()
        with torch.inference_mode():
            images = torch.zeros(1, 3, 64, 96)
            output, moments = network.output(network(images)), network.moments(network(images))
        height, width = 64 // network.output_scale, 96 // network.output_scale
        assert output.depth.shape == (1, 1, height, width)
        if network.has_dpm:
            assert output.logits.shape == (1, BINS.count, height, width)
        assert moments.mean.shape == moments.std.shape
        assert moments.mean.shape in ((1, 1, height, width), (1, 1, 64, 96))
        assert network.has_dpm == spec.has_dpm
        assert list(network.get_submodule("backbone").parameters())
        network.start_from_histogram(torch.ones(BINS.count))
        modules = fuse_batch_norms(network).modules()
        assert not any(isinstance(module, nn.BatchNorm2d) for module in modules)
