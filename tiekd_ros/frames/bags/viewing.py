"""What is logged of a bag's image: its pixels, rectified if asked for, and its camera."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tiekd_ros.camera import CameraModel, Intrinsics
from tiekd_ros.errors import BadImageError
from tiekd_ros.frames.bags.images import BagCamera, BagImage
from tiekd_ros.frames.bags.records import BagError
from tiekd_ros.frames.imports import ImportOptions
from tiekd_ros.frames.places import Place
from tiekd_ros.frames.records import Observation
from tiekd_ros.images import Mask, RgbImage
from tiekd_ros.rectify import (
    VISIBLE_SHIFT_PX,
    Rectifier,
    border_shift_px,
    calibration_key,
    is_calibrated,
    model_fault,
    rectified_model,
)

_MUCH_BLIND = 0.1


@dataclass(frozen=True)
class BagView:
    """An image as it is logged."""

    image: RgbImage
    intrinsics: Intrinsics | None
    blind: Mask | None
    """(H, W), where a rectified image shows what the camera did not see; None = nowhere."""
    bent: CameraModel | None
    """Its calibration, where the lens bends it visibly, or in a way that cannot be computed."""

    def observed(self, image: BagImage, place: Place) -> Observation:
        """Return what to log, as of the message that this view was made of."""
        return Observation(
            self.image,
            image.stamp_ns,
            image.frame_id,
            self.intrinsics,
            place=place,
            blind=self.blind,
        )


class BagViewer:
    """Makes views of a camera's images.

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
        self._shift: tuple[tuple[object, ...], float] | None = None  # (calibration, pixels)
        self._blind_share = 0.0
        self._bent = 0
        self._bent_model: CameraModel | None = None
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
        pixels, blind, bent = image.rgb(), None, None
        model = self._last = self._model_of(image, pixels)
        if model is not None and self._rectifier is not None:
            pixels, blind = self._rectifier.rectified(pixels, model)
            model = rectified_model(model)
        elif model is not None and is_calibrated(model):
            bent = None if self._shift_of(model) < VISIBLE_SHIFT_PX else model
        height, width = pixels.shape[:2]
        intrinsics = None if model is None else model.intrinsics(width, height)
        return BagView(pixels, intrinsics, blind, bent)

    def note_kept(self, view: BagView) -> None:
        """Count a view that was logged."""
        if view.bent is not None:
            self._bent += 1
            self._bent_model = view.bent
        if view.blind is not None:
            self._blind_share = max(self._blind_share, float(view.blind.mean()))

    def warnings(self) -> list[str]:
        """Say what students will learn wrongly."""
        model = self._bent_model
        if model is None:
            return []
        shift = self._shift_of(model)
        by = model_fault(model) if math.isnan(shift) else f"up to {shift:.0f} px at the border"
        return [
            f"{self._bent} images were logged as a lens with distortion ({model.distortion_model}) "
            f"shows them ({by}), and so students learn them. For nodes that rectify (rectify: "
            "true), import them with --rectify into a new log, or the rectified topic (image_rect)"
        ]

    def remarks(self) -> list[str]:
        """Say what was odd about the calibration."""
        remarks = []
        if self._idle:
            remarks.append(f"{self._camera.images.name} is rectified already: left it as it is")
        if self._blind_share > _MUCH_BLIND:
            remarks.append(
                f"up to {self._blind_share:.0%} of a rectified image is what the camera did not "
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
            remarks.append(
                f"{self._camera.info.name} says that the camera is not calibrated: frames are "
                "logged without intrinsics. Give a file with --camera-info FILE"
            )
        return remarks

    @property
    def info_topic(self) -> str:
        """Where the calibration comes from; '' where there is none, or a file was given."""
        info = self._camera.info if self._given is None else None
        return "" if info is None else info.name

    def _model_of(self, image: BagImage, pixels: RgbImage) -> CameraModel | None:
        """Return the calibration of this very image."""
        model = image.model if self._given is None else self._given
        if model is None:
            return None
        if self._camera.rectified:
            model = rectified_model(model)
        return model.of_view(pixels.shape[1], pixels.shape[0])

    def _shift_of(self, model: CameraModel) -> float:
        key = calibration_key(model)
        if self._shift is None or self._shift[0] != key:
            self._shift = (key, border_shift_px(model))
        return self._shift[1]
