"""One camera's images in a bag, each with its stamp and its calibration."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tiekd_ros.camera import CameraModel
from tiekd_ros.errors import BadImageError
from tiekd_ros.frames.bags.bag import Bag
from tiekd_ros.frames.bags.choosing import IMAGE, choose_images, choose_info
from tiekd_ros.frames.bags.records import BagError, Message, Topic
from tiekd_ros.image_encodings import compressed_to_rgb, raw_to_rgb
from tiekd_ros.images import RgbImage

_NS_PER_S = 1_000_000_000
_TRIES = 20  # broken images at a bag's start


@dataclass(frozen=True)
class BagImage:
    """One image message; its pixels are converted when they are asked for."""

    topic: Topic
    log_ns: int
    """When it was recorded."""
    stamp_ns: int
    """When it was taken; when it was recorded, where its header does not say."""
    stamped: bool
    """Whether its header says."""
    frame_id: str
    model: CameraModel | None
    """The calibration with its stamp, where that was recorded next to it; else the one recorded
    last before it, or the first one after it."""
    fields: Any
    file: int
    """Which of the bag's files it lies in."""
    fault: str = ""
    """Why the message cannot be read."""

    def rgb(self) -> RgbImage:
        """Return the image, uint8 (H, W, 3).

        Raises:
            BadImageError: it is damaged, or its encoding is not supported.
        """
        fields = self.fields
        if fields is None:
            raise BadImageError(self.fault)
        if self.topic.type != IMAGE:
            return compressed_to_rgb(fields.format, fields.data)
        return raw_to_rgb(
            encoding=fields.encoding,
            width=fields.width,
            height=fields.height,
            step=fields.step,
            is_bigendian=bool(fields.is_bigendian),
            data=fields.data,
        )


class BagCamera:
    """The images of one of a bag's cameras.

    Args:
        bag: an open bag.
        image_topic: which topic; '' = the only one with images.
        camera_info_topic: its calibration's; '' = `camera_info` beside the images.

    Raises:
        BagError: no such topic, or the choice is not clear.
    """

    def __init__(self, bag: Bag, image_topic: str = "", camera_info_topic: str = "") -> None:
        self.bag = bag
        self.images = choose_images(bag, image_topic)
        self.info = choose_info(bag, self.images, camera_info_topic)
        self.rectified = _last_part(self.images.name).startswith("image_rect")
        """Whether the images are rectified already, by image_pipeline's names."""

    def __len__(self) -> int:
        """Return the number of images."""
        return self.images.count

    def __iter__(self) -> Iterator[BagImage]:
        """Yield the images in the order of their recording."""
        model = self._first_model()
        names = [self.images.name] + ([self.info.name] if self.info is not None else [])
        held: BagImage | None = None  # until it is known whether its calibration comes after it
        for message in self.bag.messages(names):
            if message.topic == self.images.name:
                if held is not None:
                    yield held
                held = self._image(message, model)
                continue
            found = self._info(message)
            if found is None:
                continue
            stamp_ns, model = found
            if held is not None:
                yield replace(held, model=model) if held.stamp_ns == stamp_ns else held
                held = None
        if held is not None:
            yield held

    def first_size(self) -> tuple[int, int]:
        """Return width and height of the first image; errors as `first`."""
        height, width = self.first()[1].shape[:2]
        return width, height

    def first(self) -> tuple[BagImage, RgbImage]:
        """Return the first image that can be converted.

        Raises:
            BagError: none of the first ones can.
        """
        fault = "there is none"
        for image in itertools.islice(self, _TRIES):
            try:
                return image, image.rgb()
            except BadImageError as error:
                fault = str(error)
        raise BagError(
            f"the images on {self.images.name} in {self.bag.path} cannot be read: {fault}"
        )

    def _first_model(self) -> CameraModel | None:
        first = self.bag.first(self.info.name) if self.info is not None else None
        found = self._info(first) if first is not None else None
        return None if found is None else found[1]

    def _info(self, message: Message) -> tuple[int, CameraModel] | None:
        """Return stamp and calibration of a message; None where it is damaged."""
        try:
            fields = self.bag.decode(message)
        except BagError:
            return None
        # ROS 1 writes the matrices' names in capitals.
        d, k, r, p = (
            tuple(
                float(value) for value in getattr(fields, name, getattr(fields, name.upper(), ()))
            )
            for name in "dkrp"
        )
        region = fields.roi
        shown = tuple(
            int(getattr(region, name)) for name in ("x_offset", "y_offset", "width", "height")
        )
        model = CameraModel(
            width=int(fields.width),
            height=int(fields.height),
            distortion_model=str(fields.distortion_model),
            d=d,
            k=k,
            r=r,
            p=p,
            binning=(max(int(fields.binning_x), 1), max(int(fields.binning_y), 1)),
            roi=shown if region.width and region.height else None,  # type: ignore[arg-type]
        )
        return _stamp_of(fields), model

    def _image(self, message: Message, model: CameraModel | None) -> BagImage:
        try:
            fields = self.bag.decode(message)
        except BagError as error:
            log_ns, file = message.log_ns, message.file
            return BagImage(self.images, log_ns, log_ns, False, "", model, None, file, str(error))
        stamp_ns = _stamp_of(fields)
        return BagImage(
            self.images,
            message.log_ns,
            stamp_ns or message.log_ns,
            stamp_ns != 0,
            str(fields.header.frame_id),
            model,
            fields,
            message.file,
        )


def _stamp_of(fields: Any) -> int:
    stamp = fields.header.stamp
    return int(stamp.sec) * _NS_PER_S + int(stamp.nanosec)


def _last_part(topic: str) -> str:
    return topic.removesuffix("/compressed").rpartition("/")[2]
