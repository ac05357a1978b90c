"""The processes that share a training, and what they agree on.

Gradients are averaged by torch's DistributedDataParallel; accelerate sets it up. In one
process nothing of this is used.
"""

from __future__ import annotations

import warnings
from types import TracebackType
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from tiekd_ros.core.devices import choose_device
from tiekd_ros.core.errors import InvalidSettingError

_T = TypeVar("_T")


class Processes:
    """This process and those that it shares each batch with.

    Args:
        device: auto, cpu or cuda.
        precision: float32 or bfloat16, of the network.
        unused_layers: whether the network may have layers that the loss does not use.

    Raises:
        InvalidSettingError: there is no such device, or it lacks this precision.
    """

    def __init__(
        self, device: str = "auto", precision: str = "float32", *, unused_layers: bool = True
    ) -> None:
        on_cpu = choose_device(device).type == "cpu"
        if precision == "bfloat16" and not on_cpu and not torch.cuda.is_bf16_supported():
            raise InvalidSettingError("this GPU cannot compute in bfloat16; take float32")
        self._accelerator = Accelerator(
            cpu=on_cpu,
            mixed_precision="bf16" if precision == "bfloat16" else "no",
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused_layers)],
        )

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device: torch.device = self._accelerator.device
        return device

    @property
    def rank(self) -> int:
        """This process's number, from 0."""
        return int(self._accelerator.process_index)

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self._accelerator.num_processes)

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and reports."""
        return self.rank == 0

    def synchronise_norms(self, network: nn.Module) -> nn.Module:
        """Return the network with batch norms of the whole batch, where there are several GPUs.

        On CPUs torch has none: there each process norms its own part.
        """
        if self.count > 1 and self.device.type == "cuda":
            converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
            return converted
        return network

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return what to call in training: it averages gradients over the processes."""
        # Weights are channels last, DDP's buffers are not: it copies.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        wrapped: nn.Module = self._accelerator.prepare_model(network)
        return wrapped

    def everywhere(self, holds: Tensor) -> bool:
        """Return whether something holds in every process; all of them have to ask."""
        if self.count == 1:
            return bool(holds)
        share = holds.to(self.device, torch.int32).reshape(1)
        dist.all_reduce(share, op=dist.ReduceOp.MIN)
        return bool(share.item())

    def anywhere(self, holds: bool) -> bool:
        """Return whether something holds in any process; all of them have to ask."""
        return holds if self.count == 1 else not self.everywhere(torch.tensor(not holds))

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the processes of a tensor, in all of them."""
        if self.count == 1:
            return values
        total = values.detach().clone().to(self.device)
        dist.all_reduce(total)
        return total / self.count

    def gather(self, values: list[_T]) -> list[_T]:
        """Return the lists of all processes, joined, in all of them."""
        if self.count == 1:
            return values
        lists: list[list[_T]] = [[] for _ in range(self.count)]
        dist.all_gather_object(lists, values)
        return [value for part in lists for value in part]

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            dist.barrier()

    def __enter__(self) -> Processes:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the group; after an error without the farewell that others would wait for."""
        if self.count > 1 and kind is None:
            dist.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
