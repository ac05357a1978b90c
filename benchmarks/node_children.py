"""The objects that `node.py` and `distill.py` run in processes of their own, beside the nodes."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from tiekd_ros.core.devices import choose_device
from tiekd_ros.core.images import RgbImage
from tiekd_ros.core.supervisor import prepare_environment
from tiekd_ros.nodes.common import conversions, qos
from tiekd_ros.student.registry import StudentRegistry
from tiekd_ros.student.runtimes.choosing import RuntimeFactory

_FOCAL_SHARE = 0.8  # of the image's width, as an ordinary camera's


def paced(rate_hz: float, stopped: Callable[[], bool]) -> itertools.count[int]:
    """Yield at this rate until told to stop; a slow machine skips time, it does not catch up."""
    due = time.perf_counter()
    for number in itertools.count():
        if stopped():
            return
        yield number
        due = max(due + 1 / rate_hz, time.perf_counter() - 1 / rate_hz)
        time.sleep(max(0.0, due - time.perf_counter()))


def _ros_node(name: str) -> Node:
    """Return the node of a process that has no other."""
    prepare_environment()
    rclpy.init(args=[])
    return Node(name)


class Camera:
    """Plays pictures from memory at an even rate, stamped just before they are sent."""

    def __init__(self, images: Path, topics: list[str]) -> None:
        node = _ros_node("bench_camera")
        pictures = np.load(images)
        self._messages = [conversions.rgb_to_image(p, Header()) for p in pictures]
        self._info = _calibration(pictures.shape[2], pictures.shape[1])
        create = node.create_publisher
        self._publishers = {
            topic: (
                create(Image, f"{topic}/image", qos.RELIABLE),
                create(CameraInfo, f"{topic}/image_info", qos.RELIABLE),
            )
            for topic in topics
        }
        self._stamps: list[int] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._number = itertools.count()

    def play(self, topic: str, rate_hz: float) -> None:
        self.pause()
        self._stop.clear()
        self._thread = threading.Thread(target=self._play, args=(topic, rate_hz))
        self._thread.start()

    def pause(self) -> list[int]:
        """Return the stamps played since `play`."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        stamps, self._stamps = self._stamps, []
        return stamps

    def close(self) -> None:
        self.pause()
        rclpy.try_shutdown()

    def _play(self, topic: str, rate_hz: float) -> None:
        image_pub, info_pub = self._publishers[topic]
        for _ in paced(rate_hz, self._stop.is_set):
            message = self._messages[next(self._number) % len(self._messages)]
            stamp = time.time_ns()
            message.header.frame_id = "camera"
            message.header.stamp = Time(nanoseconds=stamp).to_msg()
            self._info.header = message.header
            image_pub.publish(message)
            info_pub.publish(self._info)
            self._stamps.append(stamp)


def _calibration(width: int, height: int) -> CameraInfo:
    focal = _FOCAL_SHARE * width
    cx, cy = (width - 1) / 2, (height - 1) / 2
    info = CameraInfo(width=width, height=height, distortion_model="plumb_bob")
    info.d = [0.0] * 5
    info.k = [focal, 0.0, cx, 0.0, focal, cy, 0.0, 0.0, 1.0]
    info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    info.p = [focal, 0.0, cx, 0.0, 0.0, focal, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    return info


class Echo:
    """Answers each image at once with a depth image of its size: what the transport alone takes."""

    def __init__(self, topic: str) -> None:
        self._node = _ros_node("bench_echo")
        self._pub = self._node.create_publisher(Image, f"{topic}/depth", qos.RELIABLE)
        self._node.create_subscription(
            Image, f"{topic}/image", self._answer, qos.image_input("reliable")
        )
        self._answers: dict[tuple[int, int], Image] = {}
        threading.Thread(target=self._spin, daemon=True).start()

    def close(self) -> None:
        rclpy.try_shutdown()

    def _answer(self, message: Image) -> None:
        size = message.height, message.width
        if size not in self._answers:
            blank = np.ones(size, np.float32)
            self._answers[size] = conversions.depth_to_image(blank, message.header)
        answer = self._answers[size]
        answer.header = message.header
        self._pub.publish(answer)

    def _spin(self) -> None:
        executor = SingleThreadedExecutor()
        executor.add_node(self._node)
        try:
            executor.spin()
        except ExternalShutdownException:
            return


class Bare:
    """The student's runtime without ROS, on the camera's pictures."""

    def __init__(self, images: Path, students: Path, device: str, kind: str) -> None:
        self._pictures: list[RgbImage] = list(np.load(images))
        registry = StudentRegistry(students)
        student = registry.load(registry.live() or "")
        self._runtime = RuntimeFactory(choose_device(device), kind).make(student)
        self._number = itertools.count()

    def time_images(self, count: int, rate_hz: float) -> list[float]:
        """Return milliseconds of each; rate 0 is one right after the other."""
        times: list[float] = []
        for _ in paced(rate_hz or 1e9, lambda: len(times) == count):
            picture = self._pictures[next(self._number) % len(self._pictures)]
            start = time.perf_counter()
            self._runtime.predict(picture, confidence=False)
            times.append(1e3 * (time.perf_counter() - start))
        return times
