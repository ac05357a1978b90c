"""The target distribution: its expectation is the teacher's depth, its width what was asked."""

import math

import pytest
import torch

from tiekd_ros.method.target import DepthTarget
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import TargetWidth

INDOORS, OUTDOORS = DepthBins(max_depth_m=10.0), DepthBins(max_depth_m=80.0)
BY_LOG = DepthBins(max_depth_m=80.0, spacing="log")
RANGES = pytest.mark.parametrize("bins", [INDOORS, OUTDOORS, BY_LOG], ids=["10m", "80m", "log80m"])


def moments(bins: DepthBins, depths: torch.Tensor, width: TargetWidth | None = None):
    """Return probabilities (N, C), and mean and spread (N) in float64."""
    target = DepthTarget(bins, width or TargetWidth())
    p = target.probabilities(depths.view(-1, 1, 1, 1))[:, :, 0, 0].double()
    centres = bins.centres().double()
    mean = (p * centres).sum(1)
    std = (p * (centres - mean[:, None]) ** 2).sum(1).sqrt()
    return p, mean, std


def grid(low: float, high: float, count: int = 2000) -> torch.Tensor:
    return torch.linspace(low, high, count)


@RANGES
def test_probabilities_are_a_distribution_at_every_depth(bins):
    p, _, _ = moments(bins, grid(bins.min_depth_m, bins.max_depth_m))
    assert p.min() >= 0
    torch.testing.assert_close(p.sum(1), torch.ones(len(p), dtype=torch.float64), atol=1e-5, rtol=0)


@RANGES
def test_the_expectation_is_the_depth_to_a_thousandth(bins):
    # All but the first two bins and the last 3 % of the range.
    depths = grid(float(bins.edges()[2]), 0.97 * bins.max_depth_m)
    _, mean, _ = moments(bins, depths)
    torch.testing.assert_close(mean, depths.double(), rtol=1e-3, atol=0)


@RANGES
def test_the_near_field_is_met_to_two_percent_from_the_first_bins_end_on(bins):
    # DESIGN.md asks for 5 % below 3 m. Nothing can be nearer than the first bin's centre.
    depths = grid(float(bins.edges()[1]), 3.0)
    _, mean, _ = moments(bins, depths)
    torch.testing.assert_close(mean, depths.double(), rtol=2.5e-2, atol=0)


@RANGES
def test_the_near_end_is_off_by_half_a_bin_or_five_percent(bins):
    depths = grid(bins.min_depth_m, float(bins.edges()[1]), 20)
    _, mean, _ = moments(bins, depths)
    half = 0.5 * float(bins.edges()[1] - bins.edges()[0])
    assert (mean - depths).abs().max() < max(1.01 * half, 0.05 * bins.min_depth_m)


@RANGES
def test_the_far_end_is_off_by_less_than_two_percent(bins):
    # The Gaussian is moved by at most 4 sigma, beyond which float32 has no digits left.
    depths = grid(0.97 * bins.max_depth_m, bins.max_depth_m, 50)
    _, mean, _ = moments(bins, depths)
    torch.testing.assert_close(mean, depths.double(), rtol=1.6e-2, atol=0)


@RANGES
def test_the_expectation_grows_with_the_depth(bins):
    _, mean, _ = moments(bins, grid(bins.min_depth_m, bins.max_depth_m, 500))
    assert (mean.diff() > -1e-4 * bins.width_at(mean[:-1])).all()


@RANGES
@pytest.mark.parametrize("width", [TargetWidth(), TargetWidth(0.2, 0.0), TargetWidth(0.5, 0.1)])
def test_the_spread_is_the_sigma_that_was_asked_for(bins, width):
    depths = grid(0.3 * bins.max_depth_m, 0.6 * bins.max_depth_m, 200)
    bin_width = bins.width_at(depths.double())
    sigma = (depths.double() * width.relative).clamp_min(width.floor_m).maximum(0.5 * bin_width)
    _, _, std = moments(bins, depths, width)
    # Putting a Gaussian into bins widens it: variance + width^2 / 12 (Sheppard).
    wanted = (sigma**2 + bin_width**2 / 12).sqrt()
    torch.testing.assert_close(std, wanted, rtol=0.02, atol=0.0)


def test_sigma_grows_with_depth_above_its_floor():
    target = DepthTarget(INDOORS, TargetWidth(0.04, 0.05))
    sigma = target.sigma(torch.tensor([0.1, 0.8, 1.0, 4.0]))
    torch.testing.assert_close(sigma, torch.tensor([0.04, 0.04, 0.05, 0.2]))


def test_a_gaussian_never_becomes_narrower_than_half_a_bin():
    target = DepthTarget(OUTDOORS, TargetWidth(0.001, 0.0))
    assert target.sigma(torch.tensor(1.0)) == pytest.approx(0.5 * 79.9 / 257, rel=1e-3)


def test_what_is_unknown_or_out_of_range_is_not_valid():
    target = DepthTarget(INDOORS, TargetWidth())
    depth = torch.tensor([math.nan, 0.0, -1.0, 0.09, 0.1, 5.0, 10.0, 10.01, math.inf, -math.inf])
    valid = target.valid(depth)
    assert valid.tolist() == [False] * 4 + [True] * 3 + [False] * 3


def test_what_is_not_valid_still_gets_some_finite_distribution():
    depths = torch.tensor([math.nan, -1.0, 0.0, 1e9, math.inf, -math.inf])
    p, _, _ = moments(INDOORS, depths)
    assert torch.isfinite(p).all()
    torch.testing.assert_close(p.sum(1), torch.ones(6, dtype=torch.float64), atol=1e-5, rtol=0)


def test_the_target_is_not_the_flat_one_of_the_published_code():
    # There the expectation at 0.5 / 1 / 2 / 3 m came out as about 2.0 / 2.3 / 2.9 / 3.5 m.
    _, mean, _ = moments(INDOORS, torch.tensor([0.5, 1.0, 2.0, 3.0]))
    wanted = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(mean, wanted, rtol=1e-3, atol=0)
