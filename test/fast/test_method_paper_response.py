"""The published response-based losses."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tiekd_ros.core.errors import BadDepthError
from tiekd_ros.method.paper import RESPONSE_LOSSES, mse_loss, published_ssim, si_loss, ssim_loss

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference"


def maps(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    student, teacher = (1 + 9 * torch.rand(2, 1, 9, 8, generator=rng) for _ in range(2))
    return student, teacher


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="needs ../shared/reference")
@pytest.mark.parametrize("file", ["24x40_kitti", "13x19_nyu", "5x7_small"])
@pytest.mark.parametrize("name", RESPONSE_LOSSES)
def test_losses_and_gradients_are_the_published_ones(file, name):
    f = np.load(REFERENCE / f"reskd_{file}.npz")
    student = torch.tensor(f["pred"], requires_grad=True)
    loss = RESPONSE_LOSSES[name](student, torch.tensor(f["kd_gt"]))
    loss.backward()
    key = name.replace("+", "_")
    assert loss.item() == pytest.approx(float(f[f"loss_{key}"]), rel=1e-5)
    wanted = f[f"grad_pred_{key}"]
    assert np.abs(student.grad.numpy() - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_values_are_those_of_the_formulas():
    student, teacher = maps()
    assert mse_loss(student, teacher).item() == pytest.approx(
        np.mean((student.numpy() - teacher.numpy()) ** 2), rel=1e-5
    )
    ssim = published_ssim(student, teacher).item()
    assert ssim_loss(student, teacher).item() == pytest.approx(1.5 * (1 - ssim))
    g = np.log(student.double().numpy() + 1e-3) - np.log(teacher.double().numpy() + 1e-3)
    si = math.sqrt(g.var(ddof=1) + 0.15 * g.mean() ** 2)
    assert si_loss(student, teacher).item() == pytest.approx(si, rel=1e-5)
    losses = {name: loss(student, teacher).item() for name, loss in RESPONSE_LOSSES.items()}
    assert losses["ssim+si"] == pytest.approx(losses["ssim"] + losses["si"])
    assert losses["ssim+mse"] == pytest.approx(losses["ssim"] + losses["mse"])


def test_si_leaves_out_teacher_pixels_without_depth():
    student, teacher = maps()
    holes = teacher.clone()
    holes[0] = 0.0
    assert si_loss(student, holes).item() == pytest.approx(si_loss(student[1:], teacher[1:]).item())
    holes[0] = torch.nan
    assert si_loss(student, holes).item() == pytest.approx(si_loss(student[1:], teacher[1:]).item())


@pytest.mark.parametrize("name", RESPONSE_LOSSES)
def test_no_map_makes_a_loss_or_its_gradient_nan(name):
    student, teacher = maps()
    for depth in (torch.full_like(teacher, torch.nan), torch.zeros_like(teacher), student):
        z = student.clone().requires_grad_()
        loss = RESPONSE_LOSSES[name](z, depth)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("name", RESPONSE_LOSSES)
def test_maps_of_different_shape_are_refused(name):
    with pytest.raises(BadDepthError, match=r"\(1, 1, 4, 5\).*\(1, 1, 8, 10\).*output size"):
        RESPONSE_LOSSES[name](torch.ones(1, 1, 4, 5), torch.ones(1, 1, 8, 10))
