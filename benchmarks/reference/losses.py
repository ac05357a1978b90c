"""Checks of the losses and of SSIM.

Shapes: B batch, C bins, H and W the map, h its rows after the crop.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from reference.checks import EDGES, EXACT, GRADIENT, LOSS, LOSS_F64, MAP, Fixture, Tolerance
from tiekd_ros.method.paper.losses import (
    RESPONSE_LOSSES,
    Crop,
    PublishedDpmLoss,
    PublishedLoss,
    gaussian_window,
    published_ssim,
)
from tiekd_ros.method.paper.target import PUBLISHED_SIGMA_M
from tiekd_ros.student.bins import DepthBins

_PROBABILITY = Tolerance(1e-5)
_NORM_F64 = Tolerance(1e-6)
_VARIANTS = [crop for crop in get_args(Crop) if crop != "none"]


class _Published:
    """The published losses of one input in one precision, with their settings in the file."""

    def __init__(
        self,
        fixture: Fixture,
        logits: np.ndarray,
        depth: np.ndarray,
        dtype: torch.dtype,
        crop: Crop,
    ) -> None:
        weight = fixture.number("loss_weight")
        self.bins = _bins(fixture)
        self.logits = torch.tensor(logits, dtype=dtype, requires_grad=True)  # (B, C, H, W)
        d_T = torch.tensor(depth, dtype=dtype)
        loss = PublishedLoss(self.bins, weight, fixture.number("sigma_used"), crop)
        config = PublishedDpmLoss(self.bins, fixture.number("sigma_config"), crop)
        parts = loss(self.logits, d_T)
        with torch.no_grad():
            self.dpm_map = loss.dpm_loss.compare(self.logits, d_T).divergence  # (B, 1, h, W)
        config_map = config.compare(self.logits, d_T).divergence
        self.config_map = config_map.detach()
        self.values = {
            "total": parts.total,
            "l_dpm_mean": parts.l_dpm,
            "l_depth": parts.l_depth,
            "l_dpm_mean_sigma_config": config_map.mean(),
        }

    def gradient(self, name: str) -> Tensor:
        """Return the gradient of one of the values, (B, C, H, W)."""
        return torch.autograd.grad(self.values[name], self.logits, retain_graph=True)[0]

    def check_values(
        self, fixture: Fixture, prefix: str, tolerance: Tolerance, suffix: str = ""
    ) -> None:
        for name, value in self.values.items():
            key = f"{prefix}{name}{suffix}"
            old = key.replace("l_dpm_mean", "dpm_mean")  # in the files of the first run
            fixture.compare(old if old in fixture else key, value, tolerance)


def _bins(fixture: Fixture) -> DepthBins:
    low, high = fixture.number("min_depth"), fixture.number("max_depth")
    return DepthBins(int(fixture.number("n_bins")), low, high)


def check_tiekd(fixture: Fixture) -> None:
    """Check a file of the TIE-KD losses on maps of any width but 704."""
    depth = fixture.take("kd_gt")
    if "logits_q" in fixture:
        steps = fixture.take("logits_q").astype(np.float32)
        logits = steps * np.float32(fixture.number("logits_step"))
    else:
        logits = fixture.take("logits")
    sigma = fixture.number("sigma_used")
    fixture.compare("bin_edges", _bins(fixture).edges(), EDGES)
    fixture.compare_values("sigma_used", PUBLISHED_SIGMA_M, sigma, EXACT)
    _check_dpms(fixture, logits, depth)
    single = _Published(fixture, logits, depth, torch.float32, "slice")
    fixture.compare("l_dpm_map", single.dpm_map, MAP)
    fixture.compare("l_dpm_map_sigma_config", single.config_map, MAP)
    single.check_values(fixture, "", LOSS)
    _check_gradients(fixture, single)
    double = _Published(fixture, logits, depth, torch.float64, "slice")
    double.check_values(fixture, "", LOSS_F64, "_f64")
    norm = double.gradient("total").norm()
    fixture.compare("grad_logits_total_norm_f64", norm, _NORM_F64)


def _check_dpms(fixture: Fixture, logits: np.ndarray, depth: np.ndarray) -> None:
    """Check the student's and the teacher's distributions, and the student's depth."""
    bins, d_T = _bins(fixture), torch.from_numpy(depth)
    student = torch.from_numpy(logits).softmax(dim=1)
    expected = (student * bins.centres().view(1, -1, 1, 1)).sum(dim=1, keepdim=True)
    fixture.compare("depth_pred", expected, Tolerance(2e-6 * bins.max_depth_m, "m"))
    fixture.compare_if_there("student_dpm", student, _PROBABILITY)
    for key, name in (("", "sigma_used"), ("_sigma_config", "sigma_config")):
        teacher = PublishedDpmLoss(bins, fixture.number(name)).target.probabilities(d_T)
        fixture.compare_if_there(f"teacher_dpm{key}", teacher, _PROBABILITY)


