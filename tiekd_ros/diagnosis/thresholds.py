"""What the nodes' diagnostics warn of: settings of the group `diagnostics`, and their levels.

On from the start is what is a fault on any robot; what a good rate, memory or age is, each robot
knows for itself.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.settings import Settings, setting

_LOWER = ("depth_rate", "valid_share")
"""Limits of which less is worse."""
_WARN, _ERROR = "_warn", "_error"
_DROPS = "share of the last images that gave way to newer ones, since depth took too long"
_KNOWN = "share of depth's pixels that are a distance, neither NaN nor infinite, at most"
_FILL = "share of frames.max_bytes_mb in use; at 1 the most redundant frames make room"


def _warn(of_what: str, unit: str = "", maximum: float = 1e7, default: float = 0.0) -> Any:
    text = f"{of_what}: WARN from here on; 0 = off"
    return setting(default, text, unit=unit, minimum=0.0, maximum=maximum)


def _error(of_what: str, unit: str = "", maximum: float = 1e7) -> Any:
    text = f"{of_what}: ERROR from here on; 0 = off"
    return setting(0.0, text, unit=unit, minimum=0.0, maximum=maximum)


@dataclass(frozen=True)
class Limit:
    """The two levels of one number; 0 = that level is off."""

    warn: float
    error: float
    below: bool = False

    def level(self, value: float) -> str:
        """Return `error`, `warn` or an empty string; NaN is no cause for either."""
        for name, limit in (("error", self.error), ("warn", self.warn)):
            if limit and (value <= limit if self.below else value >= limit):
                return name
        return ""


@dataclass(frozen=True)
class DiagnosticSettings(Settings):
    """What both nodes' diagnostics warn of."""

    hardware_id: str = setting("", "hardware id in the diagnostics; empty = the host's name")
    memory_mb_warn: float = _warn("memory of the node's process", "MB")
    memory_mb_error: float = _error("memory of the node's process", "MB")
    gpu_memory_mb_warn: float = _warn("GPU memory that the node's process holds", "MB")
    gpu_memory_mb_error: float = _error("GPU memory that the node's process holds", "MB")

    def limit(self, name: str) -> Limit:
        """Return both levels of `name`."""
        return Limit(getattr(self, name + _WARN), getattr(self, name + _ERROR), name in _LOWER)

    def check(self) -> None:
        """Refuse an ERROR that comes before its WARN."""
        for field in dataclasses.fields(self):
            if not field.name.endswith(_ERROR):
                continue
            name = field.name.removesuffix(_ERROR)
            limit = self.limit(name)
            early = limit.error > limit.warn if limit.below else limit.error < limit.warn
            if limit.warn and limit.error and early:
                raise InvalidSettingError(
                    f"{field.name} must be at {'most' if limit.below else 'least'} "
                    f"{name}{_WARN} = {limit.warn:g} (or 0 for off), got {limit.error:g}"
                )


@dataclass(frozen=True)
class DepthDiagnosticSettings(DiagnosticSettings):
    """What depth_node's diagnostics warn of."""

    depth_rate_warn: float = _warn("depth images a second, at most", "Hz")
    depth_rate_error: float = _error("depth images a second, at most", "Hz")
    latency_p95_ms_warn: float = _warn("p95 of the time from an image's arrival to depth", "ms")
    latency_p95_ms_error: float = _error("p95 of the time from an image's arrival to depth", "ms")
    drop_share_warn: float = _warn(_DROPS, maximum=1.0, default=0.5)
    drop_share_error: float = _error(_DROPS, maximum=1.0)
    # No ERROR by itself: all of depth beyond max_range_m may be what is wanted to be known.
    valid_share_warn: float = _warn(_KNOWN, maximum=1.0, default=0.05)
    valid_share_error: float = _error(_KNOWN, maximum=1.0)
    student_age_days_warn: float = _warn("age of the live student", "days")
    student_age_days_error: float = _error("age of the live student", "days")


@dataclass(frozen=True)
class CompanionDiagnosticSettings(DiagnosticSettings):
    """What companion_node's diagnostics warn of."""

    label_backlog_warn: float = _warn("frames that wait for a label", default=1000.0)
    label_backlog_error: float = _error("frames that wait for a label")
    frame_log_fill_warn: float = _warn(_FILL, maximum=1.0)
    frame_log_fill_error: float = _error(_FILL, maximum=1.0)
    round_trip_p95_ms_warn: float = _warn(
        "p95 of the time that a label takes", "ms", default=5000.0
    )
    round_trip_p95_ms_error: float = _error("p95 of the time that a label takes", "ms")
