"""The loss against a slow implementation of its definition, and against unknown pixels.

The slow one is written from the formulas, pixel by pixel in float64, and shares no code.
"""

import math

import numpy as np
import pytest
import torch

from tiekd_ros.method.losses import DistillationLoss, LossSettings, masked_ssim
from tiekd_ros.method.paper.target import PublishedTarget
from tiekd_ros.student.architecture import StudentOutput
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import TargetWidth
from tiekd_ros.student.importing import PUBLISHED_WIDTH

BINS = DepthBins(count=65, min_depth_m=0.1, max_depth_m=10.0)
SHAPE = (14, 17)


def slow_target(depth: float, sigma: float, bins: DepthBins) -> np.ndarray:
    """Return the mass per bin of the Gaussian whose expectation within the range is `depth`."""
    edges = np.linspace(bins.min_depth_m, bins.max_depth_m, bins.count + 1)
    centres = (edges[1:] + edges[:-1]) / 2

    def masses(mu: float) -> np.ndarray:
        cdf = np.array([0.5 * (1 + math.erf((e - mu) / (sigma * math.sqrt(2)))) for e in edges])
        return np.diff(cdf) / (cdf[-1] - cdf[0])

    low, high = depth - 4 * sigma, depth + 4 * sigma
    for _ in range(60):
        mu = (low + high) / 2
        low, high = (mu, high) if masses(mu) @ centres < depth else (low, mu)
    return masses((low + high) / 2)


def slow_ssim(a: np.ndarray, b: np.ndarray, valid: np.ndarray) -> float:
    """Return SSIM of one pair of maps, Wang et al. 2004, over valid pixels; window 11x11."""
    height, width = a.shape
    offsets = np.arange(-5, 6)
    gauss = np.exp(-(offsets**2) / (2 * 1.5**2))
    gauss /= gauss.sum()
    values = []
    for y in range(height):
        for x in range(width):
            if not valid[y, x]:
                continue
            weights, pairs, reach = [], [], 0.0
            for dy, wy in zip(offsets, gauss, strict=True):
                for dx, wx in zip(offsets, gauss, strict=True):
                    v, u = y + dy, x + dx
                    if 0 <= v < height and 0 <= u < width:
                        reach += wy * wx
                        if valid[v, u]:
                            weights.append(wy * wx)
                            pairs.append((a[v, u], b[v, u]))
            w, p = np.array(weights), np.array(pairs)
            if w.sum() < 0.5 * reach:
                continue
            w = w / w.sum()
            mean = w @ p
            var = w @ (p - mean) ** 2
            cov = w @ ((p[:, 0] - mean[0]) * (p[:, 1] - mean[1]))
            c1, c2 = 0.01**2, 0.03**2
            top = (2 * mean[0] * mean[1] + c1) * (2 * cov + c2)
            values.append(top / ((mean[0] ** 2 + mean[1] ** 2 + c1) * (var.sum() + c2)))
    return float(np.mean(values))


