"""The published losses: against numbers of the published code, and as they were described."""

import math

import numpy as np
import pytest
import torch

from helpers.official import REFERENCE, needs_reference
from tiekd_ros.core.errors import BadDepthError, InvalidSettingError
from tiekd_ros.method.paper.losses import (
    CROP_TOP,
    RESPONSE_LOSSES,
    PublishedDivergence,
    PublishedDpmLoss,
    PublishedLoss,
    crop_upper_rows,
    gaussian_window,
    mse_loss,
    published_ssim,
    si_loss,
    ssim_loss,
    without_tf32,
)
from tiekd_ros.method.paper.target import PublishedTarget
from tiekd_ros.student.bins import DepthBins

KITTI = DepthBins(257, 1e-3, 80.0)
NYU = DepthBins(49, 1e-3, 10.0)
FEW = DepthBins(5, 1e-3, 80.0)


def expectation(bins: DepthBins, depth: float, sigma_m: float = 0.5) -> float:
    target = PublishedTarget(bins, sigma_m).probabilities(torch.full((1, 1, 1, 1), float(depth)))
    return float((target * bins.centres().view(1, -1, 1, 1)).sum())


def test_the_published_target_misses_the_depth_near_the_ends_of_the_range_only():
    for depth, bias in (
        (0, 1.94), (1, 1.32), (2, 0.91), (3, 0.49), (4, 0.17), (76, -0.17), (78, -0.91), (80, -1.94)
    ):  # fmt: skip
        assert expectation(KITTI, depth) - depth == pytest.approx(bias, abs=0.02)
    for depth in np.linspace(5, 75, 141):
        assert abs(expectation(KITTI, float(depth)) - depth) < 0.07
    for depth, bias in ((0.5, 1.50), (2, 0.96), (3, 0.57), (5, 0.0), (8, -0.96)):
        assert expectation(NYU, depth) - depth == pytest.approx(bias, abs=0.02)
    assert expectation(NYU, 0.5, sigma_m=0.15) - 0.5 == pytest.approx(0.15, abs=0.02)


def test_the_target_is_a_plateau_with_sharp_ends():
    target = PublishedTarget(KITTI)
    depth = KITTI.centres()[128]
    q = target.probabilities(depth.view(1, 1, 1, 1)).flatten()
    inside = q > 0
    assert inside.sum() in (27, 28)
    assert float(q.max() / q[inside].min()) == pytest.approx(2.22, abs=0.005)
    distance = (KITTI.centres() - depth).abs()
    assert target.window_m == pytest.approx(4.28, abs=0.005)
    assert torch.equal(inside, distance < target.window_m)
    assert PublishedTarget(KITTI, 0.8).window_m == pytest.approx(6.80, abs=0.005)
    assert PublishedTarget(KITTI, 0.15).window_m == pytest.approx(1.305, abs=0.005)
    uniform = target.probabilities(torch.tensor([[[[85.0]]]]))  # far outside the range
    assert torch.allclose(uniform, torch.full_like(uniform, 1 / 257))


DIVERGENCE = PublishedDivergence(PublishedTarget(KITTI))


def test_a_perfect_student_has_a_divergence_of_about_zero_and_a_uniform_one_does_not():
    depth = torch.full((1, 1, 2, 3), 40.1, dtype=torch.float64)
    q = PublishedTarget(KITTI).probabilities(depth)
    loss = PublishedDpmLoss(KITTI)
    assert torch.allclose(
        loss.compare(q.log().clamp_min(-1e4), depth).divergence, 0 * depth, atol=4e-6
    )
    uniform = loss.compare(torch.zeros_like(q), depth).divergence
    assert 2.25 < float(uniform.min()) <= float(uniform.max()) < 2.29


def test_a_student_that_is_exactly_zero_is_forgiven_and_learns_nothing():
    teacher = torch.tensor([[0.5, 0.5]])
    student = torch.tensor([[1.0, 0.0]]).log()
    assert DIVERGENCE.terms(teacher, student).sum() == pytest.approx(0.5 * math.log(0.5), rel=1e-5)
    assert DIVERGENCE.slopes(teacher, student)[0, 1] == 0
    nearly = torch.tensor([[1.0, 1e-30]]).log()
    assert DIVERGENCE.terms(teacher, nearly).sum() > 7


