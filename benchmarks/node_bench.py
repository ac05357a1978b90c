"""The bench of `node.py`: camera, node, echo, bare network, and the observer of their streams."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from harness import Remote
from node_stage import (
    ECHO,
    HEIGHT,
    NAMESPACE,
    WIDTH,
    Made,
    check_running,
    nodes,
    own_domain,
    prepare,
)
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header, String
from std_srvs.srv import Trigger

from tiekd_ros.core.camera import CameraModel, Intrinsics
from tiekd_ros.core.devices import choose_device
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.images import RgbImage
from tiekd_ros.nodes.common import conversions, qos
from tiekd_ros.nodes.probe.observer import BackgroundNode
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.registry import StudentRegistry
from tiekd_ros.student.runtimes.choosing import RuntimeFactory

_FOCAL_SHARE = 0.8  # of the image's width, as an ordinary camera's
RATES_HZ = (60.0, 30.0, 15.0, 10.0, 5.0, 2.0)
_SETTLE_S = 0.4  # after the last image, for its depth to come
_STARTS = 4  # now and then Fast DDS never matches two of them, for no reason that was found
_FOUND_S = 40.0  # by then they have found each other, or never will
_POLL_S = 0.01
_DEEP = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
"""Deep: an image that this process misses would count against the node."""


def paced(rate_hz: float, stopped: Callable[[], bool]) -> itertools.count[int]:
    """Yield at this rate until told to stop; a slow machine skips time, it does not catch up."""
    due = time.perf_counter()
    for number in itertools.count():
        if stopped():
            return
        yield number
        due = max(due + 1 / rate_hz, time.perf_counter() - 1 / rate_hz)
        time.sleep(max(0.0, due - time.perf_counter()))


class Camera(BackgroundNode):
    """Plays pictures from memory at an even rate, stamped just before they are sent."""

    def __init__(self, images: Path, topics: list[str]) -> None:
        super().__init__("bench_camera", "/")
        self._messages = [conversions.rgb_to_image(p, Header()) for p in np.load(images)]
        focal, cx, cy = _FOCAL_SHARE * WIDTH, (WIDTH - 1) / 2, (HEIGHT - 1) / 2
        model = CameraModel.pinhole(Intrinsics(focal, focal, cx, cy), WIDTH, HEIGHT)
        self._info = conversions.camera_info_message(model, Header())
        create = self._node.create_publisher
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
        super().close()

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


class Echo(BackgroundNode):
    """Answers each image at once with a depth image of its size: what the transport alone takes."""

    def __init__(self) -> None:
        super().__init__("bench_echo", ECHO)
        self._pub = self._node.create_publisher(Image, "depth", qos.RELIABLE)
        self._node.create_subscription(Image, "image", self._answer, qos.profile("reliable"))
        self._answers: dict[tuple[int, int], Image] = {}
        self.__enter__()

    def _answer(self, message: Image) -> None:
        size = message.height, message.width
        if size not in self._answers:
            blank = np.ones(size, np.float32)
            self._answers[size] = conversions.depth_to_image(blank, message.header)
        answer = self._answers[size]
        answer.header = message.header
        self._pub.publish(answer)


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


class Latency(NamedTuple):
    """A stream in short; milliseconds from the image's stamp to its depth received."""

    p50: float
    p95: float
    p99: float
    shown: int  # images that the camera sent
    dropped: int  # of them without depth
    longest_gap: float  # between two depth images, ms


