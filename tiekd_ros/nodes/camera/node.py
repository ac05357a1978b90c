"""camera_node: plays the synthetic world, images, a bag, a video or a webcam as a camera."""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import rclpy
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from tiekd_ros.bags import require_rosbags
from tiekd_ros.core.camera import CameraModel
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.images import RgbImage
from tiekd_ros.datasets.calibration import read_camera_model
from tiekd_ros.datasets.image_folder import IMAGE_SUFFIXES, ImageFolder
from tiekd_ros.nodes.common import conversions, qos
from tiekd_ros.nodes.common.parameters import SettingsParameters
from tiekd_ros.nodes.common.run import until_shutdown
from tiekd_ros.nodes.common.settings import CameraSettings
from tiekd_ros.worlds import IndoorWorld, WorldSettings

if TYPE_CHECKING:
    from tiekd_ros.bags.images import BagImage

RATE, RECORDED, LIVE = "rate", "recorded", "live"
SYNTHETIC, WEBCAM = "synthetic", "webcam"
_NS_PER_MS = 1_000_000
_BAG_SUFFIXES = (".mcap", ".db3", ".bag")


class CameraSourceError(TiekdError):
    """Images that cannot be had from where the parameter `source` says."""


@dataclass(frozen=True)
class SourceImage:
    """One image of a source."""

    image: RgbImage
    camera: CameraModel | None
    """Its calibration, where it is known."""
    recorded_ns: int | None = None
    """When it was recorded; None where it is being taken now."""
    taken_ns: int | None = None
    """The moment that it shows, of those that were given; None = any."""
    frame_id: str = ""
    """As recorded; '' = nothing was."""


class Source(ABC):
    """Where images come from; its images' time is the stamp where they are taken or made now."""

    pace = RATE
    """RATE, RECORDED or LIVE: what 'auto' means for it."""
    notes: Sequence[str] = ()
    """Oddities to log."""

    @abstractmethod
    def read(self, now_ns: int) -> SourceImage | None:
        """Return the next image; None after the last one.

        Raises:
            TiekdError: this image is of no use; the next call goes on with the one after it.
        """

    def rewind(self) -> None:  # noqa: B027
        """Go back to the first image, where there is an end."""

    def close(self) -> None:  # noqa: B027
        """Release files and devices."""


class WorldSource(Source):
    """The synthetic world."""

    def __init__(self, settings: CameraSettings) -> None:
        self._world = IndoorWorld(WorldSettings(seed=settings.seed, period_s=settings.period_s))
        self._size = (settings.width, settings.height)
        self._intrinsics = IndoorWorld.default_intrinsics(*self._size)
        self._model = CameraModel.pinhole(self._intrinsics, *self._size)

    def read(self, now_ns: int) -> SourceImage | None:
        """Return the world's view at this moment."""
        view = self._world.render(now_ns, *self._size, self._intrinsics)
        return SourceImage(view.image, self._model, taken_ns=now_ns)


class FolderSource(Source):
    """A folder of images, one after the other."""

    def __init__(self, settings: CameraSettings) -> None:
        self._folder = ImageFolder(Path(settings.source).expanduser())
        self._stamps = self._folder.stamps_ns(settings.rate_hz)
        intrinsics = self._folder.intrinsics
        size = self._folder.image_size
        self._model = CameraModel.pinhole(intrinsics, *size) if intrinsics is not None else None
        self._next = 0

    def read(self, now_ns: int) -> SourceImage | None:
        """Return the next image."""
        index, self._next = self._next, self._next + 1
        if index >= len(self._folder):
            return None
        return SourceImage(self._folder.image(index), self._model, self._stamps[index])

    def rewind(self) -> None:
        """Go back to the first image."""
        self._next = 0


