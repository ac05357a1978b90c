"""What processes started by tests of several devices do; imported by name there."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.method.metrics import batch_count, batch_sum, masked_mean, shared_batches
from tiekd_ros.training.processes import Processes


def some_loss(x: torch.Tensor) -> torch.Tensor:
    """Return a loss of a batch: a mean and a weighted one over known values, and one of its sum."""
    known, square = x.isfinite(), x.nan_to_num() ** 2
    weights = known * (1 + (square > 4))
    means = masked_mean(square, known) + masked_mean(square, weights)
    return means + batch_sum(x.nan_to_num().sum()).sin()


def add_up(parts: list[list[float]]) -> dict[str, Any]:
    """Compute a loss of a shared batch; return the averaged gradients of both processes."""
    x = torch.tensor(parts[int(os.environ["RANK"])], requires_grad=True)
    with Processes("cpu"), shared_batches():
        some_loss(x).backward()
        count = int(batch_count(x.isfinite()))
        assert x.grad is not None
        gradients = [torch.zeros_like(x.grad) for _ in parts]
        dist.all_gather(gradients, x.grad)
    return {"count": count, "gradients": [(g / len(parts)).tolist() for g in gradients]}


def fail_in_second(_argument: None) -> dict[str, Any]:
    """Raise in one process while the other waits for it."""
    with Processes("cpu"):
        if os.environ["RANK"] == "1":
            raise TiekdError("0002.png is no PNG")
        dist.barrier()
    return {}
