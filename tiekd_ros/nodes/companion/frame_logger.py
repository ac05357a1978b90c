"""The companion's thread from a camera message to the frame log."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import Image

from tiekd_ros.core.errors import BadImageError
from tiekd_ros.core.mailbox import Mailbox
from tiekd_ros.diagnosis import keys
from tiekd_ros.framelog import Observation, Recorder
from tiekd_ros.nodes.camera.input import CameraImage, CameraInput, NotYetCalibratedError
from tiekd_ros.nodes.common import conversions, qos
from tiekd_ros.nodes.common.reporting import ERROR, WARN, Rate
from tiekd_ros.nodes.common.settings import CommonSettings

_CONFIDENCE_INTERVAL_NS = 500_000_000
_CONFIDENCE_AGE_NS = 1_000_000_000


class MeanConfidence:
    """The mean of the latest confidence image; two a second at most are read.

    Messages come in the executor's thread; the logger's thread asks `at`. `_latest` is replaced as
    a whole.
    """

    def __init__(self) -> None:
        self._latest: tuple[int, float | None] | None = None  # (stamp in ns, mean)

    def add(self, message: Image) -> None:
        """Keep a confidence image's mean; one that cannot be read is skipped."""
        stamp = conversions.stamp_ns(message.header)
        if self._latest is not None and abs(stamp - self._latest[0]) < _CONFIDENCE_INTERVAL_NS:
            return
        try:
            values = conversions.image_to_float(message)
        except BadImageError:
            return
        if values.size:
            mean = float(np.mean(values[::4, ::4]))
            # A student without a depth probability map does not know: NaN.
            self._latest = (stamp, mean if np.isfinite(mean) else None)

    def at(self, stamp_ns: int) -> float | None:
        """Return the mean confidence of about this time, 0..1, None where none is known."""
        latest = self._latest  # once: another may come meanwhile
        if latest is None or abs(stamp_ns - latest[0]) > _CONFIDENCE_AGE_NS:
            return None
        return latest[1]


_IMAGES_AN_INTERVAL = 4
"""Images converted for the log in one minimum interval; converting every one would be waste."""
_LARGE_INVALID_SHARE = 0.1
_PATIENCE_S = 0.1
"""How long a camera_info that comes after its image is waited for: longer than for depth, since a
logged frame is not urgent."""
_JOIN_S = 2.0


class FrameLogger:
    """Logs images with their calibration and, if asked, confidence, from creation until `close`.

    The executor's thread only puts messages into a one-slot mailbox, so the newest wins. One thread
    of its own does the rest, from the message to the store: a camera_info that it waits for comes
    in the executor's thread, and the store may take as long as it needs.

    Args:
        node: subscribes to the topics.
        settings: as for `CameraInput`.
        recorder: stores the images.
        min_interval_s: shortest time between two logged frames.
        confidence: whether to subscribe to the confidence too.
    """

    def __init__(
        self,
        node: Node,
        settings: CommonSettings,
        recorder: Recorder,
        min_interval_s: float,
        *,
        confidence: bool,
    ) -> None:
        self._node = node
        self._recorder = recorder
        self._interval_ns = min_interval_s * 1e9 / _IMAGES_AN_INTERVAL
        self._confidence = MeanConfidence()
        self._last_ns: int | None = None
        self._fault = ""
        self._invalid_share = 0.0  # of the last image that was offered
        self._received = Rate()
        self._mailbox: Mailbox[tuple[CameraImage, int]] = Mailbox()
        # A daemon: a store that waits for a lock must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="frame logger", daemon=True)
        with ExitStack() as made:  # where one cannot be made, none is left
            self._camera = CameraInput(node, settings, self._on_image)
            made.callback(self._camera.close)
            if confidence:
                subscription = node.create_subscription(
                    Image, "confidence", self._confidence.add, qos.profile("best_effort")
                )
                made.callback(node.destroy_subscription, subscription)
            self._made = made.pop_all()
        self._thread.start()

    def check(self) -> list[tuple[bytes, str]]:
        """Renew subscriptions whose publishers changed; return findings about the stream."""
        findings = [(ERROR, self._fault)] if self._fault else []
        if self._invalid_share > _LARGE_INVALID_SHARE:
            findings.append(
                (
                    WARN,
                    f"the camera did not see {self._invalid_share:.0%} of a rectified image: there "
                    "is neither depth nor a label there; calibrate the camera with alpha 0, or set "
                    "rectify to false",
                )
            )
        return findings + self._camera.check()

    def values(self) -> dict[str, object]:
        """Return the topics and what came on them, for the diagnostics."""
        rate = self._received.value(time.monotonic())
        own = {keys.IMAGE_RATE: rate, keys.INVALID_SHARE: self._invalid_share}
        return {**own, **self._camera.values()}

    def forget_time(self) -> None:
        """Drop what is known by stamps, since the clock has jumped."""
        self._camera.forget_time()
        self._last_ns = None

    def close(self) -> None:
        """End the subscriptions and the thread; an image that waits is dropped."""
        self._mailbox.close()
        self._made.close()
        self._thread.join(_JOIN_S)

    def _on_image(self, message: CameraImage) -> None:
        self._received.tick(time.monotonic())
        if self._recorder.paused:
            return
        # A camera that leaves its stamps empty is logged by the time of arrival; with use_sim_time
        # and no /clock yet, that is 0 too.
        stamp = conversions.stamp_ns(message.header) or self._node.get_clock().now().nanoseconds
        self._mailbox.put((message, stamp or time.time_ns()))

    def _work(self) -> None:
        while not self._mailbox.closed:
            item = self._mailbox.take()
            if item is not None:
                self._take(*item)

    def _take(self, message: CameraImage, stamp: int) -> None:
        last = self._last_ns
        # A stamp that went back, by a bag that starts again, is far from the last one too.
        if last is not None and abs(stamp - last) < self._interval_ns:
            return
        try:
            self._record(message, stamp)
        except NotYetCalibratedError:
            return
        except BadImageError as error:
            self._fault = str(error)
            self._node.get_logger().warning(f"not logged: {error}", throttle_duration_sec=10.0)
        except Exception as error:  # one bad frame must not end the companion
            self._fault = f"a frame was not logged: {type(error).__name__}: {error}"
            self._node.get_logger().error(self._fault, throttle_duration_sec=10.0)
        else:
            self._fault, self._last_ns = "", stamp

    def _record(self, message: CameraImage, stamp: int) -> None:
        frame = self._camera.frame(message, patience_s=_PATIENCE_S, awaits_first=True)
        if self._mailbox.closed:
            return
        mask, model = frame.invalid_mask, frame.model
        self._invalid_share = 0.0 if mask is None else float(mask.mean())
        height, width = frame.image.shape[:2]
        self._recorder.record(
            Observation(
                frame.image,
                stamp,
                frame.header.frame_id,
                None if model is None else model.intrinsics(width, height),
                self._confidence.at(stamp),
                invalid_mask=mask,
            )
        )
