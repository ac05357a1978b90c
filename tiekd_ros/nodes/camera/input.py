"""The camera's image and camera_info: subscribed as fits, checked, and made one view."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import TypeAlias

from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from tiekd_ros.core.camera import Rectifier, is_calibrated, is_rectified_topic
from tiekd_ros.core.errors import BadImageError
from tiekd_ros.diagnosis import keys
from tiekd_ros.nodes.camera.calibration import (
    CalibrationCheck,
    View,
    info_of_view,
    rectified_info,
)
from tiekd_ros.nodes.camera.info_sync import CameraWatch
from tiekd_ros.nodes.camera.topic import (
    CameraTopic,
    Quality,
    compressed_topic,
    why_info_stopped,
    why_no_image,
    why_no_info,
)
from tiekd_ros.nodes.common import conversions
from tiekd_ros.nodes.common.reporting import ERROR, WARN, Finding
from tiekd_ros.nodes.common.settings import CommonSettings

_AGAIN_S = 60.0
_SETTLED_S = 1.0
"""What goes away sooner was the ROS graph on its way, such as a publisher without a name yet."""
_NUMBER = re.compile(r"\d+(\.\d+)?")


class FindingLog:
    """Logs a node's findings of WARN and ERROR; numbers in a text may differ, it stays the same."""

    def __init__(self, node: Node) -> None:
        self._logger = node.get_logger()
        # By text without numbers: when, monotonic seconds.
        self._since: dict[str, float] = {}
        self._logged: dict[str, float] = {}

    def note(self, findings: Iterable[tuple[bytes, str]]) -> None:
        """Log those of the present findings that are new, or were logged long ago."""
        now = time.monotonic()
        present = {_NUMBER.sub("#", text): (level, text) for level, text in findings}
        self._since = {key: self._since.get(key, now) for key in present}
        for key, (level, text) in present.items():
            logged = self._logged.get(key)
            if now - self._since[key] < _SETTLED_S or (logged and now - logged < _AGAIN_S):
                continue
            self._logged[key] = now
            if level == ERROR:
                self._logger.error(text)
            elif level == WARN:
                self._logger.warning(text)


CameraImage: TypeAlias = Image | CompressedImage

_SILENCE_S = 5.0
_INFO_PATIENCE_S = 2.0
"""How long after the first image a camera_info may take to come."""
PATIENCE_S = 0.01
"""How long a camera_info that comes after its image is worth waiting for."""


class NotYetCalibratedError(BadImageError):
    """The image has to be rectified, and the camera's first camera_info may be on its way."""


