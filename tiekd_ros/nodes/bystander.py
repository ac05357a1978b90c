"""The node of a program that looks on for a while: the demo, `tiekd snapshot`, benchmarks."""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import rclpy
from rclpy.client import Client
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from tiekd_ros.closing import Closing
from tiekd_ros.errors import TiekdError

_B = TypeVar("_B", bound="Bystander")
_END_S = 5.0


class Bystander(Closing):
    """A node in a ROS context of its own, which leaves signals to the program.

    `with` starts the thread that spins it, and ends both.

    Args:
        name: of the node.
        namespace: that it is in.

    Raises:
        NameValidationException, RuntimeError: rclpy refuses a name, or there is no middleware.
    """

    def __init__(self, name: str, namespace: str) -> None:
        self._context = rclpy.Context()
        rclpy.init(context=self._context, args=[], signal_handler_options=SignalHandlerOptions.NO)
        try:
            self._node = Node(
                name, namespace=namespace, context=self._context, use_global_arguments=False
            )
        except BaseException:
            self._context.try_shutdown()
            raise
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._is_closing = False
        self._thread = threading.Thread(target=self._spin, name=name, daemon=True)

    def __enter__(self: _B) -> _B:
        self._thread.start()
        return self

    def close(self) -> None:
        """End the node, and ROS as far as it is this object's."""
        self._is_closing = True
        self._executor.shutdown()
        if self._thread.ident is not None:
            self._thread.join(_END_S)
        self._node.destroy_node()
        self._context.try_shutdown()

    def _answer(self, client: Client, request: Any, timeout_s: float) -> Any:
        """Call a service and return its answer; not from the thread that spins.

        Raises:
            TiekdError: nobody offers it, or it does not answer in time.
        """
        name = client.srv_name
        if not client.wait_for_service(timeout_s):
            raise TiekdError(f"nobody offers {name}; does its node run?")
        future = client.call_async(request)
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        if not done.wait(timeout_s):
            raise TiekdError(f"{name} did not answer in {timeout_s:g} s")
        return future.result()

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            return
        except RuntimeError:  # rclpy's InvalidHandle: closed in the middle of a callback
            if not self._is_closing:
                raise