def maps(seed: int = 0, unknown: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (1, C, h, w), and smooth depth (1, 1, h, w) of which a share is unknown."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]]
    depth = 4 + 3 * np.sin(x / 4 + rng.uniform()) * np.cos(y / 5) + rng.normal(0, 0.1, SHAPE)
    depth[rng.uniform(size=SHAPE) < unknown] = np.nan
    depth[0, 0], depth[0, 1], depth[0, 2] = 0.05, 12.0, np.inf
    logits = rng.normal(0, 2, (BINS.count, *SHAPE))
    return torch.tensor(logits[None]).float(), torch.tensor(depth[None, None]).float()


def output_of(logits: torch.Tensor) -> StudentOutput:
    centres = BINS.centres().view(1, -1, 1, 1)
    return StudentOutput(logits, lambda: (logits.softmax(1) * centres).sum(1, keepdim=True))


@pytest.mark.parametrize("unknown", [0.0, 0.3, 0.7])
def test_both_terms_equal_the_slow_implementation(unknown):
    settings = LossSettings(kl_weight=2.0, ssim_weight=3.0, sigma_floor_m=0.15, sigma_relative=0.05)
    logits, depth = maps(unknown=unknown)
    parts = DistillationLoss(BINS, settings)(output_of(logits), depth)
    z, d = logits[0].double().numpy(), depth[0, 0].double().numpy()
    q = np.exp(z - z.max(0))
    q /= q.sum(0)
    valid = np.nan_to_num(d, nan=-1, posinf=-1)
    valid = (valid >= BINS.min_depth_m) & (valid <= BINS.max_depth_m)
    divergences = []
    for y, x in np.argwhere(valid):
        p = slow_target(d[y, x], max(0.15, 0.05 * d[y, x]), BINS)
        some = p > 1e-30
        divergences.append((p[some] * (np.log(p[some]) - np.log(q[some, y, x]))).sum())
    edges = np.linspace(BINS.min_depth_m, BINS.max_depth_m, BINS.count + 1)
    expected = np.tensordot((edges[1:] + edges[:-1]) / 2, q, axes=1)
    scale = BINS.max_depth_m - BINS.min_depth_m
    ssim = slow_ssim(expected / scale, np.where(valid, d, 0) / scale, valid)
    assert parts.kl.item() == pytest.approx(np.mean(divergences), rel=1e-3)
    assert parts.ssim.item() == pytest.approx(ssim, abs=1e-4)
    assert parts.total.item() == pytest.approx(2 * np.mean(divergences) + 3 * (1 - ssim), rel=1e-3)


def test_unknown_pixels_get_no_gradient():
    logits, depth = maps()
    logits.requires_grad_()
    loss = DistillationLoss(BINS, LossSettings())
    loss(output_of(logits), depth).total.backward()
    valid = loss.target.valid(depth)[0, 0]
    strength = logits.grad[0].abs().sum(0)
    assert strength[~valid].max() == 0
    assert (strength[valid] > 0).float().mean() > 0.99
    for value in (math.nan, 0.0, 50.0, math.inf):  # not one valid pixel
        logits.grad = None
        parts = loss(output_of(logits), torch.full((1, 1, *SHAPE), value))
        parts.total.backward()
        assert (parts.total.item(), parts.kl.item(), parts.ssim.item()) == (0, 0, 1)
        assert logits.grad.abs().max() == 0


def test_a_student_that_says_what_the_teacher_says_has_no_loss():
    _, depth = maps(unknown=0.0)
    depth = depth.nan_to_num(posinf=5.0).clamp(1.0, 9.0)
    loss = DistillationLoss(BINS, LossSettings(sigma_floor_m=0.2))
    logits = loss.target.probabilities(depth).clamp_min(1e-30).log()
    parts = loss(output_of(logits), depth)
    assert parts.kl.item() == pytest.approx(0, abs=1e-4)
    assert parts.ssim.item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("column", [3, 8, 9, 15])
def test_a_pixel_at_an_edge_counts_more_where_that_is_asked_for(column):
    width, focus = 20, 4.0
    depth = torch.full((1, 1, 6, width), 2.0)
    depth[..., 9:] = 6.0  # an edge, and beside what is unknown there is none
    depth[..., 12] = math.nan
    depth[..., 13:] = 4.0
    plain, focused = (DistillationLoss(BINS, LossSettings(edge_focus=f)) for f in (0.0, focus))
    logits = plain.target.probabilities(depth.nan_to_num(6.0)).clamp_min(1e-30).log()
    logits[..., column] = 0.0
    kl, more = (loss(output_of(logits), depth).kl.item() for loss in (plain, focused))
    at_edge = 7 <= column <= 10  # within two pixels
    share = (1 + focus * at_edge) / (width - 1 + 4 * focus)
    assert more / kl == pytest.approx(share * (width - 1), rel=1e-4)


def test_ssim_ranks_structure():
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    stripes, others, opposed = (0.5 + 0.2 * f for f in (x.sin(), y.sin(), -x.sin()))

    def to_stripes(b: torch.Tensor) -> float:
        return masked_ssim(stripes[None, None], b[None, None], torch.ones(1, 1, 32, 32) > 0).item()

    assert to_stripes(stripes) == pytest.approx(1, abs=1e-5)
    assert -1 <= to_stripes(opposed) < -0.5 < to_stripes(others) < 0.3


def test_ssim_ignores_what_the_mask_hides_and_pixels_among_mostly_unknown_ones():
    a, b = torch.rand(2, 1, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    valid = torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(1)) > 0.3
    spoiled = torch.where(valid, b, torch.tensor(math.nan))
    assert torch.equal(masked_ssim(a, spoiled, valid), masked_ssim(a, b, valid))
    lonely = torch.zeros(1, 1, 24, 24, dtype=bool)
    lonely[..., 12, 12] = True
    assert masked_ssim(torch.zeros_like(a), torch.ones_like(a), lonely).item() == 1


def test_the_taught_width_is_that_of_the_objectives_own_target():
    bins = DepthBins(4001, 1e-3, 40.0)
    depth = torch.full((1, 1, 1, 1), 20.0)
    for sigma_m in (0.15, 0.5, 0.8):
        target = PublishedTarget(bins, sigma_m).probabilities(depth)[0, :, 0, 0].double()
        std = (target * (bins.centres().double() - 20.0) ** 2).sum().sqrt().item()
        for objective in ("paper", "paper-dpm"):
            width = LossSettings(objective=objective, paper_sigma_m=sigma_m).target_width
            assert (width.floor_m, width.relative) == (pytest.approx(std, rel=0.01), 0.0)
    own = LossSettings(sigma_floor_m=0.1, sigma_relative=0.02).target_width
    assert own == TargetWidth(0.1, 0.02)
    taught = LossSettings(objective="paper").target_width  # that of imported students
    assert taught.floor_m == pytest.approx(PUBLISHED_WIDTH.floor_m, abs=0.01)
