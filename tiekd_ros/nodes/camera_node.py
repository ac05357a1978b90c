"""camera_node: plays the synthetic world or a folder of images as a camera."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from rclpy.node import Node
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from tiekd_ros.camera import Intrinsics
from tiekd_ros.datasets.image_folder import ImageFolder
from tiekd_ros.errors import TiekdError
from tiekd_ros.images import RgbImage
from tiekd_ros.nodes import conversions, qos
from tiekd_ros.nodes.parameters import SettingsParameters
from tiekd_ros.nodes.run import run_node, until_shutdown
from tiekd_ros.nodes.settings import CameraSettings
from tiekd_ros.worlds import IndoorWorld, WorldSettings


class Source(Protocol):
    """Where images come from."""

    def frame(self, number: int, now_ns: int) -> tuple[RgbImage, Intrinsics | None, int] | None:
        """Return image, intrinsics and stamp in ns of the frame with this number; None = end."""


class WorldSource:
    """The synthetic world; its time is the stamp."""

    def __init__(self, settings: CameraSettings) -> None:
        self._world = IndoorWorld(WorldSettings(seed=settings.seed, period_s=settings.period_s))
        self._size = (settings.width, settings.height)
        self._intrinsics = IndoorWorld.default_intrinsics(*self._size)

    def frame(self, number: int, now_ns: int) -> tuple[RgbImage, Intrinsics | None, int] | None:
        """Return the world's view at this moment."""
        view = self._world.render(now_ns, *self._size, self._intrinsics)
        return view.image, self._intrinsics, now_ns


class FolderSource:
    """A folder of images, one after the other."""

    def __init__(self, settings: CameraSettings) -> None:
        self._folder = ImageFolder(Path(settings.source).expanduser())
        self._loop = settings.loop
        recorded = settings.stamps == "recorded"
        self._stamps = self._folder.stamps_ns(settings.rate_hz) if recorded else None

    def frame(self, number: int, now_ns: int) -> tuple[RgbImage, Intrinsics | None, int] | None:
        """Return the image of this number, from the start again at the end if looped."""
        turn, index = divmod(number, len(self._folder))
        if turn > 0 and not self._loop:
            return None
        stamp = now_ns if self._stamps is None else self._stamps[index]
        return self._folder.image(index), self._folder.intrinsics, stamp


class CameraNode(Node):
    """Publishes image and camera_info at a steady rate from a thread of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__("camera_node", **options)
        self.settings = SettingsParameters(self, lambda group, new: None).declare(
            "", CameraSettings
        )
        synthetic = self.settings.source == "synthetic"
        self._source: Source = (WorldSource if synthetic else FolderSource)(self.settings)
        self._image_pub = self.create_publisher(Image, "image_raw", qos.RELIABLE)
        self._info_pub = self.create_publisher(CameraInfo, "camera_info", qos.RELIABLE)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._play, name="camera", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(5.0)

    def _play(self) -> None:
        period, number = 1.0 / self.settings.rate_hz, 0
        due = time.monotonic()
        while not self._stop.is_set():
            now_ns = self.get_clock().now().nanoseconds
            try:
                frame = self._source.frame(number, now_ns)
                if frame is None:
                    self.get_logger().info(f"all {number} images played")
                    return
                with until_shutdown(self):
                    self._publish(*frame)
            except TiekdError as error:  # one bad file must not end the stream
                self.get_logger().error(str(error), throttle_duration_sec=10.0)
            number += 1
            due += period
            late = time.monotonic() - due
            if late > period:
                due += late  # a slow machine skips time, it does not catch up in a burst
            self._stop.wait(max(0.0, due - time.monotonic()))

    def _publish(self, image: RgbImage, intrinsics: Intrinsics | None, stamp_ns: int) -> None:
        header = Header(frame_id=self.settings.frame_id)
        header.stamp = Time(nanoseconds=stamp_ns).to_msg()
        if intrinsics is not None:
            height, width = image.shape[:2]
            self._info_pub.publish(_camera_info(intrinsics, header, width, height))
        self._image_pub.publish(conversions.rgb_to_image(image, header))


def _camera_info(intrinsics: Intrinsics, header: Header, width: int, height: int) -> CameraInfo:
    info = CameraInfo(header=header, width=width, height=height, distortion_model="plumb_bob")
    k = intrinsics.matrix()
    info.d = [0.0] * 5
    info.k = k.flatten()
    info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    info.p = [*k[0], 0.0, *k[1], 0.0, *k[2], 0.0]
    return info


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the node (`ros2 run tiekd_ros camera_node`)."""
    return run_node(CameraNode, lambda node: True, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
