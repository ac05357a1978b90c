"""A CameraInput in a node of its own, and cameras with any topic and quality of service."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from helpers.teachers import picture
from ros_helpers.messages import HEIGHT, WIDTH, header
from ros_helpers.waiting import PATIENCE_S, wait_for
from tiekd_ros.core.images import RgbImage, encode_jpeg, encode_png
from tiekd_ros.nodes.camera.input import CameraImage, CameraInput
from tiekd_ros.nodes.common.settings import CommonSettings

_CHECK_S = 0.05
RELIABLE, BEST_EFFORT = ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT
VOLATILE, LATCHED = DurabilityPolicy.VOLATILE, DurabilityPolicy.TRANSIENT_LOCAL


def quality(
    reliability: ReliabilityPolicy = RELIABLE, durability: DurabilityPolicy = VOLATILE
) -> QoSProfile:
    return QoSProfile(depth=5, reliability=reliability, durability=durability)


def compressed_message(
    number: int = 0,
    format: str = "jpeg",
    encode: Callable[[RgbImage], bytes] = encode_jpeg,
) -> CompressedImage:
    """Return the picture of this number as a file in a message."""
    return CompressedImage(
        header=header(number), format=format, data=encode(picture(number, WIDTH, HEIGHT))
    )


def png_message(number: int = 0) -> CompressedImage:
    """Return the picture of this number, without loss."""
    return compressed_message(number, "rgb8; png compressed bgr8", encode_png)


class InputBench:
    """Runs a CameraInput as the nodes do, but looks after it more often.

    Args:
        namespace: of all nodes here.
    """

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.images: list[CameraImage] = []
        self.findings: list[tuple[bytes, str]] = []
        self.checks = 0
        self._nodes: list[Node] = []
        self._contexts: list[Any] = []
        self._context = self._new_context()
        self._executor = SingleThreadedExecutor(context=self._context)
        self._thread = threading.Thread(target=self._spin, name="bench")

    def __enter__(self) -> InputBench:
        return self

    def __exit__(self, *error: object) -> None:
        self._executor.shutdown()
        if self._thread.ident is not None:
            self._thread.join(PATIENCE_S)
        for node in self._nodes:
            node.destroy_node()
        for context in self._contexts:
            context.try_shutdown()

    def node(self, name: str, remappings: Sequence[str] = (), context: Any = None) -> Node:
        arguments = ["--ros-args", *(part for r in remappings for part in ("-r", r))]
        node = Node(
            name,
            namespace=self.namespace,
            context=context or self._context,
            cli_args=arguments,
            use_global_arguments=False,
        )
        self._nodes.append(node)
        return node

    def listen(self, *remappings: str, **settings: Any) -> CameraInput:
        """Start the input, with these settings."""
        node = self.node("listener", remappings)
        self.input = CameraInput(node, CommonSettings(**settings), self.images.append)
        node.create_timer(_CHECK_S, self._check, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._executor.add_node(node)
        self._thread.start()
        return self.input

    def camera(
        self, kind: Any = Image, topic: str = "image", profile: QoSProfile | None = None
    ) -> Any:
        """Return a publisher in a node of its own, called camera_1, camera_2, ...

        As a program of its own would: the middleware allows a topic one type in each context.
        """
        node = self.node(f"camera_{len(self._nodes)}", context=self._new_context())
        return node.create_publisher(kind, topic, quality() if profile is None else profile)

    def remove(self, publisher: Any) -> None:
        """End a camera."""
        for node in self._nodes:
            node.destroy_publisher(publisher)

    def await_finding(self, *words: str, level: bytes | None = None) -> str:
        """Wait until a finding has all these words, and return it."""

        def found() -> list[str]:
            given = [text for severity, text in self.findings if level in (None, severity)]
            return [text for text in given if all(word in text for word in words)]

        return wait_for(found, f"a finding with {words}", explain=lambda: self.findings)[0]

    def await_no_finding(self, word: str) -> None:
        """Wait until none says this."""
        wait_for(
            lambda: all(word not in text for _, text in self.findings),
            f"no finding with {word!r}",
            explain=lambda: self.findings,
        )

    def await_image(self, publisher: Any, message: CameraImage) -> CameraImage:
        """Publish an image until it has come, and return what came."""
        before = len(self.images)
        wait_for(
            lambda: len(self.images) > before,
            "an image",
            nudge=lambda: publisher.publish(message),
            explain=lambda: (self.findings, self.input.values()),
        )
        return self.images[-1]

    def await_info(self, publisher: Any, info: CameraInfo) -> None:
        """Publish a camera_info until it has come."""
        before = self.input.values()["camera_info received"]
        wait_for(
            lambda: self.input.values()["camera_info received"] != before,
            "a camera_info",
            nudge=lambda: publisher.publish(info),
            explain=lambda: (self.findings, self.input.values()),
        )

    def await_check(self) -> list[tuple[bytes, str]]:
        """Wait for a whole look at what has come so far, and return what it found."""
        before = self.checks
        wait_for(lambda: self.checks > before + 1, "a check")
        return self.findings

    def _new_context(self) -> Any:
        context = rclpy.Context()
        rclpy.init(context=context, args=[], signal_handler_options=SignalHandlerOptions.NO)
        self._contexts.append(context)
        return context

    def _check(self) -> None:
        self.findings = self.input.check()
        self.checks += 1

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            return
