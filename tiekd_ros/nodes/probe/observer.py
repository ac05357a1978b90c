"""Client programs of the running nodes: a node in the background; an observer of the stream."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.client import Client
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image
from std_msgs.msg import String
from std_srvs.srv import Trigger

from tiekd_ros.core import Closing
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.images import DepthMap, RgbImage
from tiekd_ros.core.mailbox import Mailbox
from tiekd_ros.diagnosis import keys
from tiekd_ros.nodes.common import conversions, qos

_B = TypeVar("_B", bound="BackgroundNode")
_END_S = 5.0


class BackgroundNode(Closing):
    """A node in a ROS context of its own, which leaves signals to the program.

    `with` starts the thread that spins it, and ends both.

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

    def _call(self, client: Client, request: Any, timeout_s: float) -> Any:
        """Call a service and return its answer; not from the thread that spins.

        Raises:
            TiekdError: no node offers it, or it does not answer in time.
        """
        name = client.srv_name
        if not client.wait_for_service(timeout_s):
            raise TiekdError(f"no node offers {name}; see that its node runs")
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


_KEPT_IMAGES = 64
_LOSSLESS = qos.profile("reliable", depth=50)
"""Deep, since what this process misses would count against the nodes."""


@dataclass(frozen=True)
class DepthPair:
    """A published depth image and the camera's image with the same stamp."""

    stamp_ns: int
    image: RgbImage
    depth: DepthMap
    version: str
    """The student that was live when the depth arrived."""
    since_swap_s: float
    """How much later than the announcement of that student the camera took the image."""


@dataclass(frozen=True)
class StudentSwap:
    """A change of the depth node's student."""

    version: str
    asked_ns: int  # when the companion asked for it; clock of the stamps
    at_ns: int  # when the depth node announced it
    monotonic_s: float


class StreamObserver(BackgroundNode):
    """Subscribes to image, depth, diagnostics and round status; calls distill.

    Keeps all stamps: meant for runs of minutes. Times (`..._s`) are monotonic.

    Args:
        namespace: of the nodes.
        image_topic: the camera's.
        on_pair: called from a thread of its own with the newest pair; slow is fine.
    """

    def __init__(
        self, namespace: str, image_topic: str, on_pair: Callable[[DepthPair], None]
    ) -> None:
        super().__init__("tiekd_observer", namespace)
        self._on_pair = on_pair
        self._pairs: Mailbox[tuple[Image, Image, StudentSwap]] = Mailbox()
        self._images: OrderedDict[int, Image] = OrderedDict()
        self.image_stamps: list[int] = []
        self.depth_stamps: list[int] = []
        self.depth_began_s: float | None = None
        self._diagnostics: dict[str, dict[str, str]] = {}
        self._messages: dict[str, str] = {}
        self.status: dict[str, str] = {}
        self.ended_rounds: dict[int, dict[str, str]] = {}
        self.swaps: list[StudentSwap] = []
        self._asked_ns: dict[str, int] = {}
        self.first_depth_s: dict[str, float] = {}
        self._subscribe(image_topic)
        self._distill = self._node.create_client(Trigger, "distill")
        self._pairing = threading.Thread(target=self._deliver_pairs, name="pairs", daemon=True)

    def __enter__(self) -> StreamObserver:
        self._pairing.start()
        return super().__enter__()

    def close(self) -> None:
        """Stop listening."""
        self._pairs.close()
        super().close()
        if self._pairing.ident is not None:
            self._pairing.join(5.0)

    def _subscribe(self, image_topic: str) -> None:
        node = self._node
        node.create_subscription(Image, image_topic, self._on_image, _LOSSLESS)
        node.create_subscription(Image, "depth", self._on_depth, _LOSSLESS)
        node.create_subscription(String, "student", self._on_student, qos.LATCHED)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        node.create_subscription(DiagnosticStatus, "distill/status", self._on_status, qos.LATCHED)

    def diagnostics(self, node: str) -> dict[str, str]:
        """Return the last diagnostics values of a node, empty while there are none."""
        return next((v for k, v in self._diagnostics.items() if k.endswith(node)), {})

    def message(self, node: str) -> str:
        """Return the text of a node's last diagnostics."""
        return next((v for k, v in self._messages.items() if k.endswith(node)), "")

    def call_distill(self, timeout_s: float = 10.0) -> tuple[bool, str]:
        """Call the distill service and return its answer.

        Raises:
            TiekdError: no node offers the service, or it does not answer in time.
        """
        answer = self._call(self._distill, Trigger.Request(), timeout_s)
        return bool(answer.success), str(answer.message)

    def _on_image(self, message: Image) -> None:
        stamp = conversions.stamp_ns(message.header)
        self._images[stamp] = message
        self.image_stamps.append(stamp)
        while len(self._images) > _KEPT_IMAGES:
            self._images.popitem(last=False)

    def _on_depth(self, message: Image) -> None:
        stamp = conversions.stamp_ns(message.header)
        self.depth_stamps.append(stamp)
        if self.depth_began_s is None:
            self.depth_began_s = time.monotonic()
        if not self.swaps:  # its student is reported within a second
            return
        swap = self.swaps[-1]
        self.first_depth_s.setdefault(swap.version, time.monotonic())
        image = self._images.get(stamp)
        if image is not None:
            self._pairs.put((image, message, swap))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {v.key: v.value for v in status.values}
            self._diagnostics[status.name] = values
            self._messages[status.name] = status.message
            student = values.get(keys.STUDENT, "none")
            if student != "none" and (not self.swaps or self.swaps[-1].version != student):
                now_ns = self._node.get_clock().now().nanoseconds
                asked_ns = self._asked_ns.get(student, now_ns)
                self.swaps.append(StudentSwap(student, asked_ns, now_ns, time.monotonic()))

    def _on_student(self, message: String) -> None:
        self._asked_ns[message.data] = self._node.get_clock().now().nanoseconds

    def _on_status(self, message: DiagnosticStatus) -> None:
        self.status = status = {v.key: v.value for v in message.values}
        if status.get("stage") == "done":
            self.ended_rounds[int(status["round"])] = status

    def _deliver_pairs(self) -> None:
        while not self._pairs.closed:
            item = self._pairs.take()
            if item is None:
                continue
            image, depth, swap = item
            stamp = conversions.stamp_ns(depth.header)
            self._on_pair(
                DepthPair(
                    stamp,
                    conversions.image_to_rgb(image),
                    np.array(conversions.image_to_float(depth)),
                    swap.version,
                    (stamp - swap.at_ns) * 1e-9,
                )
            )
