"""EfficientNet-Lite0 with a learned upsampling: depth at the image's resolution, with its edges.

The encoder is EfficientNet-Lite0 (Tan and Le 2019, arXiv 1905.11946, without squeeze-excite and
with ReLU6), whose ImageNet weights know what things look like before a robot has seen its room.
It is MobileNetV2's kind of network with other stages, and the decoder is that of
`mobilenetv2-fast`. What is new is the end: a pixel of the quarter-size map often sees two
surfaces, so its depth probability map (DPM) has two modes, and each pixel of the image takes its
depth from its cell and the four around it, in shares that follow the image (convex upsampling, as
in RAFT, arXiv 2003.12039, with five cells instead of nine).

Shapes: B batch, C bins, H and W the network's input, h = H/4 and w = W/4.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tiekd_ros.student.architecture import Moments, StudentNetwork, StudentOutput
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.networks.mobilenetv2 import (
    HEAD_CHANNELS,
    ConvNormAct,
    FastStudent,
    Stage,
)

LITE0 = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 40, 2, 2, kernel=5),
    Stage(6, 80, 3, 2),
    Stage(6, 112, 3, 1, kernel=5),
    Stage(6, 192, 4, 2, kernel=5),
)
"""The stages of EfficientNet-Lite0 but its last, which adds a tenth of the time and no depth."""
_RETURNED = (2, 3, 5, 6)  # at strides 4, 8, 16, 32

_SCALE = 4
_CELLS = ((0, 0), (-1, 0), (0, -1), (0, 1), (1, 0))
"""What a pixel's depth is made of: (row, column) from its own cell, which is the first."""
_GUIDE_CHANNELS = 32
_GROUP_STEP = 0.2  # of ln depth: bins are looked at in groups as wide
_MODE_SHARE = 0.05
_SURFACE_RATIO = 1.1  # of two cells' depths: those of one surface are nearer to each other
_FIRST_SHARE = 2.0
"""Logit by which a cell's own depth stands out before anything is learnt."""
_AXES = 16
"""Of what is remembered; chosen on the places of docs/learning.md."""


