"""The objectives of training: the TIE-KD losses and those they are compared with.

All are called alike: `objective(output, depth)`, with the student's output and the teacher's
depth (B, 1, H, W) in metres, NaN where it is unknown. The published losses (paper, and the
response-based ones but `si`) know no unknown depth: as in the published code, it counts as 0 m.
`describe_unknown` says where that matters.

Mode `tiekd` is the KL divergence between DPMs plus SSIM of depth, plus the error of the finer
depth where a student gives one.

Shapes: B batch, C bins, H and W the network's input, h and w its output (1/4 of it, or as large).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.images import DepthMap
from tiekd_ros.core.settings import Settings, setting
from tiekd_ros.method.fused import compare_dpm
from tiekd_ros.method.metrics import EDGE_RATIO, masked_mean
from tiekd_ros.method.paper.losses import RESPONSE_LOSSES, PublishedLoss, si_loss
from tiekd_ros.method.paper.target import published_width_m
from tiekd_ros.method.samples import cell_depth
from tiekd_ros.method.target import DepthTarget
from tiekd_ros.student.architecture import StudentOutput
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import TargetWidth

_EDGE_REACH_PX = 2  # half of a cell of the output

_WINDOW = 11  # SSIM's window and sigma, Wang et al. 2004
_WINDOW_SIGMA = 1.5


DPM_OBJECTIVES = ("tiekd", "tiekd-dpm", "paper", "paper-dpm", "paper-depth")
"""Those for students with a depth probability map (DPM) only."""
OBJECTIVES = (*DPM_OBJECTIVES, "tiekd-depth", "ssim", "mse", "si", "ssim+si", "ssim+mse")
MASKED_OBJECTIVES = ("tiekd", "tiekd-dpm", "tiekd-depth", "si")
"""Those that leave unknown depth out; all others take it for 0 m, as published."""


@dataclass(frozen=True)
class LossSettings(Settings):
    """The objective, the weights of its terms and the width of the target."""

    objective: str = setting(
        "tiekd",
        "what the student learns: the corrected TIE-KD (tiekd) or one of its terms, the published "
        "one (paper) or one of its terms, or a response-based loss",
        choices=OBJECTIVES,
    )

    kl_weight: float = setting(1.0, "weight of the KL term", minimum=0.0, maximum=100.0)
    ssim_weight: float = setting(1.0, "weight of the SSIM term", minimum=0.0, maximum=100.0)
    edge_weight: float = setting(
        1.0,
        "weight of the relative error at the label's resolution, for students that upsample depth",
        minimum=0.0,
        maximum=100.0,
    )
    edge_focus: float = setting(
        0.0,
        "tiekd: extra weight of pixels within 2 px of an edge in the label (4 = they count five "
        "times), in the KL term and the relative error; for labels that lie exactly on the image",
        minimum=0.0,
        maximum=100.0,
    )
    sigma_floor_m: float = setting(
        0.04, "least width of the target's Gaussian", unit="m", minimum=1e-3, maximum=10.0
    )
    sigma_relative: float = setting(
        0.05, "width of the target's Gaussian relative to depth", minimum=0.0, maximum=1.0
    )

    paper_weight: float = setting(
        0.1, "paper: weight of its DPM term against its depth term", minimum=0.0, maximum=10.0
    )
    paper_sigma_m: float = setting(
        0.5, "paper: width of its target's Gaussian", unit="m", minimum=1e-2, maximum=10.0
    )
    si_weight: float = setting(
        1.0, "si: weight of the scale-invariant loss alone", minimum=0.0, maximum=100.0
    )

    @property
    def target_width(self) -> TargetWidth:
        """The width of the target that the objective teaches, as a student's card keeps it."""
        if self.objective.startswith("paper"):
            return TargetWidth(published_width_m(self.paper_sigma_m), 0.0)
        return TargetWidth(self.sigma_floor_m, self.sigma_relative)


class LossParts(NamedTuple):
    """The loss and its parts, scalars."""

    total: Tensor
    kl: Tensor
    ssim: Tensor


