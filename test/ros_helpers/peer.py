"""A program beside the nodes: plays the camera, listens, calls services."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import SetParametersResult
from rcl_interfaces.srv import SetParameters
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rclpy.signals import SignalHandlerOptions
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from ros_helpers.messages import image_message
from ros_helpers.waiting import PATIENCE_S, wait_for
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.images import RgbImage
from tiekd_ros.nodes.common import qos
from tiekd_ros.nodes.common.conversions import stamp_ns
from tiekd_ros.nodes.common.managed import ManagedNode

_ASK_AGAIN_S = 5.0
ACTIVE, INACTIVE, UNCONFIGURED = "active", "inactive", "unconfigured"


@dataclass(frozen=True)
class Diagnosis:
    """A node's last word on /diagnostics."""

    level: bytes = DiagnosticStatus.STALE
    message: str = ""
    values: Mapping[str, str] = field(default_factory=dict)


class Peer:
    """Everything that a test does with a namespace's nodes goes through their ROS interface."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.context = rclpy.Context()
        rclpy.init(context=self.context, args=[], signal_handler_options=SignalHandlerOptions.NO)
        self.node = Node(
            "peer", namespace=namespace, context=self.context, use_global_arguments=False
        )
        self.depth = self.listen(Image, "depth")
        self.infos = self.listen(CameraInfo, "camera_info")
        self.confidence: dict[int, Image] = {}
        self.images: dict[int, Image] = {}
        self.camera_infos: dict[int, CameraInfo] = {}
        self.students: list[str] = []
        self.statuses: list[dict[str, str]] = []
        self._diagnoses: dict[str, Diagnosis] = {}
        self._image_pub = self.node.create_publisher(Image, "image", qos.RELIABLE)
        self._info_pub = self.node.create_publisher(CameraInfo, "image_info", qos.RELIABLE)
        self._student_pub = self.node.create_publisher(String, "student", qos.LATCHED)
        self._clock_pub: Any = None
        create = self.node.create_subscription
        create(DiagnosticArray, "/diagnostics", self._on_diagnostics, 100)
        create(String, "student", lambda message: self.students.append(message.data), qos.LATCHED)
        create(DiagnosticStatus, "distill/status", self._on_status, qos.LATCHED)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=_spin, args=(self._executor,), name="peer")

    def listen(self, kind: Any, topic: str, profile: QoSProfile | int = 100) -> dict[int, Any]:
        """Subscribe to a topic; return what comes on it, by its stamp."""
        received: dict[int, Any] = {}
        self.node.create_subscription(
            kind, topic, lambda m: received.update({stamp_ns(m.header): m}), profile
        )
        return received

    def listen_to_confidence(self) -> None:
        self.confidence = self.listen(Image, "confidence")

    def listen_to_camera(self, image_topic: str, info_topic: str) -> None:
        self.images = self.listen(Image, image_topic)
        self.camera_infos = self.listen(CameraInfo, info_topic)

    def stop_listening(self, *topics: str) -> None:
        """Unsubscribe from topics of the namespace."""
        for each in list(self.node.subscriptions):
            if each.topic_name.removeprefix(f"{self.namespace}/") in topics:
                self.node.destroy_subscription(each)

    def __enter__(self) -> Peer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._executor.shutdown()
        self._thread.join(PATIENCE_S)
        self.node.destroy_node()
        self.context.try_shutdown()

    # The camera.

    def show(self, image: Image, info: CameraInfo | None = None) -> None:
        """Publish an image as the camera, and its calibration just before."""
        if info is not None:
            self._info_pub.publish(info)
        self._image_pub.publish(image)

    @contextmanager
    def playing(
        self, info: CameraInfo | None, period_s: float, pixels: RgbImage | None = None
    ) -> Iterator[list[int]]:
        """Show images at a fixed rate, whatever comes of them; yields their stamps so far."""
        stop, shown = threading.Event(), list[int]()

        def show() -> None:
            due = time.monotonic()
            for number in itertools.count():
                image = image_message(number, pixels)
                self.show(image, info)
                shown.append(stamp_ns(image.header))
                due += period_s
                if stop.wait(max(0.0, due - time.monotonic())):
                    return

        thread = threading.Thread(target=show, name="camera")
        thread.start()
        try:
            yield shown
        finally:
            stop.set()
            thread.join()

    def announce(self, version: str) -> None:
        self._student_pub.publish(String(data=version))

    def message_of(
        self, image: Image, received: Mapping[int, Any], info: CameraInfo | None = None
    ) -> Any:
        """Show an image, again while nothing comes, until a message has its stamp; return that."""
        stamp = stamp_ns(image.header)
        return wait_for(
            lambda: received.get(stamp),
            "a message of the image's stamp",
            nudge=lambda: self.show(image, info),
            explain=lambda: self._diagnoses,
        )

    def depth_of(self, image: Image, info: CameraInfo | None = None) -> Image:
        return self.message_of(image, self.depth, info)

    def info_of(self, image: Image, info: CameraInfo) -> CameraInfo:
        """Return the camera_info beside the depth of an image."""
        return self.message_of(image, self.infos, info)

    def set_clock(self, node: Node, seconds: int) -> None:
        """Publish /clock until a node with use_sim_time goes by it."""
        self._clock_pub = self._clock_pub or self.node.create_publisher(Clock, "/clock", 10)
        wait_for(
            lambda: node.get_clock().now().nanoseconds == seconds * 10**9,
            f"{seconds} s on the node's clock",
            nudge=lambda: self._clock_pub.publish(Clock(clock=Time(seconds=seconds).to_msg())),
        )

    # Asking.

    def call(self, kind: Any, name: str, request: Any) -> Any:
        """Ask once, as what must not be done twice."""
        return self._call(kind, name, request, PATIENCE_S)

    def ask(self, kind: Any, name: str, request: Any) -> Any:
        """Ask, again every few seconds: a request that comes before its asker is known is lost."""
        return self._call(kind, name, request, _ASK_AGAIN_S)

    def _call(self, kind: Any, name: str, request: Any, again_s: float) -> Any:
        client = self.node.create_client(kind, name)
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        try:
            assert client.wait_for_service(PATIENCE_S), f"no node offers {name}"
            until = time.monotonic() + PATIENCE_S
            while (left := until - time.monotonic()) > 0:
                client.call_async(request).add_done_callback(answers.put)
                with suppress(queue.Empty):
                    return answers.get(timeout=min(again_s, left)).result()
            raise AssertionError(f"{name} does not answer")
        finally:
            self.node.destroy_client(client)

    def trigger(self, name: str) -> tuple[bool, str]:
        answer = self.call(Trigger, name, Trigger.Request())
        return answer.success, answer.message

    def switch(self, name: str, on: bool) -> tuple[bool, str]:
        answer = self.call(SetBool, name, SetBool.Request(data=on))
        return answer.success, answer.message

    def set_parameter(self, node: str, name: str, value: object) -> SetParametersResult:
        request = SetParameters.Request()
        request.parameters = [Parameter(name, value=value).to_parameter_msg()]
        return self.ask(SetParameters, f"{node}/set_parameters", request).results[0]

    def state_of(self, node: str) -> str:
        return str(self.ask(GetState, f"{node}/get_state", GetState.Request()).current_state.label)

    def change_state(self, node: str, transition: int) -> bool:
        request = ChangeState.Request()
        request.transition.id = transition
        return bool(self.call(ChangeState, f"{node}/change_state", request).success)

    def take_down_and_up(self, node: str) -> None:
        """Have an active node freed of all that it holds, and made active again."""
        for transition in (
            Transition.TRANSITION_DEACTIVATE,
            Transition.TRANSITION_CLEANUP,
            Transition.TRANSITION_CONFIGURE,
            Transition.TRANSITION_ACTIVATE,
        ):
            assert self.change_state(node, transition)

    def await_active(self, node: str) -> None:
        wait_for(lambda: self.state_of(node) == ACTIVE, f"{node} to be active")

    # Reports.

    def diagnosis(self, node: str) -> Diagnosis:
        return self._diagnoses.get(f"{self.namespace}/{node}", Diagnosis())

    def await_diagnosis(
        self,
        node: str,
        text: str,
        level: bytes | None = None,
        image: Image | None = None,
        info: CameraInfo | None = None,
    ) -> Diagnosis:
        """Wait until a node's diagnostics say this, and return them.

        Args:
            node: its name in the namespace.
            text: a part of the message.
            level: of the message; None = any.
            image: shown over and over meanwhile, after its `info`.
        """

        def found() -> Diagnosis | None:
            last = self.diagnosis(node)
            fits = text in last.message and (level is None or last.level == level)
            return last if fits else None

        return self._await(node, found, repr(text), image, info)

    def await_reports(self, node: str, count: int = 1) -> None:
        """Wait until a node has reported so often again; it works before each report."""
        name = f"{self.namespace}/{node}"
        for _ in range(count):
            before = self._diagnoses.get(name)
            wait_for(lambda before=before: self._diagnoses.get(name) is not before, "a report")

    def await_above(
        self,
        node: str,
        key: str,
        limit: float = 0,
        image: Image | None = None,
        info: CameraInfo | None = None,
    ) -> None:
        """Wait until a number in a node's diagnostics is greater; the rest as `await_diagnosis`."""

        def is_above() -> bool:
            return float(self.diagnosis(node).values.get(key, "nan")) > limit

        self._await(node, is_above, f"{key} above {limit}", image, info)

    def _await(
        self,
        node: str,
        found: Callable[[], Any],
        what: str,
        image: Image | None,
        info: CameraInfo | None,
    ) -> Any:
        return wait_for(
            found,
            f"{what} in diagnostics",
            nudge=None if image is None else lambda: self.show(image, info),
            explain=lambda: self.diagnosis(node),
        )

    def await_value(self, node: str, key: str, value: str) -> None:
        """Wait until a value in a node's diagnostics is this."""
        wait_for(
            lambda: self.diagnosis(node).values.get(key) == value,
            f"{key} = {value} in diagnostics",
            explain=lambda: self.diagnosis(node),
        )

    def await_round(self, number: int) -> dict[str, str]:
        """Wait until distill/status says that a round is over, and return its values.

        Its worker gives way to whatever else runs: patience begins anew with each status.
        """
        seen: list[dict[str, str]] = []
        while not seen or (seen[-1].get("round"), seen[-1]["stage"]) != (str(number), "done"):
            count, explain = len(seen), lambda: self.statuses[-1:]
            what = f"another status of round {number}"
            wait_for(lambda count=count: len(self.statuses) > count, what, explain=explain)
            seen = list(self.statuses)
        return seen[-1]

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {v.key: v.value for v in status.values}
            self._diagnoses[status.name] = Diagnosis(status.level, status.message, values)

    def _on_status(self, message: DiagnosticStatus) -> None:
        self.statuses.append({v.key: v.value for v in message.values})