class EfficientNetStudent(FastStudent):
    """EfficientNet-Lite0 encoder, DPM at 1/4 resolution, depth at the input's resolution.

    The raw output is what its two heads get, which make the logits of the DPM and of the shares:
    features, and the guide, what the image looks like inside each cell; and the summary, the means
    of the encoder's feature maps, by which the student knows whether it has learnt from such a
    place.

    Attributes:
        groups: of neighbouring bins, in which the main mode is looked for: 0 or 1, (K, C).
        memory: of the summaries of frames that it was trained on.
    """

    groups: Tensor

    def __init__(self, bins: DepthBins) -> None:
        super().__init__(bins, LITE0, _RETURNED)
        self.guide = ConvNormAct(3, _GUIDE_CHANNELS, _SCALE, stride=_SCALE, padding=0)
        self.shares = _shares_layer(HEAD_CHANNELS)
        self.guide_shares = _shares_layer(_GUIDE_CHANNELS)
        assert self.shares.bias is not None
        nn.init.constant_(self.shares.bias[: _SCALE**2], _FIRST_SHARE)
        centres = bins.centres()
        number = ((centres / centres[0]).log() / _GROUP_STEP).long()
        groups = functional.one_hot(number).t().float()  # (K, C)
        groups = groups[groups.any(dim=1)]  # near ones may be narrower than a bin
        self.group_count = len(groups)
        self.register_buffer("groups", groups, persistent=False)
        self.memory = Memory(sum(self.backbone.channels))

    def forward(self, x: Tensor) -> Any:  # a tuple
        """Return what the heads get, (B, 64, H/4, W/4) and (B, 32, H/4, W/4), and the summary.

        Args:
            x: normalised RGB, (B, 3, H, W), H and W multiples of 32.
        """
        encoded = self.backbone(x)
        summary = torch.cat([each.mean(dim=(2, 3)) for each in encoded], dim=1)
        return self.decode(encoded), self.guide(x), summary

    def summary(self, raw: Any) -> Tensor:
        """Return the mean of each channel of the encoder's maps, (B, 368)."""
        found: Tensor = raw[2].float()
        return found

    def remember(self, summaries: Tensor) -> None:
        """Keep the subspace of summaries, (N, 368)."""
        self.memory.remember(summaries)

    def absent_weights(self) -> dict[str, Tensor]:
        """Return an empty memory."""
        names = dict(self.memory.named_parameters(prefix="memory"))
        return {name: torch.zeros(weight.shape) for name, weight in names.items()}

    def output(self, raw: Any) -> StudentOutput:
        """Return the DPM's logits, its expectation, and that at the input's resolution."""
        made = super().output(self.head(raw[0]))
        return StudentOutput(
            made.logits, lambda: made.depth, lambda: upsample(made.depth, self._shares(raw))
        )

    def moments(self, raw: Any) -> Moments:
        """Return depth and its spread at the input's resolution, (B, 1, H, W).

        A cell's depth is the mean over its DPM's main mode, and a pixel's is made of cells on one
        surface: where two are seen it is on one of them and not between, elsewhere it is the mean.
        """
        weights = self.weights(self.head(raw[0]))
        sums = functional.conv2d(weights, self._kernel()[:, :, None, None])
        mass, moment, whole = sums.split((self.group_count, self.group_count, 3), dim=1)
        mode = self._main_mode(mass)
        # As a share of the last centre, as in `sums_kernel`.
        depth = (moment * mode).sum(dim=1, keepdim=True) / (mass * mode).sum(dim=1, keepdim=True)
        total, first, second = whole.split(1, dim=1)
        mean, square = first / total, second / total
        spread = (square - 2 * depth * mean + depth * depth).clamp_min(0.0)  # E[(d - depth)^2]
        depth, std = upsample_surface(depth, spread.sqrt(), self._shares(raw))
        novelty = self.memory(self.summary(raw)).expand_as(depth)
        return Moments(depth * self.centres[-1], std * self.centres[-1], novelty)

    def _main_mode(self, mass: Tensor) -> Tensor:
        """Return which groups of bins belong to the main mode, 0 or 1, for masses (B, K, h, w).

        The main mode is what is connected to the largest mass by masses above a share of it, each
        smoothed over its neighbours.
        """
        padded = functional.pad(mass, (0, 0, 0, 0, 1, 1))
        smooth = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
        top = smooth.argmax(dim=1, keepdim=True)
        low = (smooth < _MODE_SHARE * smooth.gather(1, top)).float()
        below = low.cumsum(dim=1)  # connected is what has as many low masses below it
        return (1 - low) * (below == below.gather(1, top)).float()

    def _shares(self, raw: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Return the logits of the shares, (B, 80, h, w)."""
        features, guide, _ = raw
        shares: Tensor = self.shares(features) + self.guide_shares(guide)
        return shares

    def _kernel(self) -> Tensor:
        """Return what weights are multiplied by for all these sums: (2 K + 3, C)."""
        return torch.cat((self.groups, self.groups * self.sums_kernel()[1], self.sums_kernel()))

    answer = StudentNetwork.answer  # a mode is no sum
    moments_of = StudentNetwork.moments_of


class Memory(nn.Module):
    """What was learnt from, as the subspace of its summaries, and how far others are from it.

    Parameters, which runtimes bring in by name, though nothing trains them. While the scale is 0,
    nothing is remembered, and everything is at distance 0.

    Attributes:
        centre: mean of the summaries, (F,).
        scale: one over their standard deviations, (F,).
        axes: their principal axes, orthonormal, (16, F); rows of 0 where there are fewer.
    """

    def __init__(self, values: int) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.zeros(values), requires_grad=False)
        self.scale = nn.Parameter(torch.zeros(values), requires_grad=False)
        self.axes = nn.Parameter(torch.zeros(_AXES, values), requires_grad=False)

    def forward(self, summary: Tensor) -> Tensor:
        """Return the distances of summaries, (B, F), from the subspace: (B, 1, 1, 1).

        Root of the mean square over the values, each in standard deviations.
        """
        scaled = (summary - self.centre) * self.scale
        # No transposed weights: torch's exporter would make a constant of them.
        along = (scaled[:, None] * self.axes).sum(dim=2)  # (B, 16)
        beyond = scaled - along @ self.axes
        return beyond.square().mean(dim=1).sqrt().view(-1, 1, 1, 1)

    @torch.no_grad()
    def remember(self, summaries: Tensor) -> None:
        """Keep centre, scale and axes of summaries, (N, F), on any device."""
        summaries = summaries.to(self.centre.device)
        self.centre.copy_(summaries.mean(dim=0))
        deviation = summaries.std(dim=0, correction=0)
        # What hardly varies here may do so elsewhere, but not by as much as others.
        self.scale.copy_(1 / (deviation + 1e-3 * deviation.mean() + 1e-6))
        scaled = (summaries - self.centre) * self.scale
        found = torch.linalg.svd(scaled, full_matrices=False).Vh[: min(_AXES, len(summaries) - 1)]
        self.axes.zero_()
        self.axes[: len(found)] = found


def _shares_layer(channels: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, len(_CELLS) * _SCALE**2, 1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def upsample(depth: Tensor, shares: Tensor) -> Tensor:
    """Return depth at four times the size: each pixel a convex combination of five cells.

    Args:
        depth: of the cells, (B, 1, h, w).
        shares: logits of the cells, (B, 5 * 16, h, w).

    Returns:
        (B, 1, 4 h, 4 w); no depth is beyond those of the five cells.
    """
    return _combined(_weights(shares, depth.dtype), _cells(depth))


def upsample_surface(depth: Tensor, spread: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Return depth and spread at four times the size, each pixel on one surface.

    The cell with the largest share says which one: cells whose depth is far from its own have no
    part in the pixel's, and the spread is that cell's. For inference: the choice has no gradient.

    Args:
        depth: of the cells, (B, 1, h, w).
        spread: of their depth, the same shape.
        shares: logits of the cells, (B, 5 * 16, h, w).

    Returns:
        Each (B, 1, 4 h, 4 w).
    """
    weights = _weights(shares, depth.dtype)
    depths, spreads = _cells(depth), _cells(spread)
    heaviest = weights[0]
    chosen, unsure = (each[0].expand_as(heaviest) for each in (depths, spreads))
    for i in range(1, len(_CELLS)):
        heavier = weights[i] > heaviest
        heaviest = torch.maximum(heaviest, weights[i])
        chosen = torch.where(heavier, depths[i], chosen)
        unsure = torch.where(heavier, spreads[i], unsure)
    low, high = chosen / _SURFACE_RATIO, chosen * _SURFACE_RATIO
    on_surface = [
        weight * ((cell > low) & (cell < high)).to(weight)
        for weight, cell in zip(weights, depths, strict=True)
    ]
    return _combined(on_surface, depths), functional.pixel_shuffle(unsure, _SCALE)


def _weights(shares: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Return what each cell weighs in each pixel: 5 of (B, 16, h, w)."""
    return list(shares.to(dtype).clamp(-20.0, 20.0).exp().split(_SCALE**2, dim=1))


def _cells(values: Tensor) -> list[Tensor]:
    """Return the values of the cells that a pixel is made of: 5 of (B, 1, h, w)."""
    height, width = values.shape[2:]
    around = functional.pad(values, (1, 1, 1, 1), mode="replicate")
    return [
        around[:, :, 1 + row : 1 + row + height, 1 + column : 1 + column + width]
        for row, column in _CELLS
    ]


def _combined(weights: Sequence[Tensor], cells: Sequence[Tensor]) -> Tensor:
    """Return the weighted means of the cells, (B, 1, 4 h, 4 w)."""
    mixed = reduce(add, (weight * cell for weight, cell in zip(weights, cells, strict=True)))
    return functional.pixel_shuffle(mixed / reduce(add, weights), _SCALE)
