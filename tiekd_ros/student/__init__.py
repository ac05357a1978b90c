"""The compact networks, their checkpoints, the registry of versions and the runtimes."""

from tiekd_ros.student.architecture import (
    InputSize,
    Moments,
    StudentNetwork,
    StudentOutput,
)
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.building import ARCHITECTURES, build_network
from tiekd_ros.student.card import (
    ACCEPTED,
    CANDIDATE,
    REFUSED,
    ROLLED_BACK,
    CheckpointError,
    StudentCard,
    TargetWidth,
)
from tiekd_ros.student.checkpoint import Student, load_student, save_student
from tiekd_ros.student.choosing import RuntimeFactory
from tiekd_ros.student.importing import import_student
from tiekd_ros.student.live import LiveState, LiveStudent
from tiekd_ros.student.network import ARCHITECTURE, FastStudent
from tiekd_ros.student.official import KITTI_BINS, NYU_BINS, OFFICIAL_ARCHITECTURES
from tiekd_ros.student.onnx_runtime import OnnxRuntime
from tiekd_ros.student.preprocessing import normalise
from tiekd_ros.student.registry import LiveChangedError, StudentRegistry
from tiekd_ros.student.runtime import (
    Prediction,
    Runtime,
    StageTimes,
)
from tiekd_ros.student.torch_runtime import TorchRuntime, to_channels_last

__all__ = [
    "ACCEPTED",
    "ARCHITECTURE",
    "ARCHITECTURES",
    "CANDIDATE",
    "KITTI_BINS",
    "NYU_BINS",
    "OFFICIAL_ARCHITECTURES",
    "REFUSED",
    "ROLLED_BACK",
    "CheckpointError",
    "DepthBins",
    "FastStudent",
    "InputSize",
    "LiveChangedError",
    "LiveState",
    "LiveStudent",
    "Moments",
    "OnnxRuntime",
    "Prediction",
    "Runtime",
    "RuntimeFactory",
    "StageTimes",
    "Student",
    "StudentCard",
    "StudentNetwork",
    "StudentOutput",
    "StudentRegistry",
    "TargetWidth",
    "TorchRuntime",
    "build_network",
    "import_student",
    "load_student",
    "normalise",
    "save_student",
    "to_channels_last",
]
