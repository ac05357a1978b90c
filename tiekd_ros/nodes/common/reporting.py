"""Diagnostics messages."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

from tiekd_ros.diagnosis import facts, keys
from tiekd_ros.diagnosis.thresholds import DiagnosticSettings, Limit
from tiekd_ros.nodes.common.memory import gpu_memory_mb, process_memory_mb

OK, WARN, ERROR, STALE = (
    DiagnosticStatus.OK,
    DiagnosticStatus.WARN,
    DiagnosticStatus.ERROR,
    DiagnosticStatus.STALE,
)

_LEVELS = {facts.OK: OK, facts.WARN: WARN, facts.ERROR: ERROR}


def as_reported(findings: Iterable[facts.Finding]) -> list[tuple[bytes, str]]:
    """Return findings as (level of DiagnosticStatus, text with its remedy)."""
    return [(_LEVELS[each.level], each.text) for each in findings]


class Report:
    """Collects what is known into one DiagnosticStatus; the worst finding gives the level.

    Args:
        name: of what is reported on.
        hardware_id: empty = the host's name.
    """

    def __init__(self, name: str, hardware_id: str = "") -> None:
        hardware_id = hardware_id or socket.gethostname()
        self._status = DiagnosticStatus(level=OK, name=name, hardware_id=hardware_id)
        self._messages: list[tuple[bytes, str]] = []

    def add(self, values: Mapping[str, Any]) -> None:
        """Add values to show; floats with three decimals."""
        for key, value in values.items():
            text = f"{value:.3f}" if isinstance(value, float) else str(value)
            self._status.values.append(KeyValue(key=key, value=text))

    def find(self, level: bytes, message: str) -> None:
        """Add a finding."""
        self._status.level = max(self._status.level, level)
        self._messages.append((level, message))

    def hold(self, limit: Limit, value: float, what: str, remedy: str) -> None:
        """Add a finding where a value has reached a limit.

        Args:
            limit: the two levels.
            value: what is measured; NaN where it is unknown.
            what: the value in words, such as `drops 31 % of the images`.
            remedy: what would do.
        """
        level = limit.level(value)
        if level:
            reached = limit.error if level == "error" else limit.warn
            text = f"{what}, limit {reached:g}; {remedy}"
            self.find(ERROR if level == "error" else WARN, text)

    def check_memory(self, settings: DiagnosticSettings) -> None:
        """Add the memory of this process, and what is found of it."""
        memory = process_memory_mb()
        self.add({keys.MEMORY: memory})
        remedy = "see what grows, or raise diagnostics.memory_mb_*"
        self.hold(settings.limit("memory_mb"), memory, f"takes {memory:.0f} MB", remedy)
        try:
            gpu = gpu_memory_mb()
        except RuntimeError as error:  # a GPU that is broken must not silence the rest
            reason = (str(error).splitlines() or [""])[0]
            self.find(ERROR, f"the GPU does not answer ({reason}); start the node anew")
            return
        if gpu is not None:
            held, free = gpu
            self.add({keys.GPU_MEMORY: held, keys.GPU_MEMORY_FREE: free})
            limit = settings.limit("gpu_memory_mb")
            remedy = "see what else uses the GPU, or raise diagnostics.gpu_memory_mb_*"
            self.hold(limit, held, f"takes {held:.0f} MB of the GPU", remedy)

    def status(self, fine: str = "") -> DiagnosticStatus:
        """Return the message, the worst first; `fine` is its text where nothing was found."""
        worst_first = sorted(self._messages, key=lambda each: each[0], reverse=True)
        self._status.message = "; ".join(text for _, text in worst_first) or fine or "ok"
        return self._status


def diagnostics(node: Node, *statuses: DiagnosticStatus) -> DiagnosticArray:
    """Return an array stamped with the node's clock."""
    array = DiagnosticArray()
    array.header.stamp = node.get_clock().now().to_msg()
    array.status = list(statuses)
    return array