@contextmanager
def running(
    kind: type[LifecycleNode], peer: Peer, *, until: str = ACTIVE, **parameters: object
) -> Iterator[LifecycleNode]:
    """Run a lifecycle node in a thread of this process.

    Args:
        kind: the node's class.
        peer: gives namespace and context.
        until: how far to start it: unconfigured, inactive or active.
        parameters: by name, with __ for the dot.
    """
    if until != ACTIVE and issubclass(kind, ManagedNode):
        parameters = {"autostart": False, **parameters}
    if kind.__name__ == "DepthNode":  # to measure which runtime is the fastest takes a second
        parameters = {"runtime": "torch", **parameters}
    overrides = [Parameter(k.replace("__", "."), value=v) for k, v in parameters.items()]
    node = kind(
        namespace=peer.namespace,
        context=peer.context,
        parameter_overrides=overrides,
        use_global_arguments=False,
    )
    executor = SingleThreadedExecutor(context=peer.context)
    executor.add_node(node)
    thread = threading.Thread(target=_spin, args=(executor,), name="node")
    try:
        if until in (INACTIVE, ACTIVE):
            node.trigger_configure()
        if until == ACTIVE:
            node.trigger_activate()
        thread.start()
        yield node
    finally:
        executor.shutdown()
        if thread.ident is not None:
            thread.join(PATIENCE_S)
        node.release()
        node.destroy_node()


def _spin(executor: SingleThreadedExecutor) -> None:
    try:
        executor.spin()
    except ExternalShutdownException:
        return


def refusal(kind: type[LifecycleNode], peer: Peer, **parameters: object) -> str:
    """Return why a node cannot be made with these parameters."""
    with (
        pytest.raises(TiekdError) as refused,
        running(kind, peer, until=UNCONFIGURED, **parameters),
    ):
        pass
    return str(refused.value)
