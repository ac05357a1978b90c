"""A program beside the nodes: plays the camera, listens, calls services."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

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
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from ros_helpers.messages import image_message
from ros_helpers.waiting import PATIENCE_S, wait_for
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
        self.depth: dict[int, Image] = {}
        self.infos: dict[int, CameraInfo] = {}
        self.confidence: dict[int, Image] = {}
        self.images: dict[int, Image] = {}
        self.camera_infos: dict[int, CameraInfo] = {}
        self.students: list[str] = []
        self.statuses: list[dict[str, str]] = []
        self._diagnoses: dict[str, Diagnosis] = {}
        self._image_pub = self.node.create_publisher(Image, "image", qos.RELIABLE)
        self._info_pub = self.node.create_publisher(CameraInfo, "image_info", qos.RELIABLE)
        self._student_pub = self.node.create_publisher(String, "student", qos.LATCHED)
        self._listen()
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=_spin, args=(self._executor,), name="peer")

    def _listen(self) -> None:
        deep = 100
        create = self.node.create_subscription
        create(Image, "depth", _by_stamp(self.depth), deep)
        create(CameraInfo, "camera_info", _by_stamp(self.infos), deep)
        create(DiagnosticArray, "/diagnostics", self._on_diagnostics, deep)
        create(String, "student", lambda message: self.students.append(message.data), qos.LATCHED)
        create(DiagnosticStatus, "distill/status", self._on_status, qos.LATCHED)

    def listen_to_confidence(self) -> None:
        self.node.create_subscription(Image, "confidence", _by_stamp(self.confidence), 100)

    def listen_to_camera(self, image_topic: str, info_topic: str) -> None:
        self.node.create_subscription(Image, image_topic, _by_stamp(self.images), 100)
        self.node.create_subscription(CameraInfo, info_topic, _by_stamp(self.camera_infos), 100)

    def __enter__(self) -> Peer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._executor.shutdown()
        self._thread.join(PATIENCE_S)
        self.node.destroy_node()
        self.context.try_shutdown()

    # Saying.

    def show(self, image: Image, info: CameraInfo | None = None) -> None:
        """Publish an image as the camera, and its calibration just before."""
        if info is not None:
            self._info_pub.publish(info)
        self._image_pub.publish(image)

    @contextmanager
    def playing(self, info: CameraInfo | None, period_s: float) -> Iterator[None]:
        """Show images, each with a stamp of its own, all the time."""
        stop = threading.Event()

        def show() -> None:
            number = 0
            while not stop.wait(period_s):
                self.show(image_message(number), info)
                number += 1

        thread = threading.Thread(target=show, name="camera")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def announce(self, version: str) -> None:
        self._student_pub.publish(String(data=version))

    def depth_of(self, image: Image, info: CameraInfo | None = None) -> Image:
        """Show an image, again while nothing comes, and return its depth."""
        stamp = stamp_ns(image.header)
        return wait_for(
            lambda: self.depth.get(stamp),
            "depth",
            nudge=lambda: self.show(image, info),
            explain=lambda: self._diagnoses,
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
            assert client.wait_for_service(PATIENCE_S), f"nobody offers {name}"
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

    # Hearing.

    def diagnosis(self, node: str) -> Diagnosis:
        return self._diagnoses.get(f"{self.namespace}/{node}", Diagnosis())

    def await_diagnosis(self, node: str, text: str, level: bytes | None = None) -> Diagnosis:
        """Wait until a node's diagnostics say this, and return them."""

        def found() -> Diagnosis | None:
            last = self.diagnosis(node)
            fits = text in last.message and (level is None or last.level == level)
            return last if fits else None

        return wait_for(found, f"{text!r} in diagnostics", explain=lambda: self.diagnosis(node))

    def await_value(self, node: str, key: str, value: str) -> None:
        """Wait until a value in a node's diagnostics is this."""
        wait_for(
            lambda: self.diagnosis(node).values.get(key) == value,
            f"{key} = {value} in diagnostics",
            explain=lambda: self.diagnosis(node),
        )

    def await_round(self, number: int) -> dict[str, str]:
        """Wait until distill/status says that a round is over, and return its values.

        Its worker gives way to whatever else runs: patience begins anew with each thing it says.
        """
        heard: list[dict[str, str]] = []
        what = f"a word of round {number} on its way to its end"
        while not heard or (heard[-1].get("round"), heard[-1]["stage"]) != (str(number), "done"):
            before, explain = len(heard), lambda: self.statuses[-1:]
            wait_for(lambda before=before: len(self.statuses) > before, what, explain=explain)
            heard = list(self.statuses)
        return heard[-1]

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


def _by_stamp(messages: dict[int, Any]) -> Any:
    def remember(message: Any) -> None:
        messages[stamp_ns(message.header)] = message

    return remember
