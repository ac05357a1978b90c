"""The processes beside the nodes in `node.py`: a camera, an echo and the bare network.

Each is told what to do by lines on its standard input and answers with lines of JSON. They end
when that input does, so none is left behind by a parent that is killed.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from harness import say
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


class Camera:
    """Plays pictures from memory at an even rate, stamped just before they are sent.

    Commands: `play TOPIC RATE` and `pause`; the answer to both has the stamps played until then.
    """

    def __init__(self, images: str, topics: str) -> None:
        self._node = Node("bench_camera")
        self._pictures: list[RgbImage] = list(np.load(images))
        height, width = self._pictures[0].shape[:2]
        self._messages = [conversions.rgb_to_image(p, Header()) for p in self._pictures]
        self._info = _calibration(width, height)
        create = self._node.create_publisher
        self._publishers = {
            topic: (
                create(Image, f"{topic}/image", qos.RELIABLE),
                create(CameraInfo, f"{topic}/image_info", qos.RELIABLE),
            )
            for topic in topics.split(",")
        }
        self._stamps: list[int] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._number = itertools.count()

    def obey(self, command: str, *words: str) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        stamps, self._stamps = self._stamps, []
        if command == "play":
            topic, rate = words
            self._stop.clear()
            self._thread = threading.Thread(target=self._play, args=(topic, float(rate)))
            self._thread.start()
        say(stamps=stamps)

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
        self._node = Node("bench_echo")
        self._pub = self._node.create_publisher(Image, f"{topic}/depth", qos.RELIABLE)
        self._node.create_subscription(
            Image, f"{topic}/image", self._answer, qos.image_input("reliable")
        )
        self._answers: dict[tuple[int, int], Image] = {}
        threading.Thread(target=self._spin, daemon=True).start()

    def obey(self, command: str) -> None:
        say(echo=command)

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
    """The student's runtime without ROS, on the camera's pictures.

    Command: `run COUNT RATE`; RATE 0 is one picture right after the other. The answer has the
    milliseconds of each.
    """

    def __init__(self, images: str, students: str, device: str, kind: str) -> None:
        self._pictures: list[RgbImage] = list(np.load(images))
        registry = StudentRegistry(Path(students))
        student = registry.load(registry.live() or "")
        factory = RuntimeFactory(choose_device(device), kind)
        self._runtime = factory.make(student)
        self._number = itertools.count()
        say(runtime=self._runtime.description)

    def obey(self, command: str, count: str, rate: str) -> None:
        times: list[float] = []
        for _ in paced(float(rate) or 1e9, lambda: len(times) == int(count)):
            picture = self._pictures[next(self._number) % len(self._pictures)]
            start = time.perf_counter()
            self._runtime.predict(picture, confidence=False)
            times.append(1e3 * (time.perf_counter() - start))
        say(ms=times)


CHILDREN: dict[str, Any] = {"camera": Camera, "echo": Echo, "bare": Bare}


def main() -> int:
    """Run the child that the first argument names until standard input ends."""
    prepare_environment()
    kind, *words = sys.argv[1:]
    if kind != "bare":
        rclpy.init(args=[])
    child = CHILDREN[kind](*words)
    say(ready=kind)
    for line in sys.stdin:
        child.obey(*line.split())
    if kind == "camera":
        child.obey("pause")
    rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
