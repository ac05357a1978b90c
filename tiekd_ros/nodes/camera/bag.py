"""Bags as sources of camera_node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tiekd_ros.bags.bag import Bag
from tiekd_ros.bags.images import BagCamera, BagImage
from tiekd_ros.core.camera import rectified_model
from tiekd_ros.nodes.camera.sources import RECORDED, Shot, calibration_of
from tiekd_ros.nodes.common.settings import CameraSettings


class BagSource:
    """The images of a bag, with the calibration that was recorded beside them."""

    pace = RECORDED

    def __init__(self, path: Path, settings: CameraSettings) -> None:
        """Open the bag and choose its topics.

        Raises:
            BagError: it cannot be read, or the choice is not clear.
            DatasetError: the calibration file does not fit its images.
        """
        self._calibration = calibration_of(settings)
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
        self._images: Iterator[BagImage] = iter(self._camera)

    @property
    def notes(self) -> list[str]:
        """What was odd about the bag."""
        return self._bag.notes

    def read(self, now_ns: int) -> Shot | None:
        """Return the next image."""
        message = next(self._images, None)
        if message is None:
            return None
        image = message.rgb()
        size = image.shape[1], image.shape[0]
        model = message.model if self._calibration is None else self._calibration(size)
        if model is not None:
            if self._camera.rectified:
                model = rectified_model(model)
            model = model.of_view(*size)  # as the part of the image that was recorded has it
        return Shot(image, model, message.stamp_ns, frame_id=message.frame_id)

    def rewind(self) -> None:
        """Go back to the first image."""
        self._images = iter(self._camera)

    def close(self) -> None:
        """Close the bag."""
        self._bag.close()
