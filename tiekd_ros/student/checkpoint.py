"""Students on disk: `student.safetensors` beside `card.json`, checked before they are believed."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tiekd_ros.student.card import CheckpointError, StudentCard
from tiekd_ros.student.network import ARCHITECTURE, FastStudent, build_network

WEIGHTS = "student.safetensors"
CARD = "card.json"


@dataclass(frozen=True)
class Student:
    """A network and its card; they belong together."""

    card: StudentCard
    network: FastStudent

    @classmethod
    def fresh(cls, card: StudentCard) -> Student:
        """Return an untrained student as the card describes it."""
        return cls(card, build_network(card.architecture, card.bins))


def save_student(folder: Path, student: Student) -> StudentCard:
    """Write weights and card into an existing folder, through to the disk.

    Returns:
        The card with the hash of the weights.

    Raises:
        CheckpointError: a weight is not finite, or the disk refuses.
    """
    state = {k: v.detach().cpu().contiguous() for k, v in student.network.state_dict().items()}
    _check_finite(state, "the student to be saved")
    data = safetensors.torch.save(state, {"architecture": student.card.architecture})
    card = replace(student.card, weights_sha256=hashlib.sha256(data).hexdigest())
    try:
        write_durably(folder / WEIGHTS, data)
        write_durably(folder / CARD, card.to_json().encode())
    except OSError as error:
        raise CheckpointError(
            f"cannot write the student to {folder}: {error.strerror}; make room and try again"
        ) from error
    return card


def load_card(folder: Path) -> StudentCard:
    """Read the card in `folder`.

    Raises:
        CheckpointError: it is missing or invalid.
    """
    path = folder / CARD
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    return StudentCard.from_json(text, str(path))


def load_student(folder: Path) -> Student:
    """Read a student and check it: hash, architecture, names, shapes, finite weights.

    Raises:
        CheckpointError: with the file and what is wrong with it.
    """
    card = load_card(folder)
    path = folder / WEIGHTS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != card.weights_sha256:
        raise CheckpointError(
            f"{path} ({len(data)} bytes) is not the file its card describes: it is truncated or "
            "was changed; promote another version"
        )
    if card.architecture != ARCHITECTURE:
        raise CheckpointError(
            f"{path} holds a {card.architecture!r} student; this program runs {ARCHITECTURE!r}"
        )
    try:
        state = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is no safetensors file: {error}") from error
    student = Student.fresh(card)
    _check_layout(state, student.network.state_dict(), path)
    _check_finite(state, str(path))
    student.network.load_state_dict(state)
    student.network.eval()
    return student


def write_durably(path: Path, data: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _check_layout(state: dict[str, Tensor], wanted: dict[str, Tensor], path: Path) -> None:
    missing = sorted(set(wanted) - set(state))
    extra = sorted(set(state) - set(wanted))
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(wanted[k].shape)}"
        for k in sorted(set(state) & set(wanted))
        if state[k].shape != wanted[k].shape
    ]
    problems = [
        f"{len(names)} {what} (first: {names[0]})"
        for what, names in (("missing", missing), ("unknown", extra), ("misshapen", shapes))
        if names
    ]
    if problems:
        raise CheckpointError(f"{path} does not fit its architecture: {', '.join(problems)}")


def _check_finite(state: dict[str, Tensor], source: str) -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{source}: weight {name} has values that are not finite")
