"""From a bag's images to logged frames."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tiekd_ros.camera import CameraModel, Intrinsics
from tiekd_ros.errors import BadImageError, BadIntrinsicsError
from tiekd_ros.frames import policy
from tiekd_ros.frames.bags.bag import Bag
from tiekd_ros.frames.bags.images import BagCamera, BagImage
from tiekd_ros.frames.places import Place, Places
from tiekd_ros.frames.records import Observation
from tiekd_ros.frames.store import FrameStore

NOT_ASKED_FOR = "not_asked_for"
"""Why an image is left out that `every` passes over."""
UNREADABLE = "unreadable"

_SAVE_EVERY_S = 1.0  # where nothing is kept: a frame brings its place with it

Calibration = Callable[[tuple[int, int]], Intrinsics]
"""Returns the intrinsics of images of (width, height)."""


@dataclass(frozen=True)
class ImportOptions:
    """What to take from a bag."""

    image_topic: str = ""
    """'' = the only one with a camera's images."""
    camera_info_topic: str = ""
    """'' = `camera_info` beside the images."""
    calibration: Calibration | None = None
    """Instead of the bag's own calibration."""
    every: int = 1
    """Only one image in so many."""
    again: bool = False
    """Look at images anew that an earlier import has looked at."""


@dataclass
class ImportReport:
    """What became of a bag."""

    bag: str
    image_topic: str
    camera_info_topic: str
    """'' where it has none, or a file was given instead."""
    images: int
    """In the bag."""
    looked_at_before: int = 0
    """By an earlier import."""
    kept: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    """Images that were not kept, by reason."""
    notes: list[str] = field(default_factory=list)
    """What was odd."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values by name, fit for JSON."""
        return asdict(self)


class BagImport:
    """A bag whose images are to be logged: opened, its topics chosen, its first image looked at.

    So what cannot be imported is refused before anything of it is.

    Raises:
        TiekdError: the bag cannot be read, the choice of topics is not clear, its first images
            cannot be converted, or the calibration does not fit them.
    """

    def __init__(self, path: str | Path, options: ImportOptions) -> None:
        self._options = options
        self._bag = Bag(path)
        try:
            self._camera = BagCamera(self._bag, options.image_topic, options.camera_info_topic)
            self._recording = _recording(self._bag, self._camera)
            self._size = self._camera.first_size()
            self._given = options.calibration(self._size) if options.calibration else None
        except BaseException:
            self._bag.close()
            raise
        info = self._camera.info if self._given is None else None
        self.report = ImportReport(
            str(path), self._camera.images.name, info.name if info else "", len(self._camera)
        )
        self._left_out: Counter[str] = Counter()
        self._unstamped = 0
        self._faults: list[str] = []
        self._model: CameraModel | None = None

    def __len__(self) -> int:
        """Return the number of images in the bag."""
        return len(self._camera)

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return self._bag.seconds

    def close(self) -> None:
        """Close the bag."""
        self._bag.close()

    def run(self, store: FrameStore, advance: Callable[[], None]) -> ImportReport:
        """Offer the images to the frame log; `advance` is called after each.

        Killed at any moment and run again, it goes on where it was.

        Raises:
            FrameStoreError: the frame log cannot be written; what was kept stays.
        """
        places = Places(store.path, store.settings.lock_timeout_s)
        try:
            start = 0 if self._options.again else places.images(self._recording)
            self.report.looked_at_before = min(start, len(self._camera))
            self._offer(store, places, start, advance)
        finally:
            places.close()
            self.report.left_out = dict(self._left_out.most_common())
            self.report.notes = [*self._bag.notes, *self._remarks()]
        return self.report

    def _offer(
        self, store: FrameStore, places: Places, start: int, advance: Callable[[], None]
    ) -> None:
        done, saved_at = start, time.monotonic()
        last_ns: int | None = None
        try:
            for number, image in enumerate(self._camera):
                if number >= start:
                    place = Place(self._recording, number + 1)
                    last_ns, done = self._one(store, image, place, last_ns), number + 1
                    if time.monotonic() - saved_at > _SAVE_EVERY_S:
                        places.put(place)
                        saved_at = time.monotonic()
                advance()
        finally:
            if done > start:
                places.put(Place(self._recording, done))

    def _one(
        self, store: FrameStore, image: BagImage, place: Place, last_ns: int | None
    ) -> int | None:
        """Offer one image; return the stamp of the one that was kept last."""
        if (place.images - 1) % self._options.every:
            self._left_out[NOT_ASKED_FOR] += 1
            return last_ns
        if policy.is_too_soon(store.settings, image.stamp_ns, last_ns):
            self._left_out[policy.TOO_SOON] += 1  # known before its pixels are converted
            return last_ns
        try:
            observation = self._observe(image, place)
            verdict = store.add(observation)
        except (BadImageError, BadIntrinsicsError) as error:
            self._left_out[UNREADABLE] += 1
            self._faults.append(str(error))
            return last_ns
        self._unstamped += not image.stamped
        if not verdict.kept:
            self._left_out[verdict.reason] += 1
            return last_ns
        self.report.kept += 1
        return image.stamp_ns

    def _observe(self, image: BagImage, place: Place) -> Observation:
        pixels = image.rgb()
        height, width = pixels.shape[:2]
        model = image.model
        if model is not None:
            self._model = model = model.rectified() if self._camera.rectified else model
        intrinsics = self._given
        if intrinsics is not None:
            own_width, own_height = self._size
            if (width, height) != self._size:
                intrinsics = intrinsics.scaled(width / own_width, height / own_height)
        elif model is not None:
            intrinsics = model.intrinsics(width, height)
        return Observation(pixels, image.stamp_ns, image.frame_id, intrinsics, place=place)

    def _remarks(self) -> list[str]:
        """Say what was odd about the images themselves."""
        remarks: list[str] = []
        if self.report.looked_at_before == self.report.images:
            return remarks
        if self._faults:
            remarks.append(
                f"{len(self._faults)} images cannot be read; the first: {self._faults[0]}"
            )
        if self._unstamped:
            remarks.append(
                f"{self._unstamped} images have stamp 0: took the time of their recording"
            )
        if self._given is not None:
            return remarks
        if self._camera.info is None:
            remarks.append(
                "no calibration was found: frames are logged without intrinsics. Give one with "
                "--camera-info TOPIC or FILE (K.txt, camera.yaml), if there is one"
            )
        elif self._model is not None and self._model.intrinsics(*self._size) is None:
            remarks.append(
                f"{self._camera.info.name} says that the camera is not calibrated: frames are "
                "logged without intrinsics. Give a file with --camera-info FILE"
            )
        elif self._model is not None and self._model.distorted:
            remarks.append(
                f"{self._camera.info.name} describes a lens with distortion "
                f"({self._model.distortion_model}), and images are logged as they are: the "
                "rectified topic (image_rect), if the bag has one, teaches better"
            )
        return remarks


def _recording(bag: Bag, camera: BagCamera) -> str:
    """Return what tells this recording from others: a hash of its first image.

    It stays the same when the bag is moved, mended, converted, or has grown.
    """
    first = bag.first(camera.images.name)
    digest = hashlib.sha256(camera.images.name.encode())
    if first is not None:
        digest.update(str(first.log_ns).encode())
        digest.update(first.data)
    return digest.hexdigest()[:32]
