"""The compact networks, their checkpoints, the registry of versions and the runtimes."""

from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.card import (
    ACCEPTED,
    CANDIDATE,
    REFUSED,
    CheckpointError,
    StudentCard,
    TargetWidth,
)
from tiekd_ros.student.checkpoint import Student, load_student, save_student
from tiekd_ros.student.live import LiveState, LiveStudent
from tiekd_ros.student.network import ARCHITECTURE, FastStudent, InputSize, build_network
from tiekd_ros.student.registry import LiveChangedError, StudentRegistry
from tiekd_ros.student.runtime import (
    Prediction,
    TorchRuntime,
    choose_device,
    normalise,
    to_channels_last,
)

__all__ = [
    "ACCEPTED",
    "ARCHITECTURE",
    "CANDIDATE",
    "REFUSED",
    "CheckpointError",
    "DepthBins",
    "FastStudent",
    "InputSize",
    "LiveChangedError",
    "LiveState",
    "LiveStudent",
    "Prediction",
    "Student",
    "StudentCard",
    "StudentRegistry",
    "TargetWidth",
    "TorchRuntime",
    "build_network",
    "choose_device",
    "load_student",
    "normalise",
    "save_student",
    "to_channels_last",
]