class BagSource(Source):
    """The images of a bag, with the calibration that was recorded beside them."""

    pace = RECORDED

    def __init__(self, path: Path, settings: CameraSettings) -> None:
        """Open the bag and choose its topics.

        Raises:
            BagError: it cannot be read, or the choice is not clear.
            DatasetError: the calibration file does not fit its images.
        """
        from tiekd_ros.bags.bag import Bag  # needs rosbags, which not every robot has
        from tiekd_ros.bags.images import BagCamera

        self._calibration = _calibration_of(settings)
        self._bag = Bag(path)
        topic = "" if self._calibration is not None else settings.camera_info
        try:
            self._camera = BagCamera(self._bag, settings.image_topic, topic)
            size = self._camera.first_size()
            if self._calibration is not None:
                self._calibration(size)
        except BaseException:
            self._bag.close()
            raise
        self.notes = self._bag.notes
        self._images: Iterator[BagImage] = iter(self._camera)

    def read(self, now_ns: int) -> SourceImage | None:
        """Return the next image."""
        message = next(self._images, None)
        if message is None:
            return None
        image = message.rgb()
        size = image.shape[1], image.shape[0]
        model = message.model if self._calibration is None else self._calibration(size)
        if model is not None:
            if self._camera.rectified:
                model = model.rectified()
            model = model.of_view(*size)  # as the part of the image that was recorded has it
        return SourceImage(image, model, message.stamp_ns, frame_id=message.frame_id)

    def rewind(self) -> None:
        """Go back to the first image."""
        self._images = iter(self._camera)

    def close(self) -> None:
        """Close the bag."""
        self._bag.close()


