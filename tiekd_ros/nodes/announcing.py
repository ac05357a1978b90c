"""Telling the depth node which student is live."""

from __future__ import annotations

import threading

from rclpy.node import Node
from std_msgs.msg import String

from tiekd_ros.errors import TiekdError
from tiekd_ros.nodes import qos
from tiekd_ros.student import StudentRegistry


class StudentAnnouncer:
    """Publishes the registry's live version on `student` whenever it changes.

    Whoever changed it: a round, a rollback, or `tiekd students promote` in another process.
    """

    def __init__(self, node: Node, registry: StudentRegistry) -> None:
        self._node = node
        self._registry = registry
        self._publisher = node.create_publisher(String, "student", qos.LATCHED)
        self._lock = threading.Lock()  # the executor's thread checks, and those of rounds do
        self._announced: str | None = None
        self._fault = ""

    def check(self) -> None:
        """Look at the registry, and publish where there is something new to say."""
        with self._lock:
            self._check()

    def _check(self) -> None:
        try:
            live = self._registry.live()
        except TiekdError as error:
            if str(error) != self._fault:  # the same fault again and again is logged once
                self._fault = str(error)
                self._node.get_logger().error(self._fault)
            return
        self._fault = ""
        if live is not None and live != self._announced:
            self._announced = live
            self._publisher.publish(String(data=live))

    def close(self) -> None:
        """Stop announcing."""
        self._node.destroy_publisher(self._publisher)