class Watcher(BackgroundNode):
    """Subscribes to the depth of node and echo, and to what the nodes say of themselves."""

    def __init__(self) -> None:
        super().__init__("bench_watcher", NAMESPACE)
        self.received: dict[str, dict[int, int]] = {NAMESPACE: {}, ECHO: {}}
        """When depth came, by the image's stamp, both in nanoseconds."""
        self.values: dict[str, str] = {}  # depth_node's diagnostics
        self.round: dict[str, str] = {}  # distill/status
        self.steps_done = 0
        create = self._node.create_subscription
        for namespace in self.received:
            create(Image, f"{namespace}/depth", self._noting(namespace), _DEEP)
        create(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        create(DiagnosticStatus, "distill/status", self._on_status, qos.LATCHED)
        self._student = self._node.create_publisher(String, "student", qos.LATCHED)
        self._distill = self._node.create_client(Trigger, "distill")

    def announce(self, version: str) -> None:
        """Tell depth_node which student to run, and wait until it does.

        Raises:
            TiekdError: it does not in time.
        """
        self._student.publish(String(data=version))
        self.await_student(version)

    def await_student(self, version: str) -> None:
        self.wait_until(lambda: self.values["student"] == version, f"student {version}")

    def distill(self) -> None:
        """Start a round.

        Raises:
            TiekdError: it does not start, or no answer comes.
        """
        answer = self._call(self._distill, Trigger.Request(), 30.0)
        if not answer.success:
            raise TiekdError(f"no round started: {answer.message}")

    def wait_until(self, condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
        """Wait until a condition holds.

        Raises:
            TiekdError: it did not in time.
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise TiekdError(f"waited {timeout_s:.0f} s in vain for {what}: {self.values}")
            time.sleep(_POLL_S)

    def latency(self, shown: Sequence[int]) -> Latency:
        """Return what became of the images with these stamps, played in one go.

        Raises:
            TiekdError: no depth came.
        """
        late = self.delays(shown)
        if not late:
            raise TiekdError(f"no depth came for {len(shown)} images: {self.values}")
        seen = self.received[NAMESPACE]
        arrived = sorted(seen[stamp] for stamp in shown if stamp in seen)
        gaps = [(after - before) * 1e-6 for before, after in pairwise(arrived)]
        p50, p95, p99 = (float(p) for p in np.percentile(late, (50, 95, 99)))
        dropped = len(shown) - len(late)
        return Latency(p50, p95, p99, len(shown), dropped, max(gaps, default=0.0))

    def delays(self, shown: Sequence[int], namespace: str = NAMESPACE) -> list[float]:
        """Return the milliseconds from stamp to reception of each image that had an answer."""
        seen = self.received[namespace]
        return [(seen[stamp] - stamp) * 1e-6 for stamp in shown if stamp in seen]

    def _noting(self, namespace: str) -> Callable[[Image], None]:
        def note(message: Image) -> None:
            self.received[namespace][conversions.stamp_ns(message.header)] = time.time_ns()

        return note

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == f"{NAMESPACE}/depth_node":
                self.values = {v.key: v.value for v in status.values}

    def _on_status(self, message: DiagnosticStatus) -> None:
        self.round = {v.key: v.value for v in message.values}
        if self.round.get("stage") == "training":
            self.steps_done = max(self.steps_done, int(self.round["step"]))


@dataclass
class Bench:
    """Camera, node, bare network and observer, all at work."""

    made: Made
    watcher: Watcher
    camera: Remote
    bare: Remote
    rate_hz: float = 15.0

    def play(self, seconds: float, namespace: str = NAMESPACE) -> list[int]:
        """Let the camera play and return the stamps of its images."""
        with playing(self.camera, self.rate_hz, namespace) as shown:
            time.sleep(seconds)
        return shown

    def fits(self, rate_hz: float) -> bool:
        """Return whether the node can take images at this rate, with as much time to spare."""
        self.watcher.wait_until(lambda: "latency p50 [ms]" in self.watcher.values, "latency")
        return 2 * float(self.watcher.values["latency p50 [ms]"]) <= 1e3 / rate_hz


@contextmanager
def playing(camera: Remote, rate_hz: float, namespace: str = NAMESPACE) -> Iterator[list[int]]:
    """Let the camera play meanwhile; afterwards the list holds the stamps of its images."""
    shown: list[int] = []
    camera.call("play", namespace, rate_hz)
    try:
        yield shown
    finally:
        shown += camera.call("pause")
        time.sleep(_SETTLE_S)


@contextmanager
def bench(
    size: InputSize, device: str, runtime: str, *, labelled: int = 0, steps: int = 1
) -> Iterator[Bench]:
    """Make a state folder, start everything and wait until depth flows.

    Args:
        size: the students' input size.
        device: where the student runs, as the node's parameter.
        runtime: the node's parameter.
        labelled: frames to learn from; 0 = without a companion.
        steps: of a training round.
    """
    with ExitStack() as stack:
        made = prepare(Path(stack.enter_context(TemporaryDirectory())), size, labelled)
        depth = {"state_dir": made.state.root, "device": device, "runtime": runtime}
        companion = {"state_dir": made.state.root, "teacher.url": '""', "train.iterations": steps}
        wanted = [("depth_node", depth), ("companion_node", companion)][: 1 + bool(labelled)]
        watcher, camera = _start(stack, made, wanted)
        kind = watcher.values["runtime"].partition(" ")[0].rstrip(",")
        bare = stack.enter_context(Remote(Bare, made.pictures, made.state.students, device, kind))
        running = Bench(made, watcher, camera, bare)
        running.play(3.0)
        while running.rate_hz > RATES_HZ[-1] and not running.fits(running.rate_hz):
            running.rate_hz = next(rate for rate in RATES_HZ if rate < running.rate_hz)
        yield running


def _start(
    stack: ExitStack, made: Made, wanted: Sequence[tuple[str, dict[str, object]]]
) -> tuple[Watcher, Remote]:
    """Start all; again, in another domain, where they do not find each other in time."""
    for left in reversed(range(_STARTS)):
        try:
            with ExitStack() as attempt:
                started = _started(attempt, made, wanted)
                stack.push(attempt.pop_all())
                return started
        except TiekdError as error:
            if not left:
                raise
            sys.stderr.write(f"starting the nodes again: {error}\n")
    raise AssertionError


def _started(
    stack: ExitStack, made: Made, wanted: Sequence[tuple[str, dict[str, object]]]
) -> tuple[Watcher, Remote]:
    stack.enter_context(own_domain())
    watcher = stack.enter_context(Watcher())
    children = stack.enter_context(nodes(*wanted, logs=made.state.logs))
    camera = stack.enter_context(Remote(Camera, made.pictures, [NAMESPACE, ECHO]))
    stack.enter_context(Remote(Echo))

    def flows() -> bool:
        check_running(children)
        return watcher.values.get("depth rate [Hz]", "0.000") != "0.000"

    with playing(camera, 5.0):
        watcher.wait_until(flows, "depth", _FOUND_S)
    with playing(camera, 5.0, ECHO):
        watcher.wait_until(lambda: bool(watcher.received[ECHO]), "an echo", _FOUND_S)
    return watcher, camera
