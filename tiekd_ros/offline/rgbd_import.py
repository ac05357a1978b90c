"""From a folder of images with measured depth to logged frames that have their labels already."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from pathlib import Path

from tiekd_ros.camera import Intrinsics
from tiekd_ros.datasets import DatasetError, ReadOptions, RgbdFolder
from tiekd_ros.errors import BadDepthError, InvalidSettingError
from tiekd_ros.frames import FrameStore, KeptLabel, Observation, policy
from tiekd_ros.frames.imports import (
    NOT_ASKED_FOR,
    UNREADABLE,
    ImportOptions,
    ImportReport,
    Recording,
)
from tiekd_ros.frames.places import Place, Places
from tiekd_ros.teacher.checks import check_answer
from tiekd_ros.teacher.errors import TeacherAnswerError
from tiekd_ros.teacher.protocol import DepthAnswer

TEACHER = ("recorded", "1")
"""Who labelled these frames: name and version, as the frame log has them."""
BAD_DEPTH = "bad_depth"
"""Why an image is left out whose depth would not be believed of a teacher."""

_RATE_HZ = 30.0
_FRAME_ID = "camera"


def is_rgbd_folder(path: Path) -> bool:
    """Tell whether a path looks like a folder of images with measured depth."""
    return (path / "depth").is_dir() and not (path / "metadata.yaml").exists()


class RgbdImport(Recording):
    """An RGB-D folder that is to be logged, as `BagImport` is of a bag.

    Its depth becomes the frames' label, checked as a teacher's answer is. Images without depth
    are left out. Stamps are the recorded ones, or 30 images a second.

    Raises:
        InvalidSettingError: its images are to be rectified.
        DatasetError: the folder has no images with depth, no intrinsics, or wrong ones.
    """

    def __init__(self, path: Path, options: ImportOptions) -> None:
        if options.rectify:
            raise InvalidSettingError(
                f"--rectify is for bags: the images of {path} have measured depth, which would not "
                "fit any more; leave it out"
            )
        self._options = options
        self._folder = RgbdFolder(path, ReadOptions(skip_bad=True))
        size = self._folder.image_size
        self._intrinsics: Intrinsics | None = self._folder.intrinsics
        if options.calibration is not None:
            self._intrinsics = options.calibration(size).intrinsics(*size)
        recorded = self._folder.recorded_stamps
        self._stamps_ns = self._folder.stamps_ns(_RATE_HZ)
        super().__init__(ImportReport(str(path), "images with depth", "", len(self._folder)))
        if not recorded:
            self.report.notes.append(f"no stamps are recorded: took {_RATE_HZ:g} images a second")
        if self._folder.report.bad:
            self.report.notes.append(f"{len(self._folder.report.bad)} images have no depth")
        self._faults: list[str] = []

    def __len__(self) -> int:
        """Return the number of images with depth."""
        return len(self._folder)

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return (self._stamps_ns[-1] - self._stamps_ns[0]) / 1e9

    def close(self) -> None:
        """Nothing stays open."""

    def _offer(self, store: FrameStore, places: Places, advance: Callable[[], None]) -> None:
        recording = self._recording()
        before = None if self._options.again else places.find(recording)
        names, mark = self._folder.names, 0
        place = None
        for index, name in enumerate(names):
            mark = zlib.crc32(name.encode(), mark)  # of all up to here: none came in between
            if before is not None and index + 1 == before.images and mark == before.mark:
                self.report.looked_at_before = before.images
        try:
            mark = 0
            for index, name in enumerate(names):
                mark = zlib.crc32(name.encode(), mark)
                if index >= self.report.looked_at_before:
                    here = Place(recording, index + 1, mark)
                    if self._one(store, index, here) == policy.NO_ROOM:
                        self.report.stopped = policy.NO_ROOM
                        self.report.not_looked_at = len(names) - index
                        return
                    place = here
                advance()
        finally:
            if place is not None:
                places.put(place)

    def _conclude(self) -> None:
        if self._faults:
            self.report.notes.append(
                f"{len(self._faults)} images or depth maps are of no use; the first: "
                f"{self._faults[0]}"
            )

    def _one(self, store: FrameStore, index: int, place: Place) -> str:
        """Offer one image; return why it was not kept, or 'kept'."""
        reason = NOT_ASKED_FOR
        if index % self._options.every == 0:
            try:
                reason = self._add(store, index, place)
            except DatasetError as error:
                reason = UNREADABLE
                self._faults.append(str(error))
            except (BadDepthError, TeacherAnswerError) as error:
                reason = BAD_DEPTH
                self._faults.append(f"{self._folder.names[index]}: {error}")
        if reason == policy.KEPT:
            self.report.kept += 1
        elif reason != policy.NO_ROOM:
            self._left_out[reason] += 1
        return reason

    def _add(self, store: FrameStore, index: int, place: Place) -> str:
        item = self._folder.item(index)
        assert item.truth is not None
        height, width = item.image.shape[:2]
        check_answer(DepthAnswer(item.truth), width, height)
        seen = Observation(
            item.image, self._stamps_ns[index], _FRAME_ID, self._intrinsics, place=place
        )
        return store.add(seen, KeptLabel(item.truth, *TEACHER)).reason

    def _recording(self) -> str:
        digest = hashlib.sha256(b"rgbd")
        digest.update(self._folder.names[0].encode())
        digest.update(self._folder.image(0).tobytes())
        return digest.hexdigest()[:32]
