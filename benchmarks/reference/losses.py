"""Checks of the losses and of SSIM.

Shapes: B batch, C bins, H and W the map.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from reference.checks import EDGES, EXACT, GRADIENT, LOSS, LOSS_F64, MAP, Fixture, Tolerance
from tiekd_ros.method.paper import (
    PUBLISHED_SIGMA_M,
    Crop,
    PublishedDpmLoss,
    PublishedLoss,
    PublishedLossParts,
    gaussian_window,
    mse_loss,
    published_ssim,
    si_loss,
    ssim_loss,
    ssim_mse_loss,
    ssim_si_loss,
)
from tiekd_ros.student.bins import DepthBins

_PROBABILITY = Tolerance(1e-5)
_NORM_F64 = Tolerance(1e-6)


class _Run(NamedTuple):
    """The published loss of one input in one precision."""

    logits: Tensor  # (B, C, H, W)
    parts: PublishedLossParts
    dpm_map: Tensor  # (B, 1, h, w), h after the crop

    def gradient(self, part: Tensor) -> Tensor:
        """Return the gradient of one of the parts, (B, C, H, W)."""
        return torch.autograd.grad(part, self.logits, retain_graph=True)[0]


class _Setting(NamedTuple):
    bins: DepthBins
    weight: float
    sigma: float
    sigma_config: float

    @classmethod
    def of(cls, fixture: Fixture) -> _Setting:
        bins = DepthBins(
            int(fixture.number("n_bins")), fixture.number("min_depth"), fixture.number("max_depth")
        )
        weight = fixture.number("loss_weight")
        sigma, config = fixture.number("sigma_used"), fixture.number("sigma_config")
        return cls(bins, weight, sigma, config)

    def run(self, logits: np.ndarray, depth: np.ndarray, dtype: torch.dtype, crop: Crop) -> _Run:
        z = torch.tensor(logits, dtype=dtype, requires_grad=True)
        d_T = torch.tensor(depth, dtype=dtype)
        loss = PublishedLoss(self.bins, self.weight, self.sigma, crop)
        with torch.no_grad():
            dpm_map = loss.dpm_loss.map(z, d_T)
        return _Run(z, loss(z, d_T), dpm_map)

    def run_config(
        self, logits: np.ndarray, depth: np.ndarray, dtype: torch.dtype, crop: Crop
    ) -> tuple[Tensor, Tensor]:
        """Return map and gradient of L_DPM alone, with the sigma of the config."""
        z = torch.tensor(logits, dtype=dtype, requires_grad=True)
        loss = PublishedDpmLoss(self.bins, self.sigma_config, crop)
        dpm_map = loss.map(z, torch.tensor(depth, dtype=dtype))
        (gradient,) = torch.autograd.grad(dpm_map.mean(), z)
        return dpm_map.detach(), gradient


def check_tiekd(fixture: Fixture) -> None:
    """Check a file of the TIE-KD losses on maps of any width but 704."""
    logits = _logits(fixture)
    depth = fixture.take("kd_gt")
    setting = _Setting.of(fixture)
    fixture.compare("bin_edges", setting.bins.edges(), EDGES)
    fixture.compare_values("sigma_used", PUBLISHED_SIGMA_M, setting.sigma, EXACT)
    _check_dpms(fixture, setting, logits, depth)
    single = setting.run(logits, depth, torch.float32, "slice")
    fixture.compare("l_dpm_map", single.dpm_map, MAP)
    _check_values(fixture, "", single, LOSS)
    config_map, config_gradient = setting.run_config(logits, depth, torch.float32, "slice")
    fixture.compare("l_dpm_map_sigma_config", config_map, MAP)
    fixture.compare("l_dpm_mean_sigma_config", config_map.mean(), LOSS)
    gradients = {
        "total": single.gradient(single.parts.total),
        "l_dpm_mean": single.gradient(single.parts.l_dpm),
        "l_depth": single.gradient(single.parts.l_depth),
        "l_dpm_mean_sigma_config": config_gradient,
    }
    _check_gradients(fixture, gradients)
    double = setting.run(logits, depth, torch.float64, "slice")
    _check_values(fixture, "", double, LOSS_F64, "_f64")
    norm = double.gradient(double.parts.total).norm()
    fixture.compare("grad_logits_total_norm_f64", norm, _NORM_F64)
    config_map, _ = setting.run_config(logits, depth, torch.float64, "slice")
    fixture.compare("l_dpm_mean_sigma_config_f64", config_map.mean(), LOSS_F64)


def _check_values(
    fixture: Fixture, prefix: str, run: _Run, tolerance: Tolerance, suffix: str = ""
) -> None:
    """Check the loss's two terms and their sum."""
    dpm = f"{prefix}dpm_mean{suffix}"  # so named in the files of the first run
    dpm = dpm if dpm in fixture else f"{prefix}l_dpm_mean{suffix}"
    fixture.compare(dpm, run.parts.l_dpm, tolerance)
    fixture.compare(f"{prefix}l_depth{suffix}", run.parts.l_depth, tolerance)
    fixture.compare(f"{prefix}total{suffix}", run.parts.total, tolerance)


