"""Programs beside the nodes under test, each a participant of its own as every program is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import rclpy
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions

from ros_helpers.messages import camera_info, image_message

RELIABLE, BEST_EFFORT = ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT
PERIOD_S = 0.05


class Rclpy:
    """A participant of its own, as every program is one: `running` takes it for a peer."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.context = rclpy.Context()

    def __enter__(self) -> Rclpy:
        rclpy.init(context=self.context, args=[], signal_handler_options=SignalHandlerOptions.NO)
        return self

    def __exit__(self, *error: object) -> None:
        self.context.try_shutdown()


class Driver(Rclpy):
    """A program that publishes messages over and over: topics, and how to make each message."""

    def __init__(
        self,
        namespace: str,
        messages: dict[str, Callable[[], Any]],
        reliability: ReliabilityPolicy = RELIABLE,
        name: str = "driver",
    ) -> None:
        super().__init__(namespace)
        self._messages, self._reliability, self._name = messages, reliability, name
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._publish, name="driver")

    def __enter__(self) -> Driver:
        super().__enter__()
        self._node = Node(
            self._name, namespace=self.namespace, context=self.context, use_global_arguments=False
        )
        quality = QoSProfile(depth=5, reliability=self._reliability)
        self._publishers = [
            (self._node.create_publisher(type(make()), topic, quality), make)
            for topic, make in self._messages.items()
        ]
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
        self._node.destroy_node()
        super().__exit__()

    def _publish(self) -> None:
        while not self._end.wait(PERIOD_S):
            stamp = self._node.get_clock().now().to_msg()
            for publisher, make in self._publishers:
                message = make()
                if hasattr(message, "header"):
                    message.header.stamp = stamp
                publisher.publish(message)


def camera(namespace: str, **more: Any) -> Driver:
    """Return a camera that is as it should be."""
    return Driver(namespace, {"image": image_message, "image_info": camera_info}, **more)
