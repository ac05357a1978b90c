"""Video files and webcams as sources of camera_node, by OpenCV."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2

from tiekd_ros.core.camera import CameraModel
from tiekd_ros.core.images import RgbImage
from tiekd_ros.nodes.camera.sources import (
    LIVE,
    RATE,
    RECORDED,
    CameraSourceError,
    Shot,
    calibration_of,
)
from tiekd_ros.nodes.common.settings import CameraSettings

_NS_PER_MS = 1_000_000


class _Captured:
    """What OpenCV captures, and its calibration, which is read when the size is known."""

    def __init__(self, settings: CameraSettings) -> None:
        self.notes: list[str] = []
        self._capture: Any = None
        self._calibration = calibration_of(settings)
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
        """Let go of the file or device."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None


class VideoSource(_Captured):
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

    def read(self, now_ns: int) -> Shot | None:
        """Return the next image."""
        image = self._rgb()
        if image is None:
            return None
        stamp_ns = round(self._capture.get(cv2.CAP_PROP_POS_MSEC) * _NS_PER_MS)
        if self._last_ns is not None and stamp_ns <= self._last_ns:  # a file without times
            stamp_ns = self._last_ns + self._period_ns
        self._last_ns = stamp_ns
        return Shot(image, self._model, stamp_ns)

    def rewind(self) -> None:
        """Open the file anew: seeking is not exact in all formats."""
        self.close()
        self._capture = cv2.VideoCapture(str(self._path))
        self._last_ns = None
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self._period_ns = round(1e9 / (rate if 0.1 <= rate <= 1000 else 30.0))


class WebcamSource(_Captured):
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

    def read(self, now_ns: int) -> Shot | None:
        """Wait for the next image; a camera that was unplugged is looked for again."""
        if self._capture is None:
            self._open()
        image = self._rgb()
        if image is None:
            self.close()
            raise CameraSourceError(f"{self._device} gives no images any more; is it plugged in?")
        return Shot(image, self._model)

    def rewind(self) -> None:
        """Nothing to do: it has no end."""

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