def _logits(fixture: Fixture) -> np.ndarray:
    if "logits_q" in fixture:
        steps = fixture.take("logits_q").astype(np.float32)
        return steps * np.float32(fixture.number("logits_step"))
    return fixture.take("logits")


def _check_dpms(fixture: Fixture, setting: _Setting, logits: np.ndarray, depth: np.ndarray) -> None:
    """Check the student's and the teacher's distributions, and the student's depth."""
    bins, d_T = setting.bins, torch.from_numpy(depth)
    student = torch.from_numpy(logits).softmax(dim=1)
    expected = (student * bins.centres().view(1, -1, 1, 1)).sum(dim=1, keepdim=True)
    fixture.compare("depth_pred", expected, Tolerance(2e-6 * bins.max_depth_m, "m"))
    fixture.compare_if_there("student_dpm", student, _PROBABILITY)
    for key, sigma in (
        ("teacher_dpm", setting.sigma),
        ("teacher_dpm_sigma_config", setting.sigma_config),
    ):
        teacher = PublishedDpmLoss(bins, sigma).target.probabilities(d_T)
        fixture.compare_if_there(key, teacher, _PROBABILITY)


def _check_gradients(fixture: Fixture, gradients: dict[str, Tensor]) -> None:
    """Check the full gradients or, where they were too large for the file, samples of them."""
    sampled = "sample_byx" in fixture
    required = ("total", "l_dpm_mean_sigma_config") if sampled else tuple(gradients)
    for name, gradient in gradients.items():
        key = f"grad_logits_{name}"
        if f"{key}_samples" in fixture or (sampled and name in required):
            b, y, x = fixture.take("sample_byx")  # (3, n)
            fixture.compare(f"{key}_samples", gradient.numpy()[b, :, y, x], GRADIENT)  # (n, C)
        if key in fixture or (not sampled and name in required):
            fixture.compare(key, gradient, GRADIENT)
        per_pixel = gradient.abs().sum(dim=1)  # (B, H, W)
        fixture.compare_if_there(f"{key}_abs_sum_per_pixel", per_pixel, GRADIENT)


def check_width_704(fixture: Fixture) -> None:
    """Check a file of the losses on maps that are 704 wide, both variants of the crop."""
    logits = _outer(fixture, "logits_rows", "logits_cols", np.add)
    depth = _outer(fixture, "kd_rows", "kd_cols", np.multiply)
    setting = _Setting.of(fixture)
    depth = np.minimum(depth, np.float32(setting.bins.max_depth_m))
    fixture.compare_values("sigma_used", PUBLISHED_SIGMA_M, setting.sigma, EXACT)
    crops: tuple[Crop, ...] = ("slice", "pad")
    for crop in crops:
        _check_crop(fixture, setting, logits, depth, crop)


def _outer(fixture: Fixture, rows: str, columns: str, join: np.ufunc) -> np.ndarray:
    """Join rows (B, C, H) and columns (B, C, W) to (B, C, H, W)."""
    joined: np.ndarray = join(
        fixture.take(rows)[:, :, :, None], fixture.take(columns)[:, :, None, :]
    )
    return joined


