"""From a bag's images to logged frames."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tiekd_ros.errors import BadImageError, BadIntrinsicsError
from tiekd_ros.frames import policy
from tiekd_ros.frames.bags.bag import Bag
from tiekd_ros.frames.bags.images import BagCamera, BagImage
from tiekd_ros.frames.bags.viewing import BagViewer
from tiekd_ros.frames.eviction import NoRoomError
from tiekd_ros.frames.imports import (
    NOT_ASKED_FOR,
    UNREADABLE,
    ImportOptions,
    ImportReport,
    Recording,
)
from tiekd_ros.frames.places import Place, Places
from tiekd_ros.frames.store import FrameStore

_SAVE_EVERY_S = 1.0  # where nothing is kept: a frame brings its place with it


class BagImport(Recording):
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
            self._recordings = _recordings(self._bag, self._camera)
            self._viewer = BagViewer(self._camera, options)
        except BaseException:
            self._bag.close()
            raise
        name, info = self._camera.images.name, self._viewer.info_topic
        super().__init__(ImportReport(str(path), name, info, len(self._camera)))
        self._unstamped = 0
        self._faults: list[str] = []

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

    def _starts(self, places: Places) -> dict[int, int]:
        """Return how many images of each file were looked at before."""
        starts: dict[int, int] = {}
        name = self._camera.images.name
        for file, recording in self._recordings.items():
            place = None if self._options.again else places.find(recording)
            if place is None:
                continue
            # Where something else stands there now, the file was mended in its midst.
            if self._bag.recorded_at(name, file, place.images - 1) == place.mark:
                starts[file] = place.images
        return starts

    def _offer(
        self,
        store: FrameStore,
        places: Places,
        advance: Callable[[], None],
    ) -> None:
        starts = self._starts(places)
        seen: Counter[int] = Counter()  # images, by file
        place, saved_at = None, time.monotonic()
        last_ns: int | None = None
        try:
            for number, image in enumerate(self._camera):
                seen[image.file] += 1
                if seen[image.file] <= starts.get(image.file, 0):
                    self.report.looked_at_before += 1
                    advance()
                    continue
                here = Place(self._recordings[image.file], seen[image.file], image.log_ns)
                try:
                    last_ns = self._one(store, image, here, last_ns, number)
                except NoRoomError:
                    self.report.stopped = policy.NO_ROOM
                    self.report.not_looked_at = len(self._camera) - number
                    return
                if place is not None and place.recording != here.recording:
                    places.put(place)
                place = here
                if time.monotonic() - saved_at > _SAVE_EVERY_S:
                    places.put(place)
                    saved_at = time.monotonic()
                advance()
        finally:
            if place is not None:
                places.put(place)

    def _one(
        self, store: FrameStore, image: BagImage, place: Place, last_ns: int | None, number: int
    ) -> int | None:
        """Offer one image; return the stamp of the one that was kept last.

        Raises:
            NoRoomError: the frame log is full.
        """
        if number % self._options.every:
            self._left_out[NOT_ASKED_FOR] += 1
            return last_ns
        if policy.is_too_soon(store.settings, image.stamp_ns, last_ns):
            self._left_out[policy.TOO_SOON] += 1  # known before its pixels are converted
            return last_ns
        try:
            view = self._viewer.view(image)
            verdict = store.add(view.observed(image, place))
        except (BadImageError, BadIntrinsicsError) as error:
            self._left_out[UNREADABLE] += 1
            self._faults.append(str(error))
            return last_ns
        if verdict.reason == policy.NO_ROOM:
            raise NoRoomError
        self._unstamped += not image.stamped
        if not verdict.kept:
            self._left_out[verdict.reason] += 1
            return last_ns
        self.report.kept += 1
        self._viewer.note_kept(view)
        return image.stamp_ns

    def _conclude(self) -> None:
        self.report.notes = [*self._bag.notes, *self._remarks()]
        self.report.warnings = self._viewer.warnings()

    def _remarks(self) -> list[str]:
        """Say what was odd about the images themselves."""
        remarks: list[str] = []
        before = self.report.looked_at_before
        if before and self._options.rectify and not self._camera.rectified:
            remarks.append(
                f"--rectify is for images that are logged now: what an earlier import kept of the "
                f"{before} that it looked at stays as it is; begin a new log where that was not "
                "rectified"
            )
        if before == self.report.images:
            return remarks
        if self._faults:
            remarks.append(
                f"{len(self._faults)} images cannot be read; the first: {self._faults[0]}"
            )
        if self._unstamped:
            remarks.append(
                f"{self._unstamped} images have stamp 0: took the time of their recording"
            )
        return [*remarks, *self._viewer.remarks()]


def _recordings(bag: Bag, camera: BagCamera) -> dict[int, str]:
    """Return what tells each of a bag's files from others, by its number: its first image's hash.

    It stays the same when the bag is moved, mended, converted file by file, or has grown.
    """
    name = camera.images.name
    found = {}
    for file, first in bag.firsts(name).items():
        digest = hashlib.sha256(name.encode())
        digest.update(str(first.log_ns).encode())
        digest.update(first.data)
        found[file] = digest.hexdigest()[:32]
    return found
