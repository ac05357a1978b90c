"""Starting one training process per device, and ending them together."""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import check_cuda_p2p_ib_support

from tiekd_ros.core.devices import choose_device, cores
from tiekd_ros.core.errors import InvalidSettingError, TiekdError
from tiekd_ros.method.stepping import TrainingError

Work = Callable[[Any], dict[str, Any]]
"""A function of a module, called with something that can be pickled; returns plain values."""

_GRACE_S = 10.0  # so long the others may take to end after one has failed
_PR_SET_PDEATHSIG = 1


def started_by_torchrun() -> int:
    """Return how many processes torchrun or accelerate launch started; 0 where none did."""
    return int(os.environ.get("WORLD_SIZE", "0"))


def run_on_devices(devices: int, device: str, work: Work, argument: Any) -> dict[str, Any]:
    """Call `work(argument)` in one process per device and wait for all of them.

    Under torchrun or accelerate launch, which started the processes already, this is one of
    them. With one device it is this process.

    Args:
        devices: how many; 0 = as torchrun says, else 1.
        device: auto, cpu or cuda.
        work: what to do.
        argument: what it gets.

    Returns:
        What the first process returned.

    Raises:
        InvalidSettingError: more devices than there are, or another number than torchrun's.
        TiekdError: what the first process to fail says.
    """
    started = started_by_torchrun()
    if started and devices not in (0, started):
        raise InvalidSettingError(
            f"torchrun started {started} processes, but --devices is {devices}; leave it out"
        )
    if started or devices <= 1:
        return work(argument)
    kind = choose_device(device).type
    there = torch.cuda.device_count()
    if kind == "cuda" and devices > there:
        raise InvalidSettingError(
            f"--devices {devices}, but torch sees {there} CUDA devices; give at most {there}"
        )
    if kind == "cuda" and not check_cuda_p2p_ib_support():
        os.environ.update(NCCL_P2P_DISABLE="1", NCCL_IB_DISABLE="1")
    # Read by OpenMP when torch starts in the children.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // devices)))
    with tempfile.TemporaryDirectory(prefix="tiekd-train-") as folder:
        return _run(devices, kind, work, argument, Path(folder))


def _run(count: int, kind: str, work: Work, argument: Any, folder: Path) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    children = [
        context.Process(target=_child, args=(rank, count, kind, work, argument, str(folder)))
        for rank in range(count)
    ]
    try:
        for child in children:
            child.start()
        with _signals_passed_to(children):
            _wait_for(children)
    finally:
        for child in children:
            if child.is_alive():
                child.kill()
    told = sorted(folder.glob("*.error"), key=lambda path: path.stat().st_mtime_ns)
    if told:
        raise TrainingError(told[0].read_text())
    statuses = [child.exitcode for child in children]
    if any(statuses):
        raise TrainingError(
            f"training processes ended with status {statuses} (a negative one is a signal); "
            "continue with --resume"
        )
    outcome: dict[str, Any] = json.loads((folder / "outcome.json").read_text())
    return outcome


def _wait_for(children: Sequence[BaseProcess]) -> None:
    """Wait until all have ended; where one fails, the others get a little time to end too."""
    deadline = None
    while alive := [child for child in children if child.is_alive()]:
        failed = any(child.exitcode for child in children)
        if failed and deadline is None:
            deadline = time.monotonic() + _GRACE_S
            for child in alive:
                child.terminate()
        if deadline is not None and time.monotonic() > deadline:
            for child in alive:
                child.kill()
        wait([child.sentinel for child in alive], timeout=1.0)


@contextlib.contextmanager
def _signals_passed_to(children: Sequence[BaseProcess]) -> Iterator[None]:
    """Let the children end, not this process, where it is asked to end."""

    def pass_on(number: int, _frame: object) -> None:
        for child in children:
            if child.pid is not None and child.is_alive():
                os.kill(child.pid, number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _child(rank: int, count: int, kind: str, work: Work, argument: Any, folder: str) -> None:
    # Of its own, so that Ctrl-C comes once, from the parent; and no child outlives the parent.
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
    os.environ.update(LOCAL_WORLD_SIZE=str(count))
    if kind == "cuda":
        torch.cuda.set_device(rank)
    # A file instead of a port: no other program can be there before us.
    rendezvous = f"file://{folder}/rendezvous"
    backend = "nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=rendezvous, rank=rank, world_size=count)
    try:
        outcome = work(argument)
    except TiekdError as error:
        (Path(folder) / f"{rank}.error").write_text(str(error))
        os._exit(1)  # the others may be waiting for this one: no farewell
    except Exception:
        if any(Path(folder).glob("*.error")):  # no more than the echo of another's error
            os._exit(1)
        raise
    if rank == 0:
        (Path(folder) / "outcome.json").write_text(json.dumps(outcome))
    if dist.is_initialized():
        dist.barrier()  # nobody leaves while another still listens to it
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # all is done and closed; destroying gloo's threads at exit may abort