class DistillationLoss:
    """KL(teacher DPM || student DPM) + SSIM of the expectations, over valid pixels only.

    Objective `tiekd`, with the error of the finer depth where a student gives one; `tiekd-dpm` and
    `tiekd-depth` are the published method's two terms alone.
    """

    def __init__(self, bins: DepthBins, settings: LossSettings) -> None:
        self.bins = bins
        self.settings = settings
        self.target = DepthTarget(bins, settings.target_width)
        self._divergence = KullbackLeibler(self.target)
        self._kl_weight = 0.0 if settings.objective == "tiekd-depth" else settings.kl_weight
        self._ssim_weight = 0.0 if settings.objective == "tiekd-dpm" else settings.ssim_weight
        self._edge_weight = settings.edge_weight if settings.objective == "tiekd" else 0.0

    def __call__(self, output: StudentOutput, depth: Tensor) -> LossParts:
        """Compare a student's output with teacher depth (B, 1, H, W), NaN = unknown.

        A batch without one valid pixel gives zero and no gradient. A student without a DPM
        has no KL term: 0.
        """
        fine, focus = depth, self._focus(depth)
        depth = _at_output(depth, output)
        valid = self.target.valid(depth)  # (B, 1, h, w)
        if output.logits is None:
            student, kl = output.depth, depth.new_zeros(())
        else:
            divergence, student = compare_dpm(output.logits, depth, self._divergence)
            cell = fine.shape[2] // depth.shape[2]
            cells = None if focus is None else functional.max_pool2d(focus, cell)
            kl = masked_mean(divergence, _weights(valid, cells))
        # Metres -> share of the range: SSIM's constants then mean what they were made for.
        scale = 1.0 / (self.bins.max_depth_m - self.bins.min_depth_m)
        similarity = masked_ssim(student * scale, depth * scale, valid)
        total = self._kl_weight * kl + self._ssim_weight * (1 - similarity)
        if output.fine_depth is not None and self._edge_weight > 0:
            total = total + self._edge_weight * self._edge_error(output.fine_depth, fine, focus)
        return LossParts(total, kl, similarity)

    def _edge_error(self, student: Tensor, depth: Tensor, focus: Tensor | None) -> Tensor:
        """Return the mean of |ln student - ln depth| over valid pixels, each (B, 1, H, W)."""
        valid = self.target.valid(depth)
        known = torch.where(valid, depth, torch.ones_like(depth))
        return masked_mean((student / known).log().abs(), _weights(valid, focus))

    def _focus(self, depth: Tensor) -> Tensor | None:
        """Return how much each pixel counts: 1, and more at an edge; None = all the same."""
        more = self.settings.edge_focus
        return 1 + more * at_edges(depth, _EDGE_REACH_PX) if more > 0 else None


def _weights(valid: Tensor, focus: Tensor | None) -> Tensor:
    return valid if focus is None else valid * focus


def at_edges(depth: Tensor, reach: int) -> Tensor:
    """Return a mask of the pixels near an edge, bool of the same shape.

    An edge is between neighbours whose depths have a ratio of more than 1.15.

    Args:
        depth: (B, 1, H, W), NaN = unknown.
        reach: pixels on each side of an edge, at least 1.
    """
    edges = torch.zeros_like(depth)
    for axis in (2, 3):
        step = (depth.log().diff(dim=axis).abs() > math.log(EDGE_RATIO)).to(depth)
        count = step.shape[axis]
        edges.narrow(axis, 0, count).logical_or_(step)
        edges.narrow(axis, 1, count).logical_or_(step)
    return functional.max_pool2d(edges, 2 * reach - 1, 1, reach - 1) > 0


def _at_output(depth: Tensor, output: StudentOutput) -> Tensor:
    """Return depth (B, 1, H, W) at the resolution of a student's output."""
    made = output.depth if output.logits is None else output.logits
    if depth.shape[2:] == made.shape[2:]:
        return depth
    return cell_depth(depth, depth.shape[2] // made.shape[2])


class KullbackLeibler:
    """KL(target || student), see `target.BandedDivergence`."""

    def __init__(self, target: DepthTarget) -> None:
        self.bins = target.bins
        self.bands = target.bands
        self.target = target.masses

    def terms(self, target: Tensor, log_student: Tensor) -> Tensor:
        """Return q ln q - q ln p."""
        least = torch.finfo(target.dtype).tiny  # 0 ln 0 = 0; four times as fast as xlogy
        terms = target.clamp_min(least).log_().sub_(log_student).mul_(target)
        return terms.masked_fill_(target == 0, 0)  # where ln p is -inf, it is not 0 by itself

    def slopes(self, target: Tensor, log_student: Tensor) -> Tensor:
        """Return the derivatives of the terms with respect to ln p: -q."""
        return -target


def masked_ssim(a: Tensor, b: Tensor, valid: Tensor) -> Tensor:
    """Return the mean structural similarity of two maps over their valid pixels.

    Wang et al. 2004, 11x11 Gaussian window, dynamic range 1, signed covariance. Local moments
    are taken over the valid pixels of each window; a pixel counts where it is valid and at
    least half of its window's weight is.

    Args:
        a: first map, (B, 1, h, w), values about 0..1.
        b: second map; values where `valid` is False do not matter.
        valid: bool, (B, 1, h, w).

    Returns:
        A scalar in -1..1; 1 where no pixel counts.
    """
    mask = valid.to(a)
    a = torch.where(valid, a, torch.zeros_like(a))
    b = torch.where(valid, b, torch.zeros_like(b))
    maps = torch.cat((mask, a, b, a * a, b * b, a * b), dim=1)  # (B, 6, h, w)
    weight, *sums = _blur(maps).split(1, dim=1)
    reach = _blur(torch.ones_like(mask[:1]))  # less than 1 at the border
    mean_a, mean_b, aa, bb, ab = (s / weight.clamp_min(1e-6) for s in sums)
    var_a = (aa - mean_a**2).clamp_min(0)
    var_b = (bb - mean_b**2).clamp_min(0)
    covariance = ab - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    )
    counts = valid & (weight >= 0.5 * reach)
    # 1 minus the mean of what is missing to 1: so it is 1 where no pixel counts.
    return 1 - masked_mean(1 - similarity, counts)