def _check_gradients(fixture: Fixture, run: _Published) -> None:
    """Check the full gradients or, where they were too large for the file, samples of them."""
    sampled = "sample_byx" in fixture
    required = ("total", "l_dpm_mean_sigma_config") if sampled else tuple(run.values)
    for name in run.values:
        key, gradient = f"grad_logits_{name}", run.gradient(name)
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
    depth = np.minimum(depth, np.float32(_bins(fixture).max_depth_m))
    fixture.compare_values("sigma_used", PUBLISHED_SIGMA_M, fixture.number("sigma_used"), EXACT)
    for crop in _VARIANTS:
        _check_crop(fixture, logits, depth, crop)


def _outer(fixture: Fixture, rows: str, columns: str, join: np.ufunc) -> np.ndarray:
    """Join rows (B, C, H) and columns (B, C, W) to (B, C, H, W)."""
    return join(fixture.take(rows)[:, :, :, None], fixture.take(columns)[:, :, None, :])


def _check_crop(fixture: Fixture, logits: np.ndarray, depth: np.ndarray, crop: Crop) -> None:
    single = _Published(fixture, logits, depth, torch.float32, crop)
    fixture.compare(f"{crop}_l_dpm_map_shape", single.dpm_map.shape, EXACT)
    row_sums = single.dpm_map.double().sum(dim=(1, 3))  # (B, h)
    fixture.compare(f"{crop}_l_dpm_row_sum", row_sums, MAP)
    single.check_values(fixture, f"{crop}_", LOSS)
    gradient = single.gradient("total")
    y, x = fixture.take("sample_y"), fixture.take("sample_x")
    samples = gradient.numpy()[:, :, y, x]  # (B, C, n)
    fixture.compare(f"{crop}_grad_total_samples", samples, GRADIENT)
    row_abs = gradient.double().abs().sum(dim=(1, 3))  # (B, H)
    fixture.compare(f"{crop}_grad_total_row_abs_sum", row_abs, GRADIENT)
    fixture.compare(f"{crop}_grad_total_norm", gradient.double().norm(), GRADIENT)
    double = _Published(fixture, logits, depth, torch.float64, crop)
    if f"{crop}_l_dpm_mean_sigma_config_f64" not in fixture:
        del double.values["l_dpm_mean_sigma_config"]
    double.check_values(fixture, f"{crop}_", LOSS_F64, "_f64")


def _response_loss(name: str) -> Callable[..., Tensor] | None:
    """Return the loss of a name such as `si`, `ssim_mse` or `si_lw1.5`, or None."""
    match = re.fullmatch(r"(ssim_si|ssim_mse|ssim|mse|si)(?:_lw([0-9.]+))?", name)
    if match is None:
        return None
    kind, weight = match.groups()
    loss: Callable[..., Tensor] = RESPONSE_LOSSES[kind.replace("_", "+")]
    if weight is None or kind == "mse":  # whose weight is ignored
        return loss
    return lambda student, teacher: loss(student, teacher, float(weight))


def check_response(fixture: Fixture) -> None:
    """Check a file of the response-based losses."""
    logit, depth = fixture.take("logit"), torch.from_numpy(fixture.take("kd_gt"))
    max_depth = fixture.number("max_depth")
    pred = torch.from_numpy(logit).sigmoid() * max_depth
    fixture.compare("pred", pred, Tolerance(2e-6 * max_depth, "m"))
    double = torch.from_numpy(fixture.take("pred")).double()
    found = {key.removesuffix("_f64") for key in fixture.keys("loss_")}
    for name in sorted(found | {"ssim", "mse", "si", "ssim_si", "ssim_mse"}):
        loss = _response_loss(name)
        if loss is None:
            continue
        raw = torch.from_numpy(logit).requires_grad_()
        pred = raw.sigmoid() * max_depth
        value = loss(pred, depth)
        grad_pred, grad_logit = torch.autograd.grad(value, (pred, raw))
        fixture.compare(f"loss_{name}", value, LOSS)
        fixture.compare(f"grad_pred_{name}", grad_pred, GRADIENT)
        if name == "ssim_si" or f"grad_logit_{name}" in fixture:
            fixture.compare(f"grad_logit_{name}", grad_logit, GRADIENT)
        fixture.compare(f"loss_{name}_f64", loss(double, depth.double()), LOSS_F64)


def check_ssim(fixture: Fixture) -> None:
    """Check a file of SSIM alone."""
    fixture.compare("window", gaussian_window(), Tolerance(1e-6))
    a, b = torch.from_numpy(fixture.take("a")), torch.from_numpy(fixture.take("b"))
    zero = torch.zeros_like(a)
    for key, one, other in (
        ("ab", a, b),
        ("aa", a, a),
        ("a_negcorr", a, 61 - a),
        ("zero_zero", zero, zero),
        ("a_zero", a, zero),
        ("small_scale", a / 1000, b / 1000),
    ):
        fixture.compare(f"ssim_{key}", published_ssim(one, other), LOSS)
    fixture.compare("ssim_ab_f64", published_ssim(a.double(), b.double()), LOSS_F64)
