"""What a student is trained to do: the TIE-KD losses and those they are compared with.

One way to call them all: `objective(output, depth)`, with the student's output and the
teacher's depth (B, 1, h, w) in metres, NaN where it is unknown.

The published losses (paper, and the response-based ones but `si`) know no unknown depth: as in
the published code, it counts as 0 m. `describe_unknown` says where that matters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.images import DepthMap
from tiekd_ros.method.losses import (
    DPM_OBJECTIVES,
    MASKED_OBJECTIVES,
    DistillationLoss,
    LossParts,
    LossSettings,
)
from tiekd_ros.method.paper.losses import RESPONSE_LOSSES, PublishedLoss, si_loss
from tiekd_ros.student import DepthBins, StudentOutput


class Objective(Protocol):
    """Compares a student's output with the teacher's depth (B, 1, h, w), NaN = unknown."""

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
        return _Response(partial(si_loss, weight=settings.si_weight))
    return _Response(RESPONSE_LOSSES[name])


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
        total, divergence, dissimilarity = self._loss(output.logits, depth)
        terms = {"paper": total, "paper-dpm": divergence, "paper-depth": dissimilarity}
        return LossParts(terms[self._term], divergence, 1 - dissimilarity)


class _Response:
    """A response-based loss: compares depth with depth."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._loss = loss

    def __call__(self, output: StudentOutput, depth: Tensor) -> LossParts:
        total = self._loss(output.depth, depth)
        nothing = torch.zeros_like(total)
        return LossParts(total, nothing, nothing)
