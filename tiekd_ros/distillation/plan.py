"""All settings of a distillation round in one value that crosses process borders as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field

from tiekd_ros.distillation.beside import BesideSettings
from tiekd_ros.distillation.gate import GateSettings
from tiekd_ros.distillation.losses import LossSettings
from tiekd_ros.distillation.replay import RoundSettings, StudentSettings
from tiekd_ros.distillation.samples import AugmentSettings
from tiekd_ros.distillation.trainer import TrainSettings
from tiekd_ros.distillation.watch import WatchSettings
from tiekd_ros.settings import SettingGroups


@dataclass(frozen=True)
class RoundPlan(SettingGroups):
    """What to train on, how, what has to be shown and stood; each field is a group of settings."""

    distill: RoundSettings = field(default_factory=RoundSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    gate: GateSettings = field(default_factory=GateSettings)
    watch: WatchSettings = field(default_factory=WatchSettings)
    beside: BesideSettings = field(default_factory=BesideSettings)
