"""Batch norms' statistics: kept as they are, or averaged over the training frames."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


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
def average_batch_norms(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics by their average over these batches of images.

    Where batches are small, an exponential average would remember the last few only.
    """
    norms = batch_norms(network)
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    network.train()
    for images in batches:
        network(images)
    for norm in norms:
        norm.momentum = 0.1
