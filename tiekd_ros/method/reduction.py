"""Means over a batch that several processes share.

Each process holds its part of a batch. The gradients of the processes are averaged, so the
loss of each has to be its share of the whole batch's loss times the number of processes:
dividing by its own count of valid pixels would weigh a process with few of them too much.
In one process all of this is the plain mean.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_reduce

_sharing = False


@contextlib.contextmanager
def shared_batches() -> Iterator[None]:
    """Within the block, batches are shared by all processes of the default group.

    Every process has to compute the same losses in the same order.
    """
    global _sharing
    before, _sharing = _sharing, dist.is_available() and dist.is_initialized()
    try:
        yield
    finally:
        _sharing = before


def processes() -> int:
    """Return how many processes share a batch."""
    return dist.get_world_size() if _sharing else 1


def batch_count(mask: Tensor) -> Tensor:
    """Return how many elements are True in the whole batch, a scalar."""
    count = mask.sum()
    if _sharing:
        dist.all_reduce(count)
    return count


def batch_sum(local: Tensor) -> Tensor:
    """Return the sum over all processes of a scalar or small tensor, differentiable.

    For losses that are no mean over pixels: computed from such sums, the loss is the same
    number in every process, and the average of the gradients is the whole batch's gradient.
    """
    if not _sharing:
        return local
    total: Tensor = all_reduce(local)
    return total


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return this process's share of the whole batch's mean over `mask`; 0 where that is empty.

    Args:
        values: any shape.
        mask: bool, the same shape; values where it is False may be NaN.
    """
    total = torch.where(mask, values, torch.zeros_like(values)).sum()
    return total * processes() / batch_count(mask).clamp_min(1)