def _blur(maps: Tensor) -> Tensor:
    offsets = torch.arange(_WINDOW, dtype=maps.dtype, device=maps.device) - _WINDOW // 2
    kernel = torch.exp(-(offsets**2) / (2 * _WINDOW_SIGMA**2))
    kernel = kernel / kernel.sum()
    channels = maps.shape[1]
    row = kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    column = kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    # Variances are small differences: autocast would run the convolutions in half precision.
    with torch.autocast(maps.device.type, enabled=False):
        blurred = functional.conv2d(maps, row, padding=(0, _WINDOW // 2), groups=channels)
        return functional.conv2d(blurred, column, padding=(_WINDOW // 2, 0), groups=channels)


class Objective(Protocol):
    """Compares a student's output with the teacher's depth (B, 1, H, W), NaN = unknown."""

    def __call__(self, output: StudentOutput, depth: Tensor) -> LossParts:
        """Return the loss, to be minimised, and its parts."""


def make_objective(bins: DepthBins, settings: LossSettings, *, has_dpm: bool = True) -> Objective:
    """Return the objective that the settings name.

    Args:
        bins: the student's.
        settings: which objective, with weights and widths.
        has_dpm: whether the student gives a depth probability map (DPM).

    Raises:
        InvalidSettingError: the objective teaches a DPM, and the student has none.
    """
    name = settings.objective
    if name in DPM_OBJECTIVES and not has_dpm:
        raise InvalidSettingError(
            f"objective {name!r} teaches a depth probability map, which a regression student does "
            f"not have; take one of {', '.join(RESPONSE_LOSSES)}"
        )
    if name.startswith("tiekd"):
        return DistillationLoss(bins, settings)
    if name.startswith("paper"):
        return _Paper(bins, settings)
    if name == "si":
        return _response(partial(si_loss, weight=settings.si_weight))
    return _response(RESPONSE_LOSSES[name])


def describe_unknown(objective: str, depths: Sequence[DepthMap]) -> str:
    """Say how much unknown depth an objective takes for 0 m.

    Args:
        objective: its name.
        depths: some of the labels, (H, W) in metres, NaN = unknown.

    Returns:
        A sentence without its end; "" where nothing is unknown, or the objective leaves it out.
    """
    if objective in MASKED_OBJECTIVES:
        return ""
    unknown = np.array([1 - np.isfinite(depth).mean() for depth in depths])
    holed = int((unknown > 0).sum())
    if not holed:
        return ""
    return (
        f"objective {objective!r} takes unknown depth for 0 m, and {holed} of {len(depths)} depth "
        f"maps looked at have unknown pixels ({unknown[unknown > 0].mean():.1%} of theirs)"
    )


class _Paper:
    """The published TIE-KD loss or one of its two terms."""

    def __init__(self, bins: DepthBins, settings: LossSettings) -> None:
        self._loss = PublishedLoss(bins, settings.paper_weight, settings.paper_sigma_m)
        self._term = settings.objective

    def __call__(self, output: StudentOutput, depth: Tensor) -> LossParts:
        assert output.logits is not None  # held by make_objective
        depth = _at_output(depth, output)
        total, divergence, dissimilarity = self._loss(output.logits, depth)
        terms = {"paper": total, "paper-dpm": divergence, "paper-depth": dissimilarity}
        return LossParts(terms[self._term], divergence, 1 - dissimilarity)


def _response(loss: Callable[[Tensor, Tensor], Tensor]) -> Objective:
    """Return a response-based loss, which compares depth with depth, as an objective."""

    def compare(output: StudentOutput, depth: Tensor) -> LossParts:
        total = loss(output.depth, _at_output(depth, output))
        nothing = torch.zeros_like(total)
        return LossParts(total, nothing, nothing)

    return compare