def test_the_gradient_of_the_divergence_is_the_one_worked_out_by_hand():
    rng = torch.Generator().manual_seed(0)
    p, q = (torch.rand(12, 5, generator=rng, dtype=torch.float64).softmax(1) for _ in range(2))
    eps = 1e-7
    by_hand = -q * (q / (p + eps) ** 2) / (q / (p + eps) + eps)
    assert torch.allclose(DIVERGENCE.slopes(q, p.log()) / p, by_hand, rtol=1e-9)


def test_gradients_of_the_loss_are_those_of_finite_differences():
    rng = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 5, 6, 7, generator=rng, dtype=torch.float64, requires_grad=True)
    depth = 20 + 40 * torch.rand(1, 1, 6, 7, generator=rng, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda z: PublishedLoss(DepthBins(5, 1e-3, 80.0), sigma_m=8.0)(z, depth).total, logits
    )


def test_the_total_is_the_weighted_sum_and_an_unknown_teacher_pixel_is_a_zero():
    logits, depth = torch.randn(2, 257, 8, 9), 1 + 70 * torch.rand(2, 1, 8, 9)
    unknown = depth.clone()
    unknown[..., 1:3], depth[..., 1:3] = torch.nan, 0.0
    total, l_dpm, l_depth = PublishedLoss(KITTI, loss_weight=0.1)(logits, depth)
    assert total.item() == pytest.approx(10 * (0.1 * l_dpm.item() + 0.9 * l_depth.item()))
    p = logits.softmax(1)
    expected = (p * KITTI.centres().view(1, -1, 1, 1)).sum(1, keepdim=True)
    assert PublishedDpmLoss(KITTI)(logits, depth).item() == pytest.approx(l_dpm.item())
    assert 1 - published_ssim(expected, depth).item() == pytest.approx(l_depth.item())
    assert PublishedLoss(KITTI)(logits, unknown).total.item() == total.item() > 0


