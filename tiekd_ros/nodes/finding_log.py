"""Findings in the log: each when it appears, and again now and then while it lasts."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable

from rclpy.node import Node

from tiekd_ros.nodes.reporting import ERROR, WARN

_AGAIN_S = 60.0
_SETTLED_S = 1.0
"""What goes away sooner was the ROS graph on its way, such as a publisher without a name yet."""
_NUMBER = re.compile(r"\d+(\.\d+)?")


class FindingLog:
    """Logs a node's findings of WARN and ERROR; numbers in a text may differ, it stays the same."""

    def __init__(self, node: Node) -> None:
        self._logger = node.get_logger()
        # By text without numbers: when, monotonic seconds.
        self._since: dict[str, float] = {}
        self._logged: dict[str, float] = {}

    def note(self, findings: Iterable[tuple[bytes, str]]) -> None:
        """Log those of the present findings that are new, or were logged long ago."""
        now = time.monotonic()
        present = {_NUMBER.sub("#", text): (level, text) for level, text in findings}
        self._since = {key: self._since.get(key, now) for key in present}
        for key, (level, text) in present.items():
            logged = self._logged.get(key)
            if now - self._since[key] < _SETTLED_S or (logged and now - logged < _AGAIN_S):
                continue
            self._logged[key] = now
            if level == ERROR:
                self._logger.error(text)
            elif level == WARN:
                self._logger.warning(text)
