"""One optimiser step, and what holds for every training: no step with a value not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.method.losses import LossParts


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """Return a network's batch norms, those that are synchronised between processes too."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def freeze_batch_norms(network: nn.Module) -> None:
    """Let batch norms of a network in training mode use their statistics, not the batch's."""
    for norm in batch_norms(network):
        norm.eval()


def norm_statistics(network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Return each running statistic of a network's batch norms with a copy of it."""
    return [(b, b.detach().clone()) for norm in batch_norms(network) for b in norm.buffers()]


@torch.no_grad()
def restore_norms(statistics: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Bring running statistics back to their copies."""
    for current, before in statistics:
        current.copy_(before)


@torch.no_grad()
def average_batch_norms(
    network: nn.Module, batches: Iterable[Tensor], frozen: nn.Module | None = None
) -> None:
    """Replace the running statistics by their average over these batches of images.

    Where batches are small, an exponential average would remember the last few only.

    Args:
        network: is left in training mode.
        batches: normalised images, (B, 3, H, W).
        frozen: a part of the network whose batch norms stay as they are.
    """
    kept = [] if frozen is None else batch_norms(frozen)
    norms = [norm for norm in batch_norms(network) if norm not in kept]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    network.train()
    for norm in kept:
        norm.eval()
    for images in batches:
        network(images)
    for norm in norms:
        norm.momentum = 0.1


_BAD_STEPS_IN_A_ROW = 5


class TrainingError(TiekdError):
    """Training cannot go on; the network is as it was after its last good step."""


class Step(NamedTuple):
    """A step that was done: detached scalars."""

    parts: LossParts
    gradient_norm: Tensor  # before clipping


@dataclass
class Stepper:
    """Does optimiser steps on a network in place.

    Attributes:
        network: what is called with a batch; it may wrap the network for several processes.
        optimizer: its learning rates are set at every step, see `make_optimizer`.
        loss: takes the network's raw output and the teacher's depth.
        clip_norm: gradients are clipped to this norm.
        frozen: the part of the network whose batch norms keep their statistics, if any.
        everywhere: whether something that holds here holds in all processes that share the
            batch; they have to do or skip a step together.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Tensor, Tensor], LossParts]
    _: KW_ONLY
    clip_norm: float
    frozen: nn.Module | None
    everywhere: Callable[[Tensor], bool] = bool

    def step(self, images: Tensor, depth: Tensor, rate: float) -> Step | None:
        """Do one step, or nothing where loss or gradient is not finite.

        Nothing means: weights, optimizer and batch norms are as they were.

        Args:
            images: normalised, (B, 3, Hn, Wn).
            depth: metres, (B, 1, Hn, Wn), NaN = unknown.
            rate: learning rate.
        """
        self.network.train()
        if self.frozen is not None:
            freeze_batch_norms(self.frozen)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get(_SHARE, 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        statistics = [] if self.frozen is self.network else norm_statistics(self.network)
        parts = self.loss(self.network(images), depth)  # in here they change
        if not self.everywhere(torch.isfinite(parts.total)):
            restore_norms(statistics)
            return None
        parts.total.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.clip_norm)
        if not bool(torch.isfinite(norm)):  # gradients are the same in all processes by now
            restore_norms(statistics)
            return None
        self.optimizer.step()
        return Step(LossParts(*(part.detach() for part in parts)), norm.detach())


_SHARE = "rate_share"


def make_optimizer(
    network: nn.Module, rate: float, weight_decay: float, backbone_share: float = 1.0
) -> torch.optim.Optimizer:
    """Return AdamW for all of a network, where torch can with all parameters in one go.

    Parameter by parameter, AdamW takes five times as long on a CPU, a twentieth of a step.

    Args:
        network: one with a submodule `backbone`, where that learns at another rate.
        rate: the learning rate.
        weight_decay: AdamW's.
        backbone_share: of the learning rate, that of the backbone.
    """
    parameters: Any = list(network.parameters())
    if backbone_share != 1.0:
        slow = list(network.get_submodule("backbone").parameters())
        known = {id(parameter) for parameter in slow}
        parameters = [
            {"params": [p for p in parameters if id(p) not in known]},
            {"params": slow, _SHARE: backbone_share},
        ]
    try:
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=weight_decay, fused=True)
    except RuntimeError:  # before torch 2.4 there was none for a CPU
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=weight_decay)


@dataclass
class BadSteps:
    """Counts the steps that were skipped and ends a training that does nothing else."""

    total: int = 0
    in_a_row: int = 0

    def good(self) -> None:
        """Note a step that was done."""
        self.in_a_row = 0

    def bad(self, step: int) -> None:
        """Note that step number `step` was skipped; TrainingError if so were several before it."""
        self.total += 1
        self.in_a_row += 1
        if self.in_a_row >= _BAD_STEPS_IN_A_ROW:
            raise TrainingError(
                f"loss or gradient not finite in {self.in_a_row} steps in a row (step {step}); "
                "lower learning_rate, or look at the labels"
            )


def warm_up_then_cosine(peak: float, done: float) -> float:
    """Return the learning rate after a share `done` (0 to 1) of the budget.

    One cycle (Smith 2018): up for a tenth of the budget, then down along a cosine.
    """
    warm_up = 0.1
    if done < warm_up:
        return peak * (0.1 + 0.9 * done / warm_up)
    falling = (done - warm_up) / (1 - warm_up)
    return peak * max(0.5 * (1 + math.cos(math.pi * falling)), 1e-3)
