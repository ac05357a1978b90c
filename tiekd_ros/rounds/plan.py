"""All settings of a distillation round in one value that crosses process borders as JSON."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from tiekd_ros.core.errors import RoundRefusedError
from tiekd_ros.core.settings import SettingGroups, Settings, setting
from tiekd_ros.method.confidence import ConfidenceSettings
from tiekd_ros.method.first_student import BASE_START, StudentSettings
from tiekd_ros.method.losses import LossSettings
from tiekd_ros.method.samples import AugmentSettings
from tiekd_ros.rounds.canary import CanarySettings
from tiekd_ros.rounds.gate import GateSettings
from tiekd_ros.rounds.limits import ResourceSettings
from tiekd_ros.rounds.trainer import TrainSettings


@dataclass(frozen=True)
class RoundSettings(Settings):
    """When a round may start and what it uses."""

    min_frames: int = setting(
        40, "labelled training frames before a round can start", minimum=1, maximum=10**6
    )
    min_held_out: int = setting(
        4, "labelled held-out frames before a round can start", minimum=1, maximum=10**6
    )
    first_labels: int = setting(
        12,
        "labelled frames after which the base student, calibrated to them, is tried as a first "
        "student; 0 = never",
        minimum=0,
        maximum=10**6,
    )
    period_s: float = setting(
        0.0,
        "time between rounds that start by themselves; 0 = only when /tiekd/distill is called",
        unit="s",
        minimum=0.0,
        maximum=1e7,
    )
    drift: bool = setting(
        False,
        "start a round when labels disagree with the live student by more than when it went live "
        "(needs trust.student)",
    )
    min_new_labels: int = setting(
        30,
        "new labelled frames that a round by period or drift waits for; by period twice as many "
        "after each refused round, up to 8 times",
        minimum=1,
        maximum=10**6,
    )
    max_per_hour: int = setting(
        12,
        "rounds in an hour after which none starts by period or drift; 0 = any number",
        minimum=0,
        maximum=10**4,
    )
    only_while_charging: bool = setting(
        False,
        "start rounds by period or drift only while the last message on the topic charging "
        "(std_msgs/Bool) says true",
    )
    max_frames: int = setting(
        400,
        "training frames of a round: half of them the newest, half drawn from all earlier ones",
        minimum=1,
        maximum=10**6,
    )
    max_held_out: int = setting(100, "held-out frames that judge a round", minimum=1, maximum=10**6)


def check_enough(train: int, held_out: int, settings: RoundSettings) -> None:
    """Refuse a round without enough labelled frames.

    Raises:
        RoundRefusedError: with the numbers there are and the numbers needed.
    """
    if train < settings.min_frames or held_out < settings.min_held_out:
        raise RoundRefusedError(
            f"too few labelled frames: {train} for training (need {settings.min_frames}), "
            f"{held_out} held out (need {settings.min_held_out}); keep the camera moving and the "
            "teacher running, then call again"
        )


_LEAST_CALIBRATED = 4  # two halves of two frames


def check_calibration(frames: int, live: str | None, settings: StudentSettings) -> None:
    """Refuse a calibration of the base student where it cannot be or is not needed.

    Args:
        frames: with a label.
        live: the live student.
        settings: of a first student.

    Raises:
        RoundRefusedError: a student is live, no first student starts from a base, or there are
            too few frames to fit to some and to judge by others.
    """
    if live is not None:
        raise RoundRefusedError(f"student {live} is live, and the base is for the time before one")
    if settings.weights != BASE_START:
        raise RoundRefusedError(
            f"there is no base student to calibrate: student.start is {settings.start}, and the "
            f"architecture {settings.architecture}"
        )
    if frames < _LEAST_CALIBRATED:
        raise RoundRefusedError(
            f"too few frames with a label of known depth: {frames}, and a calibration needs "
            f"{_LEAST_CALIBRATED}; keep the camera moving and the teacher running"
        )


def choose_frames(ids: Sequence[int], limit: int, seed: int) -> list[int]:
    """Return at most `limit` of the ids (oldest first): the newest, and a draw of the older.

    Half of the places go to the newest frames, so that the place as it is now is learnt; the
    other half is drawn from all earlier ones, so that the place as it was is not forgotten.
    """
    if len(ids) <= limit:
        return list(ids)
    newest = list(ids[len(ids) - (limit + 1) // 2 :])
    older = random.Random(seed).sample(list(ids[: len(ids) - len(newest)]), limit - len(newest))
    return sorted(older) + newest


@dataclass(frozen=True)
class RoundPlan(SettingGroups):
    """What to train on, how, what has to be shown and stood; each field is a group of settings."""

    distill: RoundSettings = field(default_factory=RoundSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    gate: GateSettings = field(default_factory=GateSettings)
    confidence: ConfidenceSettings = field(default_factory=ConfidenceSettings)
    canary: CanarySettings = field(default_factory=CanarySettings)
    resources: ResourceSettings = field(default_factory=ResourceSettings)
