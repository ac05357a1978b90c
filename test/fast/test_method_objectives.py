"""Objectives: every name gives its loss, its parts and a gradient; impossible pairs are refused."""

import math

import numpy as np
import pytest
import torch

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.method.losses import (
    DPM_OBJECTIVES,
    MASKED_OBJECTIVES,
    OBJECTIVES,
    LossSettings,
    describe_unknown,
    make_objective,
)
from tiekd_ros.method.paper.losses import PublishedLoss, mse_loss, si_loss, ssim_loss
from tiekd_ros.student.architecture import StudentOutput
from tiekd_ros.student.bins import DepthBins

BINS = DepthBins(count=33)


def pair(unknown: bool = False) -> tuple[StudentOutput, torch.Tensor]:
    """Return a student's output with gradients, and a teacher's depth, metres."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, BINS.count, 12, 16, generator=generator).requires_grad_()
    expectation = (logits.softmax(1) * BINS.centres().view(1, -1, 1, 1)).sum(1, keepdim=True)
    depth = 1 + 8 * torch.rand(2, 1, 12, 16, generator=generator)
    if unknown:
        depth[:, :, :, :5] = math.nan
    return StudentOutput(logits, lambda: expectation), depth


def parts_of(name: str, output: StudentOutput, depth: torch.Tensor, **settings: float):
    return make_objective(BINS, LossSettings(objective=name, **settings))(output, depth)


@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_finite_and_moves_the_student(name, unknown):
    output, depth = pair(unknown)
    parts = parts_of(name, output, depth)
    parts.total.backward()
    assert all(torch.isfinite(part) and part.ndim == 0 for part in parts)
    assert torch.isfinite(output.logits.grad).all()
    assert output.logits.grad.abs().max() > 0


def test_the_terms_of_tiekd_add_up_with_their_weights():
    output, depth = pair()
    weights = {"kl_weight": 2.0, "ssim_weight": 3.0}
    whole = parts_of("tiekd", output, depth, **weights)
    assert whole.total.item() == pytest.approx(2 * whole.kl.item() + 3 * (1 - whole.ssim.item()))
    alone = parts_of("tiekd-dpm", output, depth, **weights)
    assert alone.total.item() == pytest.approx(2 * whole.kl.item())
    alone = parts_of("tiekd-depth", output, depth, **weights)
    assert alone.total.item() == pytest.approx(3 * (1 - whole.ssim.item()))


def test_the_published_ones_are_those_of_the_paper_mode():
    output, depth = pair()
    total, l_dpm, l_depth = PublishedLoss(BINS, 0.3, 0.8)(output.logits, depth)
    settings = {"paper_weight": 0.3, "paper_sigma_m": 0.8}
    parts = parts_of("paper", output, depth, **settings)
    assert parts.total.item() == total.item()
    assert (parts.kl.item(), parts.ssim.item()) == (l_dpm.item(), 1 - l_depth.item())
    assert parts_of("paper-dpm", output, depth, **settings).total.item() == l_dpm.item()
    assert parts_of("paper-depth", output, depth, **settings).total.item() == l_depth.item()


def test_the_response_based_ones_compare_depth_and_si_has_its_weight_where_it_is_alone():
    output, depth = pair()
    student = output.depth
    assert parts_of("mse", output, depth).total.item() == mse_loss(student, depth).item()
    both = ssim_loss(student, depth) + si_loss(student, depth)
    assert parts_of("ssim+si", output, depth, si_weight=1.5).total.item() == both.item()
    plain = si_loss(student, depth).item()
    assert parts_of("si", output, depth).total.item() == pytest.approx(plain)
    assert parts_of("si", output, depth, si_weight=1.5).total.item() == pytest.approx(1.5 * plain)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_takes_unknown_depth_for_zero_is_said_of_those_that_do(name):
    output, depth = pair(unknown=True)
    zero = depth.nan_to_num(0.0)
    takes = parts_of(name, output, depth).total == parts_of(name, output, zero).total
    maps = [np.ones((4, 4), np.float32), np.full((4, 4), np.nan, np.float32)]
    said = describe_unknown(name, maps)
    if name in MASKED_OBJECTIVES:
        assert said == ""
    else:
        assert takes
        assert f"'{name}' takes unknown depth for 0 m, and 1 of 2 depth maps" in said
        assert "(100.0% of theirs)" in said
    assert describe_unknown(name, maps[:1]) == ""


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_student_without_a_dpm_learns_from_depth_only(name):
    settings = LossSettings(objective=name)
    if name in DPM_OBJECTIVES:
        with pytest.raises(InvalidSettingError, match=f"'{name}' teaches a depth probability map"):
            make_objective(BINS, settings, has_dpm=False)
        return
    output, depth = pair()
    regressed = StudentOutput(None, lambda: output.depth)
    parts = make_objective(BINS, settings, has_dpm=False)(regressed, depth)
    wanted = parts_of(name, output, depth).total.item()
    assert parts.total.item() == pytest.approx(wanted, rel=1e-5)
    assert parts.kl.item() == 0
