"""The compact networks, their checkpoints, the registry of versions and the runtimes."""

from tiekd_ros.student.architecture import InputSize, Moments, StudentNetwork, StudentOutput
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import (
    ACCEPTED,
    CANDIDATE,
    REFUSED,
    ROLLED_BACK,
    CheckpointError,
    Student,
    StudentCard,
    TargetWidth,
    load_student,
    save_student,
)
from tiekd_ros.student.importing import import_student
from tiekd_ros.student.live import LiveState, LiveStudent
from tiekd_ros.student.networks import ARCHITECTURES, build_network
from tiekd_ros.student.networks.mobilenetv2_fast import ARCHITECTURE, FastStudent
from tiekd_ros.student.networks.official import KITTI_BINS, NYU_BINS, OFFICIAL_ARCHITECTURES
from tiekd_ros.student.preprocessing import normalise
from tiekd_ros.student.registry import LiveChangedError, StudentRegistry
from tiekd_ros.student.runtimes.base import Prediction, Runtime, StageTimes
from tiekd_ros.student.runtimes.choosing import RuntimeFactory
from tiekd_ros.student.runtimes.onnx_runtime import OnnxRuntime
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime, to_channels_last

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
