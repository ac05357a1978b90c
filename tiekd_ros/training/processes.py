"""The processes that share a training: torchrun's agent starts them, one a device.

Gradients are averaged by torch's DistributedDataParallel; accelerate sets it up. In one
process nothing of this is used.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import pickle
import signal
import sys
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, check_cuda_p2p_ib_support
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tiekd_ros.core.devices import choose_device, cores
from tiekd_ros.core.errors import InvalidSettingError, TiekdError
from tiekd_ros.method.stepping import TrainingError

_T = TypeVar("_T")

Work = Callable[[Any], dict[str, Any]]
"""A function of a module, called with something that can be pickled; returns plain values."""

_OUTCOME, _WORK = "outcome.json", "work.pickle"
_PR_SET_PDEATHSIG = 1
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)  # that the agent takes


def run_on_devices(devices: int, device: str, work: Work, argument: Any) -> dict[str, Any]:
    """Call `work(argument)` in one process per device and wait for all of them.

    Under torchrun or accelerate launch, which started the processes already, this is one of
    them. With one device it is this process. SIGINT and SIGTERM are passed on to the processes.

    Args:
        devices: how many; 0 = as torchrun says, else 1.
        device: auto, cpu or cuda.
        work: what to do.
        argument: what it gets.

    Returns:
        What the first process returned.

    Raises:
        InvalidSettingError: more devices than there are, or another number than torchrun's.
        TiekdError: the message of the first process to fail.
    """
    started = int(os.environ.get("WORLD_SIZE", "0"))
    if started and devices not in (0, started):
        raise InvalidSettingError(
            f"torchrun started {started} processes, but --devices is {devices}; leave it out"
        )
    if started or devices <= 1:
        return work(argument)
    kind, there = choose_device(device).type, torch.cuda.device_count()
    if kind == "cuda" and devices > there:
        raise InvalidSettingError(
            f"--devices {devices}, but torch sees {there} CUDA devices; give at most {there}"
        )
    if kind == "cuda" and not check_cuda_p2p_ib_support():
        os.environ.update(NCCL_P2P_DISABLE="1", NCCL_IB_DISABLE="1")
    # Read by OpenMP when torch starts in the processes.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // devices)))
    # A validation may be under way when a signal comes, and a snapshot is written after it.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "3600")
    with tempfile.TemporaryDirectory(prefix="tiekd-train-") as folder:
        return _launch(devices, work, argument, Path(folder))


def _launch(count: int, work: Work, argument: Any, folder: Path) -> dict[str, Any]:
    """Start the processes as torchrun does, and return what the first one wrote to the folder."""
    (folder / _WORK).write_bytes(pickle.dumps((work, argument)))
    for name in list(logging.root.manager.loggerDict):  # each has a level of its own
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs")),
    )
    ended = ""
    with _signal_handlers_kept():
        try:
            launch = elastic_launch(config, sys.executable)
            launch("-m", "tiekd_ros.training.processes", str(folder), str(os.getpid()))
        except ChildFailedError as error:
            ended = f"process {min(error.failures)} ended with status " + ", ".join(
                str(failure.exitcode) for _, failure in sorted(error.failures.items())
            )
        except SignalException as error:
            ended = f"ended by {error.sigval.name}"
    told = sorted(folder.glob("*.error"), key=lambda path: path.stat().st_mtime_ns)
    if told:
        raise TrainingError(told[0].read_text())
    try:
        outcome: dict[str, Any] = json.loads((folder / _OUTCOME).read_text())
    except FileNotFoundError:
        raise TrainingError(
            f"the training came to no end ({ended}); continue with --resume"
        ) from None
    return outcome


@contextlib.contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Put back the handlers that the agent replaces."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _work_in_child(folder: Path, parent: int) -> None:
    """Do the work of a process that `_launch` started."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))  # no child outlives it
    if os.getppid() != parent:
        os._exit(1)
    work, argument = pickle.loads((folder / _WORK).read_bytes())
    rank = os.environ["RANK"]
    try:
        outcome = work(argument)
    except TiekdError as error:
        (folder / f"{rank}.error").write_text(str(error))
        os._exit(1)  # the others may wait for this one in a collective: no farewell
    except Exception:
        if any(folder.glob("*.error")):  # no more than the echo of another's error
            os._exit(1)
        raise
    if rank == "0":
        (folder / _OUTCOME).write_text(json.dumps(outcome))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # all is done and closed; destroying gloo's threads at exit may abort


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

    def synchronise_norms(self, network: nn.Module) -> None:
        """Give a network batch norms of the whole batch, in place, where there are several GPUs.

        On CPUs torch has none: there each process norms its own part.
        """
        if self.count > 1 and self.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(network)

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

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave the group; after an error without the farewell that others would wait for."""
        if self.count > 1 and kind is None:
            dist.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)


if __name__ == "__main__":
    _work_in_child(Path(sys.argv[1]), int(sys.argv[2]))
