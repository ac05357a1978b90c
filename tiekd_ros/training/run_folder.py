"""The folder of one run: its settings, its lock, its students, its snapshots.

Layout: `run.json` (settings), `snapshots/NNNNNNNN` (all that a killed run needs to go on as if
nothing had happened), `tensorboard/`, `metrics.jsonl`, `students/NNNNNNNN` (students after so many
steps) and the links `student` (the best one) and `student_last`, whose folders have the format of
the registry. A folder is written under a temporary name, synced and renamed, so what has a number
is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.method.stepping import TrainingError
from tiekd_ros.student.architecture import StudentNetwork
from tiekd_ros.student.checkpoint import (
    Student,
    StudentCard,
    replace_durably,
    save_student,
    sync_folder,
    write_durably,
)

SETTINGS = "run.json"
BEST, LAST = "student", "student_last"
_LOCK = ".lock"
_OWN_FILES = {SETTINGS, _LOCK}
FORMAT = 1
_TENSORS, _VALUES = "state.safetensors", "state.json"
_WRITING = ".writing-"
_NETWORK, _OPTIMIZER = "network.", "optimizer."
_DAMAGED = (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError)
_held: set[IO[str]] = set()


def _close_locks() -> None:
    """Close the locks that a forked reader got: it may outlive the training it reads for."""
    for lock in _held:
        lock.close()
    _held.clear()


os.register_at_fork(after_in_child=_close_locks)


class RunFolderError(TiekdError):
    """A run cannot start, or go on, in this folder."""


class RunFolder:
    """Where one run keeps everything; used by one training at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def snapshots(self) -> Path:
        """The folder of snapshots."""
        return self.root / "snapshots"

    @property
    def best(self) -> Path:
        """The best student: a folder with weights and card."""
        return self.root / BEST

    @contextlib.contextmanager
    def opened(self, settings: Mapping[str, Any], *, resume: bool) -> Iterator[None]:
        """Hold the folder for the run with these settings (plain values by group and name).

        Raises:
            RunFolderError: another training uses it, it is not empty and `resume` is not set,
                or it holds a run with other settings. What was refused, or killed, before it
                wrote a snapshot or a student is no run: it does not count.
        """
        with contextlib.ExitStack() as held:
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                lock = held.enter_context((self.root / _LOCK).open("w"))
            except OSError as error:
                raise RunFolderError(
                    f"cannot write to {self.root}: {error.strerror}; give another --output"
                ) from error
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunFolderError(
                    f"another training is running in {self.root}; wait for it or give another "
                    "--output"
                ) from error
            _held.add(lock)
            held.callback(_held.discard, lock)
            self._begin(settings, resume)
            yield

    def _begin(self, settings: Mapping[str, Any], resume: bool) -> None:
        path = self.root / SETTINGS
        if path.exists() and not self._is_leftover(path, settings):
            if not resume:
                raise RunFolderError(
                    f"{self.root} holds a run already: continue it with --resume, or give another "
                    "--output"
                )
            self._compare(path, settings)
            return
        others = sorted({p.name for p in self.root.iterdir()} - _OWN_FILES)
        others = [name for name in others if not name.startswith(_WRITING)]
        if others and not path.exists():
            raise RunFolderError(
                f"{self.root} is not empty (it holds {', '.join(others[:3])}) and no run of "
                "tiekd train; give an empty or new folder with --output"
            )
        try:
            replace_durably(path, (json.dumps(settings, indent=2) + "\n").encode())
        except OSError as error:
            raise RunFolderError(
                f"cannot write {path}: {error.strerror}; give another --output"
            ) from error

    def _is_leftover(self, path: Path, settings: Mapping[str, Any]) -> bool:
        """Return whether a file of settings is ours, of a training that wrote nothing else."""
        try:
            before = json.loads(path.read_text())
        except (OSError, ValueError):
            return False
        ours = isinstance(before, dict) and before.keys() == settings.keys()
        students = self.root / "students"
        return ours and not (_has_numbers(self.snapshots) or _has_numbers(students))

    def _compare(self, path: Path, settings: Mapping[str, Any]) -> None:
        try:
            before = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{path} cannot be read ({error}); train anew") from error
        plain = json.loads(json.dumps(settings))
        differences = _differences(before, plain)
        if differences:
            raise RunFolderError(
                f"the run in {self.root} cannot continue with other settings: "
                f"{'; '.join(differences[:5])}. Give the same, or train into another --output"
            )

    def export(self, student: Student, step: int, *, best: bool) -> StudentCard:
        """Write the student after `step` steps as the last and, if so, the best one.

        Raises:
            CheckpointError: a weight is not finite, or the disk refuses.
            TrainingError: the disk refuses.
        """
        folder = self.root / "students" / f"{step:08d}"
        temporary = folder.with_name(f"{_WRITING}{os.getpid()}")
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            card = save_student(temporary, student)
            sync_folder(temporary)
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed right after it
            temporary.rename(folder)
            sync_folder(folder.parent)  # the links must not last longer than what they name
            for link in (LAST, BEST) if best else (LAST,):
                self._link(link, folder)
            sync_folder(self.root)
        except OSError as error:
            raise TrainingError(
                f"cannot write the student to {folder}: {error.strerror}; make room, then "
                "continue with --resume"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._remove_unused(folder.parent)
        return card

    def _link(self, name: str, folder: Path) -> None:
        temporary = self.root / f"{_WRITING}{os.getpid()}-{name}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(Path(folder.parent.name) / folder.name)
        temporary.replace(self.root / name)

    def _remove_unused(self, students: Path) -> None:
        used = {(self.root / name).resolve() for name in (BEST, LAST)}
        for folder in students.iterdir():
            if folder.resolve() not in used:
                shutil.rmtree(folder, ignore_errors=True)


def _has_numbers(folder: Path) -> bool:
    """Return whether a folder holds anything whole, which has a number for a name."""
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Name what differs between two nested tables."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            found
            for key in [*before, *(k for k in now if k not in before)]
            for found in _differences(
                before.get(key), now.get(key), f"{name}.{key}" if name else str(key)
            )
        ]
    return [] if before == now else [f"{name} was {before!r}, now {now!r}"]


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
            except (*_DAMAGED, RuntimeError) as error:
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
    except _DAMAGED:
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
    if isinstance(network, StudentNetwork):
        weights = network.absent_weights() | weights
    network.load_state_dict(weights)
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