class CameraInput:
    """Subscriptions to `image` (or `image/compressed`) and `image_info`.

    Messages arrive in the executor's thread; `view` may be called in another one.

    Args:
        node: who subscribes.
        settings: transport, quality of service, whether to rectify.
        on_image: called with each image.

    Raises:
        TiekdError: a topic is there with another type, such as `image_info` remapped to images.
    """

    def __init__(
        self, node: Node, settings: CommonSettings, on_image: Callable[[CameraImage], None]
    ) -> None:
        self._node, self._settings, self._on_image = node, settings, on_image
        self._watch, self._log, self._rectifier = CameraWatch(), FindingLog(node), Rectifier()
        self._started = time.monotonic()
        self._first: float | None = None  # when the first image came, and the last one
        self._last = self._started
        self._late_ms = math.nan
        self._seen: tuple[int, int] | None = None  # (width, height) of the last view
        self._seen_info: CameraInfo | None = None
        self._check = CalibrationCheck(settings.rectify)
        quality = Quality(
            settings.input_reliability, settings.input_durability, settings.input_depth
        )
        if settings.image_transport == "compressed":
            name, kind = compressed_topic(node), CompressedImage
        else:
            name, kind = node.resolve_topic_name("image"), Image
        info_name = node.resolve_topic_name("image_info")
        with ExitStack() as made:  # where one cannot be made, none is left
            self._image = CameraTopic(node, kind, name, quality, self._take_image)
            made.callback(self._image.close)
            self._info = CameraTopic(node, CameraInfo, info_name, quality, self._take_info)
            made.pop_all()

    @property
    def info(self) -> CameraInfo | None:
        """The calibration of the last view, or the newest camera_info before there is one."""
        return self._watch.newest if self._seen_info is None else self._seen_info

    def view(
        self,
        message: CameraImage,
        *,
        copy: bool = True,
        patience_s: float = 0.0,
        awaits_first: bool = False,
    ) -> View:
        """Return a message's image, rectified if asked for, and its calibration.

        The calibration is that with the image's stamp, else the newest, made to fit the image's
        size. From one thread at a time.

        Args:
            message: as `on_image` got it.
            copy: as for `conversions.image_to_rgb`.
            patience_s: as for `CameraWatch.info_for`, such as `PATIENCE_S`.
            awaits_first: wait for the camera's first camera_info while the stream is new. As with
                patience, not in the executor's thread.

        Raises:
            NotYetCalibratedError: it has to be rectified, and the stream has only begun.
            BadImageError: the image cannot be read, or has to be rectified and cannot be.
        """
        image = conversions.image_to_rgb(message, copy=copy)
        height, width = image.shape[:2]
        self._seen = (width, height)
        first_s = self._new_for_s(time.monotonic()) if awaits_first else 0.0
        info = self._watch.info_for(conversions.stamp_ns(message.header), patience_s, first_s)
        view = View(image, None if info is None else info_of_view(info, width, height))
        if self._settings.rectify:
            view = self._rectified(view)
        elif (
            view.info is not None
            and is_rectified_topic(self._image.topic)
            and is_calibrated(view.info)
        ):
            view = View(image, rectified_info(view.info))
        self._seen_info = view.info
        return view

    def _rectified(self, view: View) -> View:
        if view.info is None:
            kind = NotYetCalibratedError if self._is_new(time.monotonic()) else BadImageError
            raise kind(
                f"rectify is on, and no camera_info has come on {self._info.topic}: the image "
                "is not used; publish camera_info, or set rectify to false"
            )
        image, invalid_mask = self._rectifier.rectified(view.image, view.info)
        return View(image, rectified_info(view.info), invalid_mask)

    def check(self) -> list[Finding]:
        """Look after the subscriptions; return, and log, what is wrong. Call once a second.

        Returns:
            Findings: (level, text with its remedy).
        """
        self._image.check()
        self._info.check()
        found = list(self._findings(time.monotonic()))
        self._log.note(found)
        return found

    def values(self) -> dict[str, object]:
        """Return what is listened to, and what came, for the diagnostics."""
        share, exact = self._watch.synchronised(), self._watch.exact()
        return {
            keys.IMAGE_TOPIC: self._image.topic,
            keys.IMAGE_QOS: self._image.quality,
            keys.IMAGES_LOST: self._image.lost,
            keys.IMAGE_AGE: self._late_ms,
            keys.IMAGE_STAMPS_WENT_BACK: self._watch.jumps,
            keys.CAMERA_INFO_TOPIC: self._info.topic,
            keys.CAMERA_INFO_RECEIVED: self._watch.infos,
            keys.CAMERA_INFO_CHANGES: self._watch.changes,
            keys.CAMERA_INFO_SYNCHRONISED: "unknown" if share is None else share,
            keys.CAMERA_INFO_OF_SAME_STAMP: "unknown" if exact is None else exact,
        }

    def forget_time(self) -> None:
        """Drop what is known by stamps, since the clock has jumped."""
        self._watch.forget()
        self._late_ms = math.nan

    def close(self) -> None:
        """Stop listening."""
        self._watch.close()
        self._image.close()
        self._info.close()

    # What comes.

    def _take_image(self, message: CameraImage) -> None:
        now = time.monotonic()
        self._first = now if self._first is None else self._first
        self._last = now
        back = self._watch.saw_image(message, now)
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

    def _take_info(self, message: CameraInfo) -> None:
        self._watch.saw_info(message, time.monotonic())

    # What is wrong.

    def _findings(self, now: float) -> Iterator[Finding]:
        unheard = self._image.findings()
        yield from unheard
        silent_s = now - self._last
        if silent_s > _SILENCE_S and not any(level == ERROR for level, _ in unheard):
            since = "" if self._first is None else f" for {silent_s:.0f} s"
            reason = why_no_image(self._node, self._image)
            yield WARN, f"no image arrives{since} on {self._image.topic}: {reason}"
        yield from self._info.findings()
        yield from self._missing_info(now)
        yield from self._watch.findings(now)
        if self._watch.newest is not None:
            yield from self._check.findings(self._watch.newest, self._seen, self._image.topic)

    def _is_new(self, now: float) -> bool:
        """Say whether the first image came only just now."""
        return self._new_for_s(now) > 0

    def _new_for_s(self, now: float) -> float:
        """Return how long the stream still counts as new."""
        first = now if self._first is None else self._first
        return max(0.0, first + _INFO_PATIENCE_S - now)

    def _missing_info(self, now: float) -> Iterator[Finding]:
        silent_s = self._watch.infos_silent_s(now)
        if silent_s is not None:
            yield (
                WARN,
                f"no camera_info since {silent_s:.0f} s on {self._info.topic}, the last one is "
                f"used: {why_info_stopped(self._info)}",
            )
        if self._watch.newest is not None or self._first is None or self._is_new(now):
            return
        effect = "no depth, since rectify is on" if self._settings.rectify else "depth without it"
        reason = why_no_info(self._node, self._info, self._image.topic)
        level = ERROR if self._settings.rectify else WARN
        yield level, f"no camera_info arrives on {self._info.topic} ({effect}): {reason}"
