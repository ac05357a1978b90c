"""Snapshots of a training: all that a killed run needs to go on as if nothing had happened.

Layout: `snapshots/00000120/{state.safetensors, state.json}`. A snapshot is written under a
temporary name, synced and renamed, so what has a number is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from tiekd_ros.method.stepping import TrainingError
from tiekd_ros.student.checkpoint import sync_folder, write_durably

FORMAT = 1
_TENSORS, _VALUES = "state.safetensors", "state.json"
_WRITING = ".writing-"
_NETWORK, _OPTIMIZER = "network.", "optimizer."


@dataclass
class RunState:
    """Where a run stands, beside its tensors."""

    step: int = 0
    skipped: int = 0
    bad_in_a_row: int = 0
    best: dict[str, float] = field(default_factory=dict)
    """Scores of the best validation so far, empty while there is none."""
    scores: dict[str, float] = field(default_factory=dict)
    """Scores of the last validation, empty while there is none."""
    bad_items: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


class Snapshots:
    """The snapshots of one run, the last few of which are kept."""

    def __init__(self, root: Path, keep: int) -> None:
        self.root = root
        self._keep = keep

    def steps(self) -> list[int]:
        """Return the steps after which there are snapshots, in order."""
        if not self.root.is_dir():
            return []
        return sorted(int(p.name) for p in self.root.iterdir() if p.name.isdigit())

    def save(self, state: RunState, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write a snapshot; remove the oldest ones, and later ones that were passed over.

        Raises:
            TrainingError: a tensor is not finite, or the disk refuses; earlier snapshots stay as
                they are.
        """
        temporary = self.root / f"{_WRITING}{os.getpid()}"
        final = self.root / f"{state.step:08d}"
        tensors = {**_network_tensors(network), **_optimizer_tensors(network, optimizer)}
        _check_finite(tensors, state.step)
        data = safetensors.torch.save(tensors)
        digest = hashlib.sha256(data).hexdigest()
        values = {"format": FORMAT, "sha256": digest, **vars(state)}
        try:
            if _is_whole(final):
                return
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            write_durably(temporary / _TENSORS, data)
            write_durably(temporary / _VALUES, json.dumps(values, indent=2).encode())
            sync_folder(temporary)
            shutil.rmtree(final, ignore_errors=True)  # it is damaged, if it is there
            temporary.rename(final)
            sync_folder(self.root)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise TrainingError(
                f"cannot write a snapshot to {final}: {error.strerror}; make room, then continue "
                "with --resume"
            ) from error
        steps = self.steps()
        stale = [step for step in steps if step > state.step]  # not whole: this run began before
        for step in steps[: len(steps) - len(stale)][: -self._keep] + stale:
            shutil.rmtree(self.root / f"{step:08d}", ignore_errors=True)

    def clean(self) -> None:
        """Remove what killed writers left behind."""
        if self.root.is_dir():
            for leftover in self.root.glob(f"{_WRITING}*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def load_latest(
        self, network: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[RunState, list[str]]:
        """Bring network and optimizer to the latest snapshot that is whole.

        Returns:
            The state, a fresh one where there is no snapshot; and what is wrong with later
            snapshots that were passed over.
        """
        problems: list[str] = []
        for step in reversed(self.steps()):
            folder = self.root / f"{step:08d}"
            try:
                state, tensors = _read(folder)
                _restore(network, optimizer, tensors)
                return state, problems
            except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
                problems.append(f"{folder} is passed over: {error}")
            except safetensors.SafetensorError as error:
                problems.append(f"{folder} is passed over: {error}")
        if problems:
            raise TrainingError(
                f"no snapshot in {self.root} can be used ({problems[0]}); train again into an "
                "empty folder"
            )
        return RunState(), problems


def _is_whole(folder: Path) -> bool:
    try:
        _read(folder)
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
        return False
    return True


def _read(folder: Path) -> tuple[RunState, dict[str, Tensor]]:
    values: dict[str, Any] = json.loads((folder / _VALUES).read_text())
    if values.pop("format", None) != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    data = (folder / _TENSORS).read_bytes()
    if hashlib.sha256(data).hexdigest() != values.pop("sha256"):
        raise ValueError("its tensors are damaged")
    return RunState(**values), safetensors.torch.load(data)


def _check_finite(tensors: dict[str, Tensor], step: int) -> None:
    bad = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise TrainingError(
            f"after step {step}, {len(bad)} of {len(tensors)} tensors are not finite (first: "
            f"{bad[0]}), so no snapshot is written; train again with a lower learning rate"
        )


def _network_tensors(network: nn.Module) -> dict[str, Tensor]:
    return {_NETWORK + name: _plain(tensor) for name, tensor in network.state_dict().items()}


def _optimizer_tensors(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = [name for name, _ in network.named_parameters()]
    return {
        f"{_OPTIMIZER}{names[index]}:{key}": _plain(value)
        for index, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
    }


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


def _restore(
    network: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    indices = {name: index for index, (name, _) in enumerate(network.named_parameters())}
    for name, tensor in tensors.items():
        if name.startswith(_OPTIMIZER):
            parameter, _, key = name.removeprefix(_OPTIMIZER).rpartition(":")
            state.setdefault(indices[parameter], {})[key] = tensor
    weights = {
        name.removeprefix(_NETWORK): tensor
        for name, tensor in tensors.items()
        if name.startswith(_NETWORK)
    }
    network.load_state_dict(weights)
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
