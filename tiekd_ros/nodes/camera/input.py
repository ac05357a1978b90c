"""The boundary of the nodes: from `image` and `image_info` to (image, camera model, header)."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import NamedTuple, TypeAlias

from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from tiekd_ros.core.camera import CameraModel, Rectifier, is_rectified_topic
from tiekd_ros.core.errors import BadImageError
from tiekd_ros.core.images import Mask, RgbImage
from tiekd_ros.diagnosis import keys
from tiekd_ros.diagnosis.camera import check_calibration
from tiekd_ros.nodes.camera.info_sync import CameraInfoSync
from tiekd_ros.nodes.camera.topic import (
    CameraTopic,
    Quality,
    compressed_topic,
    why_info_stopped,
    why_no_image,
    why_no_info,
)
from tiekd_ros.nodes.common import conversions
from tiekd_ros.nodes.common.reporting import ERROR, WARN, Finding, as_reported
from tiekd_ros.nodes.common.settings import CommonSettings

CameraImage: TypeAlias = Image | CompressedImage

PATIENCE_S = 0.01
"""How long a camera_info that comes after its image is worth waiting for."""
_INFO_PATIENCE_S = 2.0
"""How long after the first image a camera_info may take to come."""
_SILENCE_S = 5.0
_LOGGED_AGAIN_S = 60.0
_SETTLED_S = 1.0
"""What goes away sooner was the ROS graph on its way, such as a publisher without a name yet."""
_NUMBER = re.compile(r"\d+(\.\d+)?")


class NotYetCalibratedError(BadImageError):
    """The image has to be rectified, and the camera's first camera_info may be on its way."""


class CameraFrame(NamedTuple):
    """A camera's image with its calibration, rectified if the node rectifies."""

    image: RgbImage
    """(H, W, 3)."""
    model: CameraModel | None
    """Of this very image; None where no camera_info has come."""
    header: Header
    invalid_mask: Mask | None = None
    """(H, W), where a rectified image shows what the camera did not see; None = nowhere."""