def _check_crop(
    fixture: Fixture, setting: _Setting, logits: np.ndarray, depth: np.ndarray, crop: Crop
) -> None:
    single = setting.run(logits, depth, torch.float32, crop)
    fixture.compare(f"{crop}_l_dpm_map_shape", single.dpm_map.shape, EXACT)
    row_sums = single.dpm_map.double().sum(dim=(1, 3))  # (B, h)
    fixture.compare(f"{crop}_l_dpm_row_sum", row_sums, MAP)
    _check_values(fixture, f"{crop}_", single, LOSS)
    config_map, _ = setting.run_config(logits, depth, torch.float32, crop)
    fixture.compare(f"{crop}_l_dpm_mean_sigma_config", config_map.mean(), LOSS)
    gradient = single.gradient(single.parts.total)
    y, x = fixture.take("sample_y"), fixture.take("sample_x")
    samples = gradient.numpy()[:, :, y, x]  # (B, C, n)
    fixture.compare(f"{crop}_grad_total_samples", samples, GRADIENT)
    row_abs = gradient.double().abs().sum(dim=(1, 3))  # (B, H)
    fixture.compare(f"{crop}_grad_total_row_abs_sum", row_abs, GRADIENT)
    fixture.compare(f"{crop}_grad_total_norm", gradient.double().norm(), GRADIENT)
    double = setting.run(logits, depth, torch.float64, crop)
    _check_values(fixture, f"{crop}_", double, LOSS_F64, "_f64")
    if f"{crop}_l_dpm_mean_sigma_config_f64" in fixture:
        config_map, _ = setting.run_config(logits, depth, torch.float64, crop)
        fixture.compare(f"{crop}_l_dpm_mean_sigma_config_f64", config_map.mean(), LOSS_F64)


def _response_loss(name: str) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return the loss of a name such as `si`, `ssim_mse` or `si_lw1.5`, or None."""
    match = re.fullmatch(r"(ssim_si|ssim_mse|ssim|mse|si)(?:_lw([0-9.]+))?", name)
    if match is None:
        return None
    kind, weight = match.groups()
    if kind == "mse":
        return mse_loss  # its weight is ignored
    weighted = {
        "ssim": ssim_loss, "si": si_loss, "ssim_si": ssim_si_loss, "ssim_mse": ssim_mse_loss,
    }[kind]  # fmt: skip
    if weight is None:
        return weighted
    return lambda student, teacher: weighted(student, teacher, float(weight))


def check_response(fixture: Fixture) -> None:
    """Check a file of the response-based losses."""
    logit, depth = fixture.take("logit"), fixture.take("kd_gt")
    max_depth = fixture.number("max_depth")
    pred = torch.from_numpy(logit).sigmoid() * max_depth
    fixture.compare("pred", pred, Tolerance(2e-6 * max_depth, "m"))
    found = {key.removesuffix("_f64") for key in fixture.keys("loss_")}
    for name in sorted(found | {"ssim", "mse", "si", "ssim_si", "ssim_mse"}):
        loss = _response_loss(name)
        if loss is not None:
            _check_response_loss(fixture, name, loss, logit, depth, max_depth)


def _check_response_loss(
    fixture: Fixture,
    name: str,
    loss: Callable[[Tensor, Tensor], Tensor],
    logit: np.ndarray,
    depth: np.ndarray,
    max_depth: float,
) -> None:
    raw = torch.from_numpy(logit).requires_grad_()
    pred = raw.sigmoid() * max_depth
    value = loss(pred, torch.from_numpy(depth))
    grad_pred, grad_logit = torch.autograd.grad(value, (pred, raw))
    fixture.compare(f"loss_{name}", value, LOSS)
    fixture.compare(f"grad_pred_{name}", grad_pred, GRADIENT)
    if name == "ssim_si" or f"grad_logit_{name}" in fixture:
        fixture.compare(f"grad_logit_{name}", grad_logit, GRADIENT)
    double = torch.from_numpy(fixture.take("pred")).double()
    value = loss(double, torch.from_numpy(depth).double())
    fixture.compare(f"loss_{name}_f64", value, LOSS_F64)


def check_ssim(fixture: Fixture) -> None:
    """Check a file of SSIM alone."""
    fixture.compare("window", gaussian_window(), Tolerance(1e-6))
    a, b = torch.from_numpy(fixture.take("a")), torch.from_numpy(fixture.take("b"))
    zero = torch.zeros_like(a)
    fixture.compare("ssim_ab", published_ssim(a, b), LOSS)
    fixture.compare("ssim_aa", published_ssim(a, a), LOSS)
    fixture.compare("ssim_a_negcorr", published_ssim(a, 61 - a), LOSS)
    fixture.compare("ssim_zero_zero", published_ssim(zero, zero), LOSS)
    fixture.compare("ssim_a_zero", published_ssim(a, zero), LOSS)
    fixture.compare("ssim_small_scale", published_ssim(a / 1000, b / 1000), LOSS)
    fixture.compare("ssim_ab_f64", published_ssim(a.double(), b.double()), LOSS_F64)
