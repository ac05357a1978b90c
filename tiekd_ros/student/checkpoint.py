"""Students on disk: `student.safetensors` beside `card.json`, checked before they are believed."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tiekd_ros.core.errors import InvalidSettingError, TiekdError
from tiekd_ros.core.settings import TextEnum
from tiekd_ros.student.architecture import InputSize, StudentNetwork
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.networks import (
    ARCHITECTURES,
    DEFAULT_ARCHITECTURE,
    build_network,
    materialise,
    meta_network,
)

FORMAT = 1


class StudentStatus(TextEnum):
    """How far a student has been judged."""

    CANDIDATE = "candidate"
    """Not judged: imported, or trained offline."""
    ACCEPTED = "accepted"
    """By the gate."""
    REFUSED = "refused"
    """By the gate."""
    ROLLED_BACK = "rolled back"
    """Accepted by the gate, and found worse on later frames; it goes live again only by name."""
    BASE = "base"
    """A start for training, which no gate has passed."""


LEAST_SPREAD = 1e-3
"""Of std / mean: less says no more."""
_NOVELTY_COST = 5.0  # of ln confidence, for novelty as large again as is known

_TEXTS = ("architecture", "version", "created", "reason", "teacher", "weights_sha256")
_TABLES = ("frames", "scores", "training")


class CheckpointError(TiekdError):
    """A student on disk cannot be used; the message says which file and why."""


@dataclass(frozen=True)
class TargetWidth:
    """How wide the target was that the student learnt: sigma(d) = max(floor, relative * d).

    It makes the confidence comparable between students: 1 means "as sharp as it was taught".
    """

    floor_m: float = 0.04
    relative: float = 0.05

    def __post_init__(self) -> None:
        if not (0 < self.floor_m < math.inf and 0 <= self.relative < math.inf):
            raise ValueError(f"target width {self} must have a positive floor, in metres")

    def sigma(self, depth: Tensor, bins: DepthBins) -> Tensor:
        """Return the Gaussian's standard deviation in metres at depths in metres.

        Never less than half a bin: a Gaussian much narrower than a bin cannot stand for a
        depth between two centres.
        """
        least = (0.5 * bins.width_at(depth)).clamp_min(self.floor_m)
        return torch.maximum(depth * self.relative, least)


@dataclass(frozen=True)
class ConfidenceScale:
    """What makes a student's spread a confidence, fitted on held-out frames.

    With std / mean = u the confidence is sigmoid(offset - slope * ln u): how often depth is off by
    at most `tolerance` where the student says so. It falls where what is seen is newer than
    `known_novelty`, and all but vanishes at twice that.
    """

    tolerance: float
    offset: float
    slope: float
    known_novelty: float = 0.0
    """Novelty that nineteen in twenty of these frames have at most; 0 = not known."""

    def __post_init__(self) -> None:
        values = (self.tolerance, self.offset, self.slope, self.known_novelty)
        if not all(map(math.isfinite, values)) or self.slope < 0 or self.known_novelty < 0:
            raise ValueError(
                f"confidence scale {self} must be finite, slope and novelty not below 0"
            )

    def confidence(self, relative_std: Tensor, novelty: Tensor | None) -> Tensor:
        """Return the confidence, 0..1, for std / mean and novelty, of one shape."""
        sure = (self.offset - self.slope * relative_std.clamp_min(LEAST_SPREAD).log()).sigmoid()
        if novelty is None or not self.known_novelty:
            return sure
        beyond = (novelty / self.known_novelty - 1).clamp_min(0.0)
        return sure * (-_NOVELTY_COST * beyond).exp()


@dataclass(frozen=True)
class StudentCard:
    """Everything about a student but its weights. Written as `card.json`."""

    bins: DepthBins
    input_size: InputSize
    architecture: str = DEFAULT_ARCHITECTURE
    target: TargetWidth = field(default_factory=TargetWidth)
    confidence: ConfidenceScale | None = None
    """None, in cards of before and of students that no round has judged: `TargetWidth` is used."""
    focal_px: tuple[float, float] | None = None
    """Focal lengths (fx, fy) at the network's input size of the camera it was trained on."""
    version: str = ""
    parent: str | None = None
    created: str = ""
    status: StudentStatus = StudentStatus.CANDIDATE
    reason: str = ""
    round: int | None = None
    teacher: str = ""
    frames: dict[str, int] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    weights_sha256: str = ""

    def to_json(self) -> str:
        """Return the card as text."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> StudentCard:
        """Read a card; `source` names the file in errors.

        Raises:
            CheckpointError: no JSON, a newer format, a field missing, unknown or invalid.
        """
        try:
            values = json.loads(text)
            if not isinstance(values, Mapping):
                raise CheckpointError(f"{source}: a card is a JSON object, got {type(values)}")
            fields = dict(values)
            found = fields.pop("format", None)
            if found != FORMAT:
                raise CheckpointError(
                    f"{source}: card format {found!r}, this program reads {FORMAT}; "
                    "use the version of tiekd_ros that wrote it"
                )
            fields["bins"] = DepthBins.from_mapping(fields["bins"])
            fields["input_size"] = InputSize.from_mapping(fields["input_size"])
            fields["target"] = TargetWidth(**fields["target"])
            if fields.get("confidence") is not None:
                fields["confidence"] = ConfidenceScale(**fields["confidence"])
            if fields.get("focal_px") is not None:
                fx, fy = fields["focal_px"]
                fields["focal_px"] = (float(fx), float(fy))
            _check_kinds(fields)
            if "status" in fields:
                fields["status"] = StudentStatus(fields["status"])
            return cls(**fields)
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, InvalidSettingError):
                raise CheckpointError(f"{source}: {error}") from error
            raise CheckpointError(
                f"{source} is no valid student card ({type(error).__name__}: {error}); "
                "promote another version, or remove this one's folder"
            ) from error


def _check_kinds(fields: Mapping[str, Any]) -> None:
    for names, kind in ((_TEXTS, str), (_TABLES, dict)):
        for name in names:
            if name in fields and not isinstance(fields[name], kind):
                raise TypeError(f"{name} must be {kind.__name__}, got {fields[name]!r}")


WEIGHTS = "student.safetensors"
CARD = "card.json"

_NAMED = 3  # weights of each kind that a message names


@dataclass(frozen=True)
class Student:
    """A network and its card; they belong together."""

    card: StudentCard
    network: StudentNetwork

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
    check_finite(state, "the student to be saved")
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
    """Read the card in `folder`; CheckpointError where it is missing or invalid."""
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
    if card.architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{path} holds a {card.architecture!r} student; this program runs "
            f"{', '.join(ARCHITECTURES)}"
        )
    try:
        state = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is no safetensors file: {error}") from error
    plan = meta_network(card.architecture, card.bins)
    state = plan.absent_weights() | state
    misfits = describe_misfits(state, plan.state_dict())
    if misfits:
        raise CheckpointError(f"{path} does not fit its architecture: {misfits}")
    check_finite(state, str(path))
    return Student(card, materialise(plan, state))


def write_durably(path: Path, data: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_durably(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all: whenever a process is killed, the old one or the new."""
    temporary = path.with_name(f".writing-{os.getpid()}-{path.name}")
    try:
        write_durably(temporary, data)
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has a folder's names."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def describe_misfits(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Say which weights are missing, unknown or misshapen: counts and first names; "" if none."""
    missing = sorted(set(wanted) - set(state))
    extra = sorted(set(state) - set(wanted))
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(wanted[k].shape)}"
        for k in sorted(set(state) & set(wanted))
        if state[k].shape != wanted[k].shape
    ]
    problems = [
        f"{len(names)} {what} (first: {', '.join(names[:_NAMED])})"
        for what, names in (("missing", missing), ("unknown", extra), ("misshapen", shapes))
        if names
    ]
    return "; ".join(problems)


def check_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that are not finite (CheckpointError); `source` says whose they are."""
    floating = [tensor for tensor in state.values() if tensor.is_floating_point()]
    if bool(torch.stack([tensor.sum().cpu() for tensor in floating]).isfinite().all()):
        return  # a sum shows every value that is not finite; it may also be too large itself
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{source}: weight {name} has values that are not finite")
