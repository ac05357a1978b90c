"""The settings of each node by group: what its parameters are made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from tiekd_ros.core.settings import SettingGroups, Settings
from tiekd_ros.diagnosis.thresholds import CompanionDiagnosticSettings, DepthDiagnosticSettings
from tiekd_ros.framelog import FrameLogSettings, LabellerSettings
from tiekd_ros.nodes.common.settings import CameraSettings, CompanionSettings, DepthSettings
from tiekd_ros.rounds.plan import RoundPlan
from tiekd_ros.teacher.client import ClientSettings
from tiekd_ros.teacher.label_source import UploadSettings
from tiekd_ros.teacher.protocol import AnswerChecks
from tiekd_ros.teacher.trust import TrustSettings


@dataclass(frozen=True)
class LearningSettings(SettingGroups):
    """Settings of what stands between the camera and a round, by group; read at start."""

    frames: FrameLogSettings = field(default_factory=FrameLogSettings)
    labels: LabellerSettings = field(default_factory=LabellerSettings)
    teacher: ClientSettings = field(default_factory=ClientSettings)
    upload: UploadSettings = field(default_factory=UploadSettings)
    checks: AnswerChecks = field(default_factory=AnswerChecks)
    trust: TrustSettings = field(default_factory=TrustSettings)


NODE_SETTINGS: Mapping[str, Mapping[str, type[Settings]]] = {
    "depth_node": {"": DepthSettings, "diagnostics": DepthDiagnosticSettings},
    "companion_node": {
        "": CompanionSettings,
        **LearningSettings.groups(),
        **RoundPlan.groups(),
        "diagnostics": CompanionDiagnosticSettings,
    },
    "camera_node": {"": CameraSettings},
}
"""Groups of parameters by node; the group '' stands at the top."""


def parameter_owners() -> dict[str, list[str]]:
    """Return the names of all parameters, and for each the nodes that have it."""
    owners: dict[str, list[str]] = {}
    for node, groups in NODE_SETTINGS.items():
        for group, kind in groups.items():
            for each in dataclasses.fields(kind):
                name = f"{group}.{each.name}" if group else each.name
                owners.setdefault(name, []).append(node)
    return owners