class _CaptureSource(Source):
    """An OpenCV capture with its calibration, which is read when the image size is known."""

    def __init__(self, settings: CameraSettings) -> None:
        self._capture: Any = None
        self._calibration = _calibration_of(settings)
        self._model: CameraModel | None = None
        if settings.camera_info and self._calibration is None:
            raise CameraSourceError(
                f"camera_info {settings.camera_info!r} is no file: a video or webcam has no "
                "topics; give K.txt or camera.yaml"
            )

    def _rgb(self) -> RgbImage | None:
        """Return the next image; None where there is none."""
        ok, bgr = self._capture.read()
        if not ok or bgr is None:
            return None
        image: RgbImage = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
        if self._model is None and self._calibration is not None:
            self._model = self._calibration((image.shape[1], image.shape[0]))
        return image

    def close(self) -> None:
        """Release the file or device."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None


class VideoSource(_CaptureSource):
    """A video file; its stamps count from its start."""

    pace = RECORDED

    def __init__(self, path: Path, settings: CameraSettings) -> None:
        """Open the file.

        Raises:
            CameraSourceError: OpenCV finds no images in it.
        """
        super().__init__(settings)
        self._path = path
        self._last_ns: int | None = None
        self._period_ns = 0
        self.rewind()
        if self._rgb() is None:
            raise CameraSourceError(
                f"{path} holds no video that OpenCV can read; convert it, for instance with "
                "`ffmpeg -i IN OUT.mp4`"
            )
        self.rewind()

    def read(self, now_ns: int) -> SourceImage | None:
        """Return the next image."""
        image = self._rgb()
        if image is None:
            return None
        stamp_ns = round(self._capture.get(cv2.CAP_PROP_POS_MSEC) * _NS_PER_MS)
        if self._last_ns is not None and stamp_ns <= self._last_ns:  # a file without times
            stamp_ns = self._last_ns + self._period_ns
        self._last_ns = stamp_ns
        return SourceImage(image, self._model, stamp_ns)

    def rewind(self) -> None:
        """Open the file anew: seeking is not exact in all formats."""
        self.close()
        self._capture = cv2.VideoCapture(str(self._path))
        self._last_ns = None
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self._period_ns = round(1e9 / (rate if 0.1 <= rate <= 1000 else 30.0))


class WebcamSource(_CaptureSource):
    """A camera that the system knows as /dev/videoN."""

    pace = LIVE

    def __init__(self, device: Path, settings: CameraSettings) -> None:
        """Open the device.

        Raises:
            CameraSourceError: it is not there, may not be used, or gives no image.
        """
        super().__init__(settings)
        self._device = device
        self._rate_hz = settings.rate_hz if settings.pace == RATE else None
        self._open()
        if self._rgb() is None:
            self.close()
            raise CameraSourceError(
                f"{device} gives no image: it may be a camera's second device, for its metadata "
                f"({_cameras()})"
            )

    def read(self, now_ns: int) -> SourceImage | None:
        """Wait for the next image; a camera that was unplugged is looked for again."""
        if self._capture is None:
            self._open()
        image = self._rgb()
        if image is None:
            self.close()
            raise CameraSourceError(f"{self._device} gives no images any more; is it plugged in?")
        return SourceImage(image, self._model)

    def _open(self) -> None:
        if not self._device.exists():
            raise CameraSourceError(f"there is no camera {self._device}: {_cameras()}")
        if not os.access(self._device, os.R_OK | os.W_OK):
            raise CameraSourceError(
                f"no permission for {self._device}: add the user to its group, as in "
                "`sudo usermod -aG video $USER`, and log in again"
            )
        self._capture = cv2.VideoCapture(str(self._device), cv2.CAP_V4L2)
        if not self._capture.isOpened():
            self.close()
            raise CameraSourceError(
                f"{self._device} cannot be opened: another program holds it, or it is no camera "
                f"({_cameras()})"
            )
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest, where not all are wanted
        if self._rate_hz is not None:
            self._capture.set(cv2.CAP_PROP_FPS, self._rate_hz)


def _cameras() -> str:
    found = sorted(str(path) for path in Path("/dev").glob("video*"))
    return f"there are {', '.join(found)}" if found else "this machine has no /dev/video*"


def open_source(settings: CameraSettings) -> Source:
    """Open what the settings name.

    Raises:
        TiekdError: it is not there, or cannot be used; says what would do.
    """
    source = settings.source
    if source == SYNTHETIC:
        return WorldSource(settings)
    if source == WEBCAM or source.isdigit():
        return WebcamSource(Path(f"/dev/video{source if source.isdigit() else 0}"), settings)
    if source.startswith("/dev/"):
        return WebcamSource(Path(source), settings)
    path = Path(source).expanduser()
    if _is_bag(path):
        return BagSource(path, settings)
    if path.is_dir():
        return FolderSource(settings)
    if path.is_file() and path.suffix.lower() not in IMAGE_SUFFIXES:
        return VideoSource(path, settings)
    what = "is a single image" if path.is_file() else "does not exist"
    raise CameraSourceError(
        f"{path} {what}; source is synthetic, a folder of images, a bag, a video file, or a webcam "
        "(/dev/video0)"
    )


def _is_bag(path: Path) -> bool:
    """Return whether a path is a bag.

    Raises:
        TiekdError: it looks like one by its files' names, and rosbags is not installed.
    """
    try:
        from tiekd_ros.bags.bag import is_bag
    except ImportError:
        files = path.iterdir() if path.is_dir() else [path]
        if any(file.name == "metadata.yaml" or file.suffix in _BAG_SUFFIXES for file in files):
            require_rosbags()
        return False
    return is_bag(path)


def _calibration_of(settings: CameraSettings) -> Callable[[tuple[int, int]], CameraModel] | None:
    """Return what reads the calibration file for images of (width, height); None where none is.

    Raises:
        CameraSourceError: a file is named that is not there.
    """
    file = Path(settings.camera_info).expanduser()
    if settings.camera_info and file.is_file():
        return lambda size: read_camera_model(file, size)
    if file.suffix in (".txt", ".yaml", ".yml"):
        raise CameraSourceError(f"camera_info: there is no file {file}")
    return None


_SUBSCRIBERS_S = 2.0  # wait so long for the first subscribers, where images are played only once
_DELIVERY_S = 2.0  # and so long for the last image to arrive
_POLL_S = 0.05
_AFTER_FAULT_S = 0.1


class Pace:
    """When the next image is due; a slow machine skips time and does not catch up in a burst."""

    def __init__(self, period_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._period_s = period_s
        self._clock = clock
        self._due: float | None = None
        self._recorded_ns: int | None = None

    def by_rate(self) -> float:
        """Return the seconds until the next image is due."""
        return self._wait(self._period_s)

    def as_recorded(self, recorded_ns: int) -> float:
        """Return the seconds until the image of this stamp is due."""
        before, self._recorded_ns = self._recorded_ns, recorded_ns
        if before is None or recorded_ns < before:  # from the start again
            return self._wait(self._period_s)
        return self._wait((recorded_ns - before) / 1e9)

    def _wait(self, step_s: float) -> float:
        now = self._clock()
        self._due = now if self._due is None else self._due + step_s
        if now - self._due > self._period_s:
            self._due = now
        return max(0.0, self._due - now)


class CameraNode(Node):
    """Publishes image and camera_info from a thread of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__("camera_node", **options)
        self.settings = SettingsParameters(self, lambda group, new: None).declare(
            "", CameraSettings
        )
        self._source = open_source(self.settings)
        self._pace_kind = self._source.pace if self.settings.pace == "auto" else self.settings.pace
        for note in self._source.notes:
            self.get_logger().warning(note)
        # What is played once is not to be pushed out by what comes after it.
        quality = qos.RELIABLE if self.settings.loop else qos.profile("reliable", depth=10)
        self._image_pub = self.create_publisher(Image, "image_raw", quality)
        self._info_pub = self.create_publisher(CameraInfo, "camera_info", quality)
        self._outputs = (self._image_pub, self._info_pub)
        self._stop = threading.Event()
        self._played = threading.Event()
        self._is_program = False
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)
        self._thread.start()

    def start(self) -> None:
        """Let the program end with the last image, where images are played only once."""
        self._is_program = True
        if self._played.is_set():
            rclpy.try_shutdown(context=self.context)

    def release(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        try:
            if not self.settings.loop:
                self._await_subscribers()
            with until_shutdown(self):
                self._play()
        finally:
            self._source.close()
        if self._stop.is_set():
            return
        self._played.set()
        if self._is_program:
            rclpy.try_shutdown(context=self.context)

    def _play(self) -> None:
        pace, count, in_turn = Pace(1.0 / self.settings.rate_hz), 0, 0
        while not self._stop.is_set():
            if self._pace_kind == RATE and self._stop.wait(pace.by_rate()):
                return
            try:
                item = self._source.read(self.get_clock().now().nanoseconds)
            except TiekdError as error:  # one bad image must not end the stream
                self.get_logger().error(str(error), throttle_duration_sec=10.0)
                self._stop.wait(_AFTER_FAULT_S)
                continue
            if item is None:
                if not self.settings.loop or in_turn == 0:
                    break
                self._source.rewind()
                in_turn = 0
                continue
            if self._pace_kind == RECORDED and item.recorded_ns is not None:
                self._stop.wait(pace.as_recorded(item.recorded_ns))
            self._publish(item)
            count, in_turn = count + 1, in_turn + 1
        else:
            return
        for publisher in self._outputs:
            publisher.wait_for_all_acked(Duration(seconds=_DELIVERY_S))
        self.get_logger().info(f"all {count} images played")

    def _await_subscribers(self) -> None:
        """Give subscribers a moment to find this node: the first image comes only once."""
        deadline = time.monotonic() + _SUBSCRIBERS_S
        while time.monotonic() < deadline and not self._stop.is_set():
            if all(each.get_subscription_count() for each in self._outputs):
                return
            self._stop.wait(_POLL_S)

    def _publish(self, item: SourceImage) -> None:
        header = Header(frame_id=item.frame_id or self.settings.frame_id)
        stamp_ns = item.taken_ns
        if self.settings.stamps == "recorded" and item.recorded_ns is not None:
            stamp_ns = item.recorded_ns
        now = self.get_clock().now()
        header.stamp = (now if stamp_ns is None else Time(nanoseconds=stamp_ns)).to_msg()
        if item.camera is not None:
            self._info_pub.publish(conversions.camera_info_message(item.camera, header))
        self._image_pub.publish(conversions.rgb_to_image(item.image, header))
