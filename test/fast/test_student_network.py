"""The network: its bins, its shapes, and moments that are those of the softmax."""

import pytest
import torch

from helpers.students import BINS
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.networks import build_network
from tiekd_ros.student.networks.mobilenetv2 import FastStudent


def test_bins_divide_the_range_evenly():
    bins = DepthBins(count=4, min_depth_m=1.0, max_depth_m=3.0)
    torch.testing.assert_close(bins.width_at(torch.tensor([1.0, 2.9])), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(bins.edges(), torch.tensor([1.0, 1.5, 2.0, 2.5, 3.0]))
    torch.testing.assert_close(bins.centres(), torch.tensor([1.25, 1.75, 2.25, 2.75]))


def test_bins_by_logarithm_have_the_same_relative_width_everywhere():
    bins = DepthBins(count=2, min_depth_m=1.0, max_depth_m=100.0, spacing="log")
    torch.testing.assert_close(bins.edges(), torch.tensor([1.0, 10.0, 100.0]))
    torch.testing.assert_close(bins.centres(), torch.tensor([5.5, 55.0]))
    torch.testing.assert_close(bins.width_at(bins.centres()), torch.tensor([9.0, 90.0]))


@pytest.mark.parametrize("spacing", ["uniform", "log"])
def test_a_position_on_the_axis_counts_bins(spacing):
    bins = DepthBins(count=100, min_depth_m=0.2, max_depth_m=20.0, spacing=spacing)
    torch.testing.assert_close(bins.position(bins.edges()), torch.arange(101.0), atol=1e-3, rtol=0)
    depths = torch.tensor([0.2, 0.21, 1.0, 7.7, 20.0])
    torch.testing.assert_close(bins.depth_at(bins.position(depths)), depths)


def test_another_spacing_is_refused_with_those_there_are():
    with pytest.raises(InvalidSettingError, match="'uniform', 'log', got 'cubic'"):
        DepthBins(spacing="cubic")


def test_an_empty_range_is_refused_with_both_ends():
    with pytest.raises(InvalidSettingError, match=r"greater than min_depth_m \(5 m\), got 5 m"):
        DepthBins(min_depth_m=5.0, max_depth_m=5.0)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 96), (96, 160)])
def test_the_map_has_a_quarter_of_the_input_size(height, width):
    network = FastStudent(BINS).eval()
    with torch.inference_mode():
        logits = network(torch.zeros(2, 3, height, width))
        moments = network.moments(logits)
    assert logits.shape == (2, BINS.count, height // 4, width // 4)
    assert moments.mean.shape == moments.std.shape == (2, 1, height // 4, width // 4)


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_moments_are_those_of_the_softmax(scale):
    torch.manual_seed(0)
    bins = DepthBins()
    network = FastStudent(bins)
    logits = scale * torch.randn(2, bins.count, 6, 8)
    weights = logits.double().softmax(dim=1)
    centres = bins.centres().double().view(1, -1, 1, 1)
    mean = (weights * centres).sum(1, keepdim=True)
    std = (weights * (centres - mean) ** 2).sum(1, keepdim=True).sqrt()
    moments = network.moments(logits)
    torch.testing.assert_close(moments.mean.double(), mean, rtol=1e-5, atol=1e-5)
    # E[x^2] - E[x]^2 in float32: a spread of less than a bin is not resolved exactly.
    torch.testing.assert_close(moments.std.double(), std, rtol=2e-2, atol=0.01)


def test_moments_do_not_overflow_with_large_logits():
    network = FastStudent(BINS)
    logits = torch.zeros(1, BINS.count, 1, 1)
    logits[:, 7] = 1e4
    mean, std = network.moments(logits)
    assert mean.item() == pytest.approx(BINS.centres()[7].item(), abs=1e-4)
    assert std.item() == pytest.approx(0.0, abs=5e-3)


@pytest.mark.parametrize(("height", "width", "near"), [(100, 96, "96 would"), (64, 97, "96 would")])
def test_an_input_size_that_is_no_multiple_of_32_is_refused(height, width, near):
    with pytest.raises(InvalidSettingError, match=near):
        InputSize(height, width)


@pytest.mark.parametrize("shape", [(480, 640), (1080, 1920), (640, 480), (72, 96), (376, 1241)])
@pytest.mark.parametrize("pixels", [4096, 71680, 500_000])
def test_an_input_size_near_a_number_of_pixels_keeps_the_aspect(shape, pixels):
    size = InputSize.near(*shape, pixels)
    image = shape[1] / shape[0]
    assert size.height % 32 == size.width % 32 == 0
    # Half a step of 32 px either way, in each direction.
    assert abs(size.width - size.height * image) <= 16 or size.width == 64
    assert abs(size.height - (pixels / image) ** 0.5) <= 16 or size.height == 64


def test_the_default_input_size_comes_from_a_vga_camera():
    assert InputSize.near(480, 640, 71680) == InputSize(224, 288)


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    with pytest.raises(InvalidSettingError, match=r"'resnet9000': known are mobilenetv2-fast, mob"):
        build_network("resnet9000", BINS)
