"""The frame log: what the robot saw, what the teacher said of it."""

from tiekd_ros.core.labels import Label, LabelRejected, TeacherUnavailable
from tiekd_ros.framelog.labeller import Labeller, LabellerSnapshot, LabelQueue
from tiekd_ros.framelog.records import (
    HELD_OUT,
    TRAIN,
    AddResult,
    LabelledSpan,
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
    "Label",
    "LabelQueue",
    "LabelRejected",
    "LabelledSpan",
    "Labeller",
    "LabellerSettings",
    "LabellerSnapshot",
    "LoggedFrame",
    "Observation",
    "Recorder",
    "RecorderSnapshot",
    "Split",
    "StoreCorruptError",
    "StoreFullError",
    "StoreLockedError",
    "StoreStats",
    "StoreVersionError",
    "TeacherUnavailable",
    "TrainingFrame",
    "UndecodableFrameError",
    "UnknownFrameError",
]
