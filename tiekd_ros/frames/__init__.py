"""The frame log: what the robot saw, what the teacher said of it."""

from tiekd_ros.frames.answers import LabelAnswer, LabellerSnapshot, NotNow, RefusedLabel
from tiekd_ros.frames.errors import (
    FrameStoreError,
    StoreCorruptError,
    StoreFullError,
    StoreLockedError,
    StoreVersionError,
    UndecodableFrameError,
    UnknownFrameError,
)
from tiekd_ros.frames.labelling import Labeller
from tiekd_ros.frames.recorder import Recorder, RecorderSnapshot
from tiekd_ros.frames.records import (
    HELD_OUT,
    TRAIN,
    KeptLabel,
    LoggedFrame,
    Observation,
    Split,
    StoreStats,
    TrainingFrame,
    Verdict,
)
from tiekd_ros.frames.settings import FrameLogSettings, ImportSettings, LabellerSettings
from tiekd_ros.frames.store import FrameStore

__all__ = [
    "HELD_OUT",
    "TRAIN",
    "FrameLogSettings",
    "FrameStore",
    "FrameStoreError",
    "ImportSettings",
    "KeptLabel",
    "LabelAnswer",
    "Labeller",
    "LabellerSettings",
    "LabellerSnapshot",
    "LoggedFrame",
    "NotNow",
    "Observation",
    "Recorder",
    "RecorderSnapshot",
    "RefusedLabel",
    "Split",
    "StoreCorruptError",
    "StoreFullError",
    "StoreLockedError",
    "StoreStats",
    "StoreVersionError",
    "TrainingFrame",
    "UndecodableFrameError",
    "UnknownFrameError",
    "Verdict",
]
