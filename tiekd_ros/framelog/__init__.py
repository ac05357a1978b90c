"""The frame log: what the robot saw, what the teacher said of it."""

from tiekd_ros.framelog.labeller import (
    LabelAnswer,
    Labeller,
    LabellerSnapshot,
    NotNow,
    RefusedLabel,
)
from tiekd_ros.framelog.records import (
    HELD_OUT,
    TRAIN,
    AddResult,
    KeptLabel,
    LoggedFrame,
    Observation,
    Split,
    StoreStats,
    TrainingFrame,
)
from tiekd_ros.framelog.schema import (
    FrameStoreError,
    StoreCorruptError,
    StoreFullError,
    StoreLockedError,
    StoreVersionError,
    UndecodableFrameError,
    UnknownFrameError,
)
from tiekd_ros.framelog.settings import FrameLogSettings, ImportSettings, LabellerSettings
from tiekd_ros.framelog.store import FrameStore, Recorder, RecorderSnapshot

__all__ = [
    "HELD_OUT",
    "TRAIN",
    "AddResult",
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
]
