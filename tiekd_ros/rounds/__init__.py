"""Rounds on the robot: select frames, train beside inference, judge, promote, evaluate again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tiekd_ros.core.settings import TextEnum


class WorkerEvent(TextEnum):
    """Kinds of a worker's events: the value of `event` in each line that it writes."""

    STAGE = "stage"
    PROGRESS = "progress"
    PAUSED = "paused"
    UNDECODABLE = "undecodable"
    WARNING = "warning"
    RESULT = "result"
    ERROR = "error"


Emit = Callable[[dict[str, Any]], None]
"""Takes an event: its kind as `event`, and plain values."""
