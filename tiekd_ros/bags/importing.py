"""From a bag's images to logged frames."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from tiekd_ros.bags import BagError
from tiekd_ros.bags.bag import Bag
from tiekd_ros.bags.images import BagCamera, BagImage
from tiekd_ros.core.camera import VISIBLE_SHIFT_PX, CameraModel, Intrinsics, Rectifier
from tiekd_ros.core.errors import BadImageError, BadIntrinsicsError
from tiekd_ros.core.images import Mask, RgbImage
from tiekd_ros.framelog import policy
from tiekd_ros.framelog.imports import UNREADABLE, ImportOptions, ImportReport, Recording
from tiekd_ros.framelog.records import ImportCursor, Observation
from tiekd_ros.framelog.store import FrameStore

_MUCH_INVALID = 0.1


@dataclass(frozen=True)
class BagView:
    """An image as it is logged."""

    image: RgbImage
    intrinsics: Intrinsics | None
    invalid_mask: Mask | None
    """(H, W), where a rectified image shows what the camera did not see; None = nowhere."""
    distorted_camera: CameraModel | None
    """Its calibration, where the lens bends it visibly, or in a way that cannot be computed."""

    def observed(self, image: BagImage, cursor: ImportCursor) -> Observation:
        """Return what to log, as of the message that this view was made of."""
        return Observation(
            self.image,
            image.stamp_ns,
            image.frame_id,
            self.intrinsics,
            cursor=cursor,
            invalid_mask=self.invalid_mask,
        )


class BagViewer:
    """Converts a camera's images to what is logged of them, and counts its oddities.

    Args:
        camera: of an open bag.
        options: which calibration to take, and whether to rectify.

    Raises:
        BagError: none of the first images can be converted, or they cannot be rectified.
        DatasetError: the given calibration does not fit them.
    """

    def __init__(self, camera: BagCamera, options: ImportOptions) -> None:
        self._camera = camera
        first, pixels = camera.first()
        self._size = pixels.shape[1], pixels.shape[0]
        given = options.calibration
        self._given = None if given is None else given(self._size)
        self._rectifier = None
        self._idle = options.rectify and camera.rectified
        if options.rectify and not camera.rectified:
            self._rectifier = Rectifier("leave out --rectify")
            self._try(first, pixels)
        self._invalid_share = 0.0
        self._distorted_count = 0
        self._distorted_camera: CameraModel | None = None
        self._last: CameraModel | None = None

    def _try(self, first: BagImage, pixels: RgbImage) -> None:
        name, bag = self._camera.images.name, self._camera.bag.path
        model = self._model_of(first, pixels)
        if model is None:
            raise BagError(
                f"--rectify needs the camera's calibration, and {bag} has none for {name}: name "
                "its topic or a file with --camera-info, or leave out --rectify"
            )
        assert self._rectifier is not None
        try:
            self._rectifier.rectified(pixels, model)
        except BadImageError as error:
            raise BagError(f"{name} in {bag}: {error}") from error

    def view(self, image: BagImage) -> BagView:
        """Return what is logged of an image.

        Raises:
            BadImageError: it is damaged, or its calibration does not allow to rectify it.
            BadIntrinsicsError: its calibration is no camera's.
        """
        pixels, invalid_mask, distorted_camera = image.rgb(), None, None
        model = self._model_of(image, pixels)
        if model is not None and self._rectifier is not None:
            pixels, invalid_mask = self._rectifier.rectified(pixels, model)
            model = model.rectified()
        elif model is not None and model.is_calibrated:
            distorted_camera = None if model.border_shift_px() < VISIBLE_SHIFT_PX else model
        height, width = pixels.shape[:2]
        intrinsics = None if model is None else model.intrinsics(width, height)
        return BagView(pixels, intrinsics, invalid_mask, distorted_camera)

    def note_kept(self, view: BagView) -> None:
        """Count a view that was logged."""
        if view.distorted_camera is not None:
            self._distorted_count += 1
            self._distorted_camera = view.distorted_camera
        if view.invalid_mask is not None:
            self._invalid_share = max(self._invalid_share, float(view.invalid_mask.mean()))

    def warnings(self) -> list[str]:
        """Return faults that students will learn."""
        model = self._distorted_camera
        if model is None:
            return []
        shift = model.border_shift_px()
        by = (
            model.distortion_fault() if math.isnan(shift) else f"up to {shift:.0f} px at the border"
        )
        return [
            f"{self._distorted_count} images were logged as a lens with distortion "
            f"({model.distortion_model}) shows them ({by}), and so students learn them. For nodes "
            "that rectify (rectify: true), import them with --rectify into a new log, or the "
            "rectified topic (image_rect)"
        ]

    def remarks(self) -> list[str]:
        """Return oddities of the calibration."""
        remarks = []
        if self._idle:
            remarks.append(f"{self._camera.images.name} is rectified already: left it as it is")
        if self._invalid_share > _MUCH_INVALID:
            remarks.append(
                f"up to {self._invalid_share:.0%} of a rectified image is what the camera did not "
                "see: labels are unknown there"
            )
        if self._given is not None:
            return remarks
        if self._camera.info is None:
            remarks.append(
                "no calibration was found: frames are logged without intrinsics. Give one with "
                "--camera-info TOPIC or FILE (K.txt, camera.yaml), if there is one"
            )
        elif self._last is not None and self._last.intrinsics(*self._size) is None:
            fault = "says that the camera is not calibrated"
            if not self._last.fits_shape(*self._size):
                fault = "is for images of another shape"
            remarks.append(
                f"{self._camera.info.name} {fault}: frames are logged without intrinsics. Give a "
                "file with --camera-info FILE"
            )
        return remarks

    @property
    def info_topic(self) -> str:
        """Topic of the calibration; '' where there is none, or a file was given."""
        info = self._camera.info if self._given is None else None
        return "" if info is None else info.name

    def _model_of(self, image: BagImage, pixels: RgbImage) -> CameraModel | None:
        """Return the calibration of this very image."""
        model = image.model if self._given is None else self._given
        if model is None:
            return None
        if self._camera.rectified:
            model = model.rectified()
        self._last = model
        return model.of_view(pixels.shape[1], pixels.shape[0])


class BagImport(Recording[BagImage]):
    """A bag whose images are to be logged: opened, its topics chosen, its first image converted.

    So what cannot be imported is refused before anything of it is.

    Raises:
        TiekdError: the bag cannot be read, the choice of topics is not clear, its first images
            cannot be converted, or the calibration does not fit them.
    """

    def __init__(self, path: str | Path, options: ImportOptions) -> None:
        self._bag = Bag(path)
        try:
            self._camera = BagCamera(self._bag, options.image_topic, options.camera_info_topic)
            self._ids = _recording_ids(self._bag, self._camera)
            self._viewer = BagViewer(self._camera, options)
        except BaseException:
            self._bag.close()
            raise
        name, info = self._camera.images.name, self._viewer.info_topic
        super().__init__(ImportReport(str(path), name, info, len(self._camera)), options)
        self._last_ns: int | None = None  # stamp of the image that was kept last
        self._unstamped = 0

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

    def _images(self) -> Iterator[tuple[ImportCursor, BagImage]]:
        counts: Counter[int] = Counter()  # by file
        for image in self._camera:
            counts[image.file] += 1
            yield ImportCursor(self._ids[image.file], counts[image.file], image.log_ns), image

    def _recording_ids(self) -> Collection[str]:
        return self._ids.values()

    def _is_valid(self, cursor: ImportCursor) -> bool:
        """Return whether the same image stands there: not where the file's midst was mended."""
        file = next(number for number, each in self._ids.items() if each == cursor.recording)
        name = self._camera.images.name
        return self._bag.recorded_at(name, file, cursor.images - 1) == cursor.mark

    def _add(self, store: FrameStore, image: BagImage, cursor: ImportCursor) -> str:
        if policy.is_too_soon(store.settings, image.stamp_ns, self._last_ns):
            return policy.TOO_SOON  # known before its pixels are converted
        try:
            view = self._viewer.view(image)
            result = store.add(view.observed(image, cursor))
        except (BadImageError, BadIntrinsicsError) as error:
            self._faults.append(str(error))
            return UNREADABLE
        self._unstamped += not image.stamped and result.reason != policy.NO_ROOM
        if result.kept:
            self._last_ns = image.stamp_ns
            self._viewer.note_kept(view)
        return result.reason

    def _conclude(self) -> None:
        self.report.notes = [*self._bag.notes, *self._remarks()]
        self.report.warnings = self._viewer.warnings()

    def _remarks(self) -> list[str]:
        """Return oddities of the images themselves."""
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


def _recording_ids(bag: Bag, camera: BagCamera) -> dict[int, str]:
    """Return a hash of the first image of each of a bag's files, by the file's number.

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
