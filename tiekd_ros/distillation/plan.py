"""All settings of a distillation round in one value that crosses process borders as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from tiekd_ros.distillation.gate import GateSettings
from tiekd_ros.distillation.losses import LossSettings
from tiekd_ros.distillation.replay import RoundSettings, StudentSettings
from tiekd_ros.distillation.samples import AugmentSettings
from tiekd_ros.distillation.trainer import TrainSettings
from tiekd_ros.errors import InvalidSettingError


@dataclass(frozen=True)
class RoundPlan:
    """What to train on, how, and what has to be shown; each field is a group of settings."""

    distill: RoundSettings = field(default_factory=RoundSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    gate: GateSettings = field(default_factory=GateSettings)

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Return plain values by group and name, fit for JSON."""
        return {f.name: getattr(self, f.name).as_dict() for f in fields(self)}

    @classmethod
    def from_mapping(cls, groups: Mapping[str, Mapping[str, Any]]) -> RoundPlan:
        """Build from groups of values; what is missing keeps its default.

        Raises:
            InvalidSettingError: an unknown group or name, or a bad value.
        """
        kinds = cls.groups()
        unknown = sorted(set(groups) - set(kinds))
        if unknown:
            raise InvalidSettingError(
                f"unknown group of settings {unknown[0]!r}: known are {', '.join(kinds)}"
            )
        return cls(**{name: kinds[name].from_mapping(values) for name, values in groups.items()})

    @classmethod
    def groups(cls) -> dict[str, type[Any]]:
        """Return the groups' names and the settings that each is made of."""
        default = cls()
        return {f.name: type(getattr(default, f.name)) for f in fields(cls)}
