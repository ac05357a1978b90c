"""The base student's head on other cameras and other bins: depth scales, nothing else moves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tiekd_ros.student.base_student import remap_head
from tiekd_ros.student.bins import DepthBins

OLD = DepthBins(count=257, min_depth_m=0.1, max_depth_m=12.0)
WIDTH_M = 0.15  # standard deviation of the depth probability maps below


def gaussian_head(bins: DepthBins) -> tuple[Tensor, Tensor]:
    """Return a head on one feature, depth in metres, that answers with a Gaussian around it."""
    centres = bins.centres()
    bias = -(centres**2) / (2 * WIDTH_M**2) + bins.edges().diff().log()
    return (centres / WIDTH_M**2)[:, None], bias


def expectation(head: tuple[Tensor, Tensor], bins: DepthBins, feature: Tensor) -> Tensor:
    weight, bias = head
    logits = feature[:, None] @ weight.T + bias
    return logits.softmax(dim=1) @ bins.centres()


@pytest.mark.parametrize(
    "new",
    [
        DepthBins(count=257, min_depth_m=0.1, max_depth_m=10.0),
        DepthBins(count=64, min_depth_m=0.1, max_depth_m=10.0),
        DepthBins(count=400, min_depth_m=0.3, max_depth_m=20.0),
        DepthBins(count=257, min_depth_m=0.1, max_depth_m=80.0),
        DepthBins(count=129, min_depth_m=0.1, max_depth_m=20.0, spacing="log"),
    ],
    ids=str,
)
def test_depth_is_scaled_by_the_focal_length_whatever_the_bins(new: DepthBins):
    for scale in (0.5, 1.0, 1.37, 2.2):
        head = remap_head(*gaussian_head(OLD), OLD, new, scale)
        low = max(OLD.min_depth_m * scale, new.min_depth_m) + 4 * WIDTH_M * scale
        high = min(OLD.max_depth_m * scale, new.max_depth_m) - 4 * WIDTH_M * scale
        wanted = torch.linspace(low, high, 300)
        found = expectation(head, new, wanted / scale)
        tolerance = 0.35 * new.width_at(wanted) + 0.01 * scale
        assert ((found - wanted).abs() <= tolerance).all()


def test_the_same_bins_and_camera_give_the_same_head():
    weight, bias = gaussian_head(OLD)
    new_weight, new_bias = remap_head(weight, bias, OLD, OLD, 1.0)
    assert torch.allclose(new_weight, weight)
    shift = new_bias - bias  # one constant for all bins changes no probability
    assert float(shift.std()) < 1e-4


def test_probability_of_a_range_is_kept_when_bins_are_finer_there():
    new = DepthBins(count=300, min_depth_m=0.1, max_depth_m=12.0, spacing="log")
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(OLD.count, generator=generator) * 0.1
    old_logits = OLD.edges().diff().log() + steps.cumsum(0)
    _, new_logits = remap_head(torch.zeros(OLD.count, 1), old_logits, OLD, new, 1.0)
    for limit in (0.5, 1.0, 3.0, 6.0):
        shares = [
            float(logits.softmax(0)[bins.centres() < limit].sum())
            for bins, logits in ((OLD, old_logits), (new, new_logits))
        ]
        assert shares[0] == pytest.approx(shares[1], abs=0.02)


def test_what_lies_beyond_the_old_range_gets_less_and_less_probability():
    new = DepthBins(count=200, min_depth_m=0.05, max_depth_m=80.0)
    weight, bias = torch.zeros(OLD.count, 3), torch.zeros(OLD.count)
    new_weight, new_bias = remap_head(weight, bias, OLD, new, 1.0)
    beyond = new.centres() > OLD.max_depth_m
    assert bool((new_bias[beyond].diff() < 0).all())
    share = float(new_bias.softmax(0)[beyond].sum())
    assert share < 0.12
    assert bool(torch.isfinite(new_weight).all())
    assert math.isfinite(float(new_bias.min()))
