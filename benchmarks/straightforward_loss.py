"""The yardstick of `loss.py`: the losses of a DPM in plain tensor code, as their formulas read.

Every step is a map of all bins, (B, C, h, w), and autograd keeps what it needs of them: so the
published implementation works. The divergences are written out here. What is the package's sees
no map of all bins: SSIM, the mean over valid pixels and, for `tiekd`, the Gaussian's corrected
centre and its width.

Shapes: B batch, C bins, h and w the map.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tiekd_ros.method.losses import LossParts, LossSettings, masked_ssim
from tiekd_ros.method.metrics import masked_mean
from tiekd_ros.method.paper.losses import CROP_TOP, CROP_WIDTH, published_ssim
from tiekd_ros.method.target import DepthTarget
from tiekd_ros.student.bins import DepthBins

StraightforwardLoss = Callable[[Tensor, Tensor], LossParts]
"""(logits (B, C, h, w), teacher depth (B, 1, h, w) in metres, NaN = unknown) -> loss and parts."""


def straightforward_loss(bins: DepthBins, settings: LossSettings) -> StraightforwardLoss:
    """Return objective tiekd or paper, or the one of its terms that the settings name."""
    if settings.objective.startswith("tiekd"):
        return _tiekd(bins, settings)
    return _paper(bins, settings)


def _tiekd(bins: DepthBins, settings: LossSettings) -> StraightforwardLoss:
    corrected = DepthTarget(bins, settings.target_width)
    weights = {"tiekd-depth": (0.0, settings.ssim_weight), "tiekd-dpm": (settings.kl_weight, 0.0)}
    both = (settings.kl_weight, settings.ssim_weight)
    kl_weight, ssim_weight = weights.get(settings.objective, both)

    def loss(logits: Tensor, depth: Tensor) -> LossParts:
        valid = corrected.valid(depth)
        # The corrected centre is a table's: only what is made of it is a map of all bins.
        centre, sigma = corrected.bands(depth).numbers  # each (B, 1, h, w)
        edges = bins.edges().to(depth).view(1, -1, 1, 1)  # (1, C + 1, 1, 1)
        side = torch.where(centre > 0.5 * (edges[:, :1] + edges[:, -1:]), -1.0, 1.0).to(depth)
        tail = torch.erfc((edges - centre) * side / (sigma * math.sqrt(2.0)))
        teacher = (tail[:, :-1] - tail[:, 1:]) * side  # (B, C, h, w)
        teacher = teacher / teacher.sum(dim=1, keepdim=True).clamp_min(1e-30)
        log_student = logits.log_softmax(dim=1)
        divergence = torch.xlogy(teacher, teacher) - teacher * log_student
        kl = masked_mean(divergence.sum(dim=1, keepdim=True), valid)
        scale = 1.0 / (bins.max_depth_m - bins.min_depth_m)
        expectation = _expectation(logits.softmax(dim=1), bins)
        similarity = masked_ssim(expectation * scale, depth * scale, valid)
        total = kl_weight * kl + ssim_weight * (1 - similarity)
        return LossParts(total, kl, similarity)

    return loss


def _paper(bins: DepthBins, settings: LossSettings) -> StraightforwardLoss:
    sigma, weight, eps = settings.paper_sigma_m, settings.paper_weight, 1e-7

    def loss(logits: Tensor, depth: Tensor) -> LossParts:
        d_T = depth.nan_to_num(nan=0.0, posinf=math.inf)
        p = logits.softmax(dim=1)
        d_S = _expectation(p, bins)
        if depth.shape[3] == CROP_WIDTH:
            p, d_S, d_T = (maps[:, :, CROP_TOP:] for maps in (p, d_S, d_T))
        centres = bins.centres().to(depth).view(1, -1, 1, 1)
        density = torch.exp(-((centres - d_T) ** 2) / (2 * sigma**2))
        density = density / math.sqrt(2 * math.pi * sigma**2)
        outside = torch.full_like(density, -1000.0)
        q = torch.where(density < 1e-16, outside, density).softmax(dim=1)
        terms = q * torch.log(q / (p + eps) + eps)
        l_dpm = torch.where(p != 0, terms, torch.zeros_like(terms)).sum(dim=1).mean()
        similarity = published_ssim(d_S, d_T)
        total = 10 * (weight * l_dpm + (1 - weight) * (1 - similarity))
        terms_alone = {"paper-dpm": l_dpm, "paper-depth": 1 - similarity}
        return LossParts(terms_alone.get(settings.objective, total), l_dpm, similarity)

    return loss


def _expectation(probabilities: Tensor, bins: DepthBins) -> Tensor:
    centres = bins.centres().to(probabilities).view(1, -1, 1, 1)
    return (probabilities * centres).sum(dim=1, keepdim=True)