class CameraInput:
    """Subscriptions to `image` (or `image/compressed`) and `image_info`.

    Messages arrive in the executor's thread, as does `check`; `frame` is called by one other
    thread, which may wait there for a camera_info.

    Args:
        node: the subscriber.
        settings: transport, quality of service, whether to rectify.
        on_image: called with each image.

    Raises:
        TiekdError: a topic is there with another type, such as `image_info` remapped to images.
    """

    def __init__(
        self, node: Node, settings: CommonSettings, on_image: Callable[[CameraImage], None]
    ) -> None:
        self._node, self._settings, self._on_image = node, settings, on_image
        self._sync, self._log, self._rectifier = CameraInfoSync(), FindingLog(node), Rectifier()
        self._first: float | None = None  # when the first image came
        self._last = time.monotonic()  # when the last one did
        self._late_ms = math.nan
        self._size: tuple[int, int] | None = None  # (width, height) of the last frame
        self._model: CameraModel | None = None  # of the last frame
        quality = Quality(
            settings.input_reliability, settings.input_durability, settings.input_depth
        )
        if settings.image_transport == "compressed":
            name, kind = compressed_topic(node), CompressedImage
        else:
            name, kind = node.resolve_topic_name("image"), Image
        info_name = node.resolve_topic_name("image_info")
        with ExitStack() as made:  # where one cannot be made, none is left
            self._image = CameraTopic(node, kind, name, quality, self._on_image_message)
            made.callback(self._image.close)
            self._info = CameraTopic(
                node,
                CameraInfo,
                info_name,
                quality,
                lambda message: self._sync.add_info(message, time.monotonic()),
            )
            made.pop_all()

    @property
    def model(self) -> CameraModel | None:
        """The calibration of the last frame, or the newest one before there is a frame."""
        return self._sync.newest if self._model is None else self._model

    def frame(
        self,
        message: CameraImage,
        *,
        copy: bool = True,
        patience_s: float = 0.0,
        awaits_first: bool = False,
    ) -> CameraFrame:
        """Return a message's image, rectified if the node rectifies, and its calibration.

        The calibration is that with the image's stamp, else the newest, made to fit the image's
        size.

        Args:
            message: as `on_image` got it.
            copy: as for `conversions.image_to_rgb`.
            patience_s: as for `CameraInfoSync.model_for`, such as `PATIENCE_S`.
            awaits_first: wait for the camera's first camera_info while the stream is new. As with
                patience, not in the executor's thread.

        Raises:
            NotYetCalibratedError: it has to be rectified, and the stream has only begun.
            BadImageError: the image cannot be read, or has to be rectified and cannot be.
        """
        image = conversions.image_to_rgb(message, copy=copy)
        height, width = image.shape[:2]
        self._size = (width, height)
        first_s = self._new_for_s(time.monotonic()) if awaits_first else 0.0
        stamp = conversions.stamp_ns(message.header)
        model = self._sync.model_for(stamp, patience_s, first_s)
        model = None if model is None else model.of_view(width, height)
        mask = None
        if self._settings.rectify:
            if model is None:
                raise self._uncalibrated()
            image, mask = self._rectifier.rectified(image, model)
            model = model.rectified()
        elif model is not None and model.is_calibrated and is_rectified_topic(self._image.topic):
            model = model.rectified()
        self._model = model
        return CameraFrame(image, model, message.header, mask)

    def check(self) -> list[Finding]:
        """Renew subscriptions whose publishers changed; return, and log, what is wrong.

        To be called at each tick of the node.
        """
        self._image.check()
        self._info.check()
        found = list(self._findings(time.monotonic()))
        self._log.add(found)
        return found

    def values(self) -> dict[str, object]:
        """Return the topics and what came on them, for the diagnostics."""
        synchronised, matched = self._sync.synchronised_share(), self._sync.matched_share()
        return {
            keys.IMAGE_TOPIC: self._image.topic,
            keys.IMAGE_QOS: self._image.quality,
            keys.IMAGES_LOST: self._image.lost,
            keys.IMAGE_AGE: self._late_ms,
            keys.IMAGE_STAMPS_WENT_BACK: self._sync.jumps,
            keys.CAMERA_INFO_TOPIC: self._info.topic,
            keys.CAMERA_INFO_RECEIVED: self._sync.infos,
            keys.CAMERA_INFO_CHANGES: self._sync.changes,
            keys.CAMERA_INFO_SYNCHRONISED: "unknown" if synchronised is None else synchronised,
            keys.CAMERA_INFO_OF_SAME_STAMP: "unknown" if matched is None else matched,
        }

    def forget_time(self) -> None:
        """Drop what is known by stamps, since the clock has jumped."""
        self._sync.forget()
        self._late_ms = math.nan

    def close(self) -> None:
        """End the subscriptions and all waiting."""
        self._sync.close()
        self._image.close()
        self._info.close()

    def _on_image_message(self, message: CameraImage) -> None:
        now = time.monotonic()
        self._first = now if self._first is None else self._first
        self._last = now
        back = self._sync.add_image(message, now)
        if back:
            self._node.get_logger().info(
                f"the images' stamps went back by {back:.3f} s (a bag that starts again, or a "
                "simulation that was reset); the stream goes on",
                throttle_duration_sec=10.0,
            )
        stamp = conversions.stamp_ns(message.header)
        if stamp:
            self._late_ms = (self._node.get_clock().now().nanoseconds - stamp) * 1e-6
        self._on_image(message)

    def _new_for_s(self, now: float) -> float:
        """Return how long the stream still counts as new."""
        first = now if self._first is None else self._first
        return max(0.0, first + _INFO_PATIENCE_S - now)

    def _uncalibrated(self) -> BadImageError:
        is_new = self._new_for_s(time.monotonic()) > 0
        return (NotYetCalibratedError if is_new else BadImageError)(
            f"rectify is on, and no camera_info has come on {self._info.topic}: the image is not "
            "used; publish camera_info, or set rectify to false"
        )

    def _findings(self, now: float) -> Iterator[Finding]:
        image_findings = self._image.findings()
        yield from image_findings
        silent_s = now - self._last
        if silent_s > _SILENCE_S and not any(level == ERROR for level, _ in image_findings):
            since = "" if self._first is None else f" for {silent_s:.0f} s"
            reason = why_no_image(self._node, self._image)
            yield WARN, f"no image arrives{since} on {self._image.topic}: {reason}"
        yield from self._info.findings()
        yield from self._missing_info(now)
        yield from self._sync.findings(now)
        if self._sync.newest is not None:
            yield from as_reported(
                check_calibration(
                    self._sync.newest,
                    self._size,
                    self._image.topic,
                    rectify=self._settings.rectify,
                )
            )

    def _missing_info(self, now: float) -> Iterator[Finding]:
        silent_s = self._sync.infos_silent_s(now)
        if silent_s is not None:
            yield (
                WARN,
                f"no camera_info since {silent_s:.0f} s on {self._info.topic}, the last one is "
                f"used: {why_info_stopped(self._info)}",
            )
        if self._sync.newest is not None or self._first is None or self._new_for_s(now) > 0:
            return
        effect = "no depth, since rectify is on" if self._settings.rectify else "depth without it"
        reason = why_no_info(self._node, self._info, self._image.topic)
        level = ERROR if self._settings.rectify else WARN
        yield level, f"no camera_info arrives on {self._info.topic} ({effect}): {reason}"


class FindingLog:
    """Logs a node's findings of WARN and ERROR; numbers in a text may differ, it stays the same."""

    def __init__(self, node: Node) -> None:
        self._logger = node.get_logger()
        # By text without numbers: when, monotonic seconds.
        self._since: dict[str, float] = {}
        self._logged: dict[str, float] = {}

    def add(self, findings: Iterable[Finding]) -> None:
        """Log those of the present findings that are new, or were logged long ago."""
        now = time.monotonic()
        present = {_NUMBER.sub("#", text): (level, text) for level, text in findings}
        self._since = {key: self._since.get(key, now) for key in present}
        for key, (level, text) in present.items():
            logged = self._logged.get(key)
            if now - self._since[key] < _SETTLED_S or (
                logged is not None and now - logged < _LOGGED_AGAIN_S
            ):
                continue
            self._logged[key] = now
            if level == ERROR:
                self._logger.error(text)
            elif level == WARN:
                self._logger.warning(text)