def wide(height: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and depth as wide as KITTI's training crop."""
    rng = torch.Generator().manual_seed(2)
    logits = torch.randn(1, 5, height, 704, generator=rng)
    return logits, 80 * torch.rand(1, 1, height, 704, generator=rng)


def test_the_upper_rows_of_maps_704_wide_do_not_count():
    shapes = {
        (width, crop): crop_upper_rows(torch.ones(1, 1, 352, width), crop).shape
        for width, crop in ((704, "slice"), (703, "slice"), (704, "none"))
    }
    assert [shape[2] for shape in shapes.values()] == [242, 352, 352]
    padded = crop_upper_rows(torch.ones(1, 1, 352, 704), "pad")
    assert padded.sum(dim=3).flatten().tolist() == [704.0] * 242 + [0.0] * 110
    logits, depth = wide(height=352)
    sliced, padded = (PublishedLoss(FEW, crop=c)(logits, depth) for c in ("slice", "pad"))
    assert (padded.l_dpm / sliced.l_dpm).item() == pytest.approx(242 / 352, rel=1e-5)
    assert (padded.l_depth / sliced.l_depth).item() == pytest.approx(242 / 352, rel=0.05)
    for crop in ("slice", "pad"):
        logits, depth = wide(height=126)
        PublishedLoss(FEW, crop=crop)(logits.requires_grad_(), depth).total.backward()
        per_row = logits.grad.abs().sum(dim=(0, 1, 3))
        assert torch.all(per_row[:CROP_TOP] == 0)
        assert torch.all(per_row[CROP_TOP:] > 0)


def test_ssim_takes_reversed_structure_for_likeness_on_maps_of_any_size():
    rng = torch.Generator().manual_seed(3)
    a = 30 + torch.randn(1, 1, 40, 50, generator=rng, dtype=torch.float64)
    assert published_ssim(a, 60 - a).item() > 0.9
    for same in (a, torch.zeros_like(a), torch.rand(1, 1, 3, 4)):
        assert published_ssim(same, same).item() == pytest.approx(1.0)
    assert gaussian_window().sum().item() == pytest.approx(1.0, abs=1e-5)


def test_on_a_gpu_tf32_is_off_meanwhile_and_nothing_else_changes(monkeypatch):
    cudnn = torch.backends.cudnn
    names = ("enabled", "benchmark", "deterministic", "allow_tf32")
    for name, value in zip(names, (True, True, True, True), strict=True):
        monkeypatch.setattr(cudnn, name, value)
    with without_tf32(torch.device("cuda")):
        assert [getattr(cudnn, name) for name in names] == [True, True, True, False]
    assert [getattr(cudnn, name) for name in names] == [True, True, True, True]
    with without_tf32(torch.device("cpu")):
        assert cudnn.allow_tf32


def test_what_does_not_fit_is_refused():
    loss = PublishedLoss(KITTI)
    with pytest.raises(BadDepthError, match=r"257.*one channel per bin.*\(1, 49, 4, 5\)"):
        loss(torch.zeros(1, 49, 4, 5), torch.zeros(1, 1, 4, 5))
    with pytest.raises(BadDepthError, match=r"\(1, 1, 4, 5\).*got \(1, 1, 8, 10\)"):
        loss(torch.zeros(1, 257, 4, 5), torch.zeros(1, 1, 8, 10))
    with pytest.raises(BadDepthError, match="has only 110"):
        crop_upper_rows(torch.zeros(1, 1, 110, 704))
    with pytest.raises(BadDepthError, match=r"one shape \(B, 1, h, w\)"):
        published_ssim(torch.zeros(1, 1, 4, 5), torch.zeros(1, 1, 4, 6))
    with pytest.raises(InvalidSettingError, match="'slice', 'pad', 'none', got 'middle'"):
        PublishedLoss(KITTI, crop="middle")
    with pytest.raises(BadDepthError, match=r"must be floating-point metres, got torch\.int64"):
        loss(torch.zeros(1, 257, 4, 5), torch.ones(1, 1, 4, 5, dtype=torch.int64))
    for sigma in (0.0, -1.0, math.nan):
        with pytest.raises(InvalidSettingError, match="sigma_m must be a positive"):
            PublishedLoss(KITTI, sigma_m=sigma)


@needs_reference
@pytest.mark.parametrize("name", ["kitti_odd_7x13", "kitti_zero_prob", "nyu_49bins_17x15"])
def test_losses_and_gradients_are_the_published_ones(name):
    f = np.load(REFERENCE / f"tiekd_{name}.npz")
    bins = DepthBins(int(f["n_bins"]), 1e-3, float(f["max_depth"]))
    logits = torch.tensor(f["logits"], requires_grad=True)
    parts = PublishedLoss(bins)(logits, torch.tensor(f["kd_gt"]))
    for value, key in zip(parts, ("total", "l_dpm_mean", "l_depth"), strict=True):
        assert value.item() == pytest.approx(float(f[key]), rel=1e-5)
    parts.total.backward()
    largest = np.abs(f["grad_logits_total"]).max()
    assert np.abs(logits.grad.numpy() - f["grad_logits_total"]).max() < 1e-4 * largest


def depth_maps() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    student, teacher = (1 + 9 * torch.rand(2, 1, 9, 8, generator=rng) for _ in range(2))
    return student, teacher


@needs_reference
@pytest.mark.parametrize("file", ["24x40_kitti", "13x19_nyu", "5x7_small"])
@pytest.mark.parametrize("name", RESPONSE_LOSSES)
def test_response_losses_and_gradients_are_the_published_ones(file, name):
    f = np.load(REFERENCE / f"reskd_{file}.npz")
    student = torch.tensor(f["pred"], requires_grad=True)
    loss = RESPONSE_LOSSES[name](student, torch.tensor(f["kd_gt"]))
    loss.backward()
    key = name.replace("+", "_")
    assert loss.item() == pytest.approx(float(f[f"loss_{key}"]), rel=1e-5)
    wanted = f[f"grad_pred_{key}"]
    assert np.abs(student.grad.numpy() - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_response_losses_are_those_of_the_formulas():
    student, teacher = depth_maps()
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
    student, teacher = depth_maps()
    wanted = si_loss(student[1:], teacher[1:]).item()
    for unknown in (0.0, torch.nan):
        teacher[0] = unknown
        assert si_loss(student, teacher).item() == pytest.approx(wanted)


@pytest.mark.parametrize("name", RESPONSE_LOSSES)
def test_no_map_makes_a_loss_or_its_gradient_nan_and_shapes_must_agree(name):
    student, teacher = depth_maps()
    for depth in (torch.full_like(teacher, torch.nan), torch.zeros_like(teacher), student):
        z = student.clone().requires_grad_()
        loss = RESPONSE_LOSSES[name](z, depth)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(z.grad).all()
    with pytest.raises(BadDepthError, match=r"\(1, 1, 4, 5\).*\(1, 1, 8, 10\).*output size"):
        RESPONSE_LOSSES[name](torch.ones(1, 1, 4, 5), torch.ones(1, 1, 8, 10))
