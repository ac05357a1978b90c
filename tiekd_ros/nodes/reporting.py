"""Diagnostics messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

OK, WARN, ERROR, STALE = (
    DiagnosticStatus.OK,
    DiagnosticStatus.WARN,
    DiagnosticStatus.ERROR,
    DiagnosticStatus.STALE,
)


class Report:
    """Collects what is known into one DiagnosticStatus; the worst finding gives the level."""

    def __init__(self, name: str, hardware_id: str = "") -> None:
        self._status = DiagnosticStatus(level=OK, name=name, hardware_id=hardware_id)
        self._messages: list[str] = []

    def add(self, values: Mapping[str, Any]) -> None:
        """Add values to show; floats with three decimals."""
        for key, value in values.items():
            text = f"{value:.3f}" if isinstance(value, float) else str(value)
            self._status.values.append(KeyValue(key=key, value=text))

    def find(self, level: bytes, message: str) -> None:
        """Add a finding."""
        self._status.level = max(self._status.level, level)
        self._messages.append(message)

    def status(self, fine: str = "ok") -> DiagnosticStatus:
        """Return the message; `fine` is its text where nothing was found."""
        self._status.message = "; ".join(self._messages) or fine
        return self._status


def diagnostics(node: Node, *statuses: DiagnosticStatus) -> DiagnosticArray:
    """Return an array stamped with the node's clock."""
    array = DiagnosticArray()
    array.header.stamp = node.get_clock().now().to_msg()
    array.status = list(statuses)
    return array
