"""What the companion takes from the camera's stream and offers to the frame log."""

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
from tiekd_ros.nodes.common.reporting import ERROR, WARN
from tiekd_ros.nodes.common.settings import CommonSettings
from tiekd_ros.nodes.common.statistics import Rate

_LEAST_INTERVAL_NS = 500_000_000
_LONGEST_AGE_NS = 1_000_000_000


class ConfidenceListener:
    """Keeps the mean of the latest confidence image; looks at two a second at most.

    Messages come in one thread; `at` may be asked from others.
    """

    def __init__(self) -> None:
        self._latest: tuple[int, float | None] | None = None  # (stamp in ns, mean)

    def hear(self, message: Image) -> None:
        """Take note of a confidence image; one that cannot be read is passed over."""
        stamp = conversions.stamp_ns(message.header)
        if self._latest is not None and abs(stamp - self._latest[0]) < _LEAST_INTERVAL_NS:
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
        if latest is None or abs(stamp_ns - latest[0]) > _LONGEST_AGE_NS:
            return None
        return latest[1]


_OFFERS_AN_INTERVAL = 4
"""Images offered to the log in one minimum interval; converting every one would be waste."""
_MUCH_BLIND = 0.1
_PATIENCE_S = 0.1
"""How long a camera_info that comes after its image is waited for: longer than depth does, for
nobody waits for a logged frame."""
_END_S = 2.0


class FrameIntake:
    """Listens to image, camera_info and, if asked, confidence from creation until `close`.

    The executor's thread only puts images into a one-slot mailbox: a camera_info that is waited for
    comes in that thread.

    Args:
        node: who listens.
        settings: as for `CameraInput`.
        recorder: receives the observations.
        min_interval_s: shortest time between two logged frames.
        confidence: whether to listen to the confidence too.
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
        self._least_ns = min_interval_s * 1e9 / _OFFERS_AN_INTERVAL
        self._confidence = ConfidenceListener()
        self._last_offer_ns: int | None = None
        self._fault = ""
        self._blind_share = 0.0  # of the last image that was offered
        self._received = Rate()
        self._mailbox: Mailbox[tuple[CameraImage, int]] = Mailbox()
        self._thread = threading.Thread(target=self._work, name="intake", daemon=True)
        with ExitStack() as made:  # where one cannot be made, none is left
            self._camera = CameraInput(node, settings, self._on_image)
            made.callback(self._camera.close)
            if confidence:
                subscription = node.create_subscription(
                    Image, "confidence", self._confidence.hear, qos.image_input("best_effort")
                )
                made.callback(node.destroy_subscription, subscription)
            self._made = made.pop_all()
        self._thread.start()

    def check(self) -> list[tuple[bytes, str]]:
        """Look after the subscriptions; return what is wrong with the stream, as findings."""
        findings = [(ERROR, self._fault)] if self._fault else []
        if self._blind_share > _MUCH_BLIND:
            findings.append(
                (
                    WARN,
                    f"{self._blind_share:.0%} of a rectified image is what the camera did not see: "
                    "there is neither depth nor a label there; calibrate the camera with alpha 0, "
                    "or set rectify to false",
                )
            )
        return findings + self._camera.check()

    def values(self) -> dict[str, object]:
        """Return what is listened to, and what came, for the diagnostics."""
        rate = self._received.value(time.monotonic())
        own = {keys.IMAGE_RATE: rate, keys.INVALID_SHARE: self._blind_share}
        return {**own, **self._camera.values()}

    def forget_time(self) -> None:
        """Drop what is known by stamps, since the clock has jumped."""
        self._camera.forget_time()
        self._last_offer_ns = None

    def close(self) -> None:
        """Stop listening; an image that waits for its camera_info is dropped."""
        self._mailbox.close()
        self._made.close()
        self._thread.join(_END_S)

    def _on_image(self, message: CameraImage) -> None:
        self._received.tick(time.monotonic())
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
        last = self._last_offer_ns
        # A stamp that went back, by a bag that starts again, is far from the last one too.
        if last is not None and abs(stamp - last) < self._least_ns:
            return
        try:
            self._offer(message, stamp)
        except NotYetCalibratedError:
            return
        except BadImageError as error:
            self._fault = str(error)
            self._node.get_logger().warning(f"not logged: {error}", throttle_duration_sec=10.0)
        except Exception as error:  # one bad frame must not end the companion
            self._fault = f"a frame was not logged: {type(error).__name__}: {error}"
            self._node.get_logger().error(self._fault, throttle_duration_sec=10.0)
        else:
            self._fault, self._last_offer_ns = "", stamp

    def _offer(self, message: CameraImage, stamp: int) -> None:
        image, info, blind = self._camera.view(message, patience_s=_PATIENCE_S, awaits_first=True)
        if self._mailbox.closed:
            return
        self._blind_share = 0.0 if blind is None else float(blind.mean())
        height, width = image.shape[:2]
        self._recorder.offer(
            Observation(
                image,
                stamp,
                message.header.frame_id,
                conversions.intrinsics_of(info, width, height) if info is not None else None,
                self._confidence.at(stamp),
                blind=blind,
            )
        )
