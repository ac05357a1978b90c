"""The card of a student version: what it is, where it comes from, what it scored."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from tiekd_ros.errors import InvalidSettingError, TiekdError
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.network import ARCHITECTURE

FORMAT = 1
CANDIDATE, ACCEPTED, REFUSED = "candidate", "accepted", "refused"
BASE = "base"
"""Status of a student that is a start for training and that no gate has passed."""
ROLLED_BACK = "rolled back"
"""Status of a student that the gate accepted and later frames spoke against. It goes live again
only by name."""

_TEXTS = ("architecture", "version", "created", "status", "reason", "teacher", "weights_sha256")
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
class StudentCard:
    """Everything about a student but its weights. Written as `card.json`."""

    bins: DepthBins
    input_size: InputSize
    architecture: str = ARCHITECTURE
    target: TargetWidth = field(default_factory=TargetWidth)
    focal_px: tuple[float, float] | None = None
    """Focal lengths (fx, fy) at the network's input size of the camera it was trained on."""
    version: str = ""
    parent: str | None = None
    created: str = ""
    status: str = CANDIDATE
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
            if fields.get("focal_px") is not None:
                fx, fy = fields["focal_px"]
                fields["focal_px"] = (float(fx), float(fy))
            _check_kinds(fields)
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
