"""One camera's images in a bag, each with its stamp and its calibration."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from tiekd_ros.bags import CDR, ROS1, BagError, Message, Topic
from tiekd_ros.bags.bag import MIXED, Bag
from tiekd_ros.core.camera import CameraModel, is_rectified_topic
from tiekd_ros.core.encodings import compressed_to_rgb, is_depth, raw_to_rgb
from tiekd_ros.core.errors import BadImageError
from tiekd_ros.core.images import RgbImage

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"

_COMPRESSED_NAME = "/compressed"


def choose_images(bag: Bag, wanted: str = "") -> Topic:
    """Return the topic of the camera's images: the one that is named, or the only one there is.

    A depth image is none. Where a camera was recorded both raw and compressed, the one with more
    messages counts, raw if they are equal.

    Raises:
        BagError: there is none or more than one, or the named one has no images; says which
            topics there are.
    """
    if wanted:
        return _named(bag, wanted, (IMAGE, COMPRESSED), "images", "--image-topic")
    offered = [each for each in bag.topics.values() if each.type in (IMAGE, COMPRESSED)]
    filled = [topic for topic in offered if topic.count]
    if not filled:
        empty = f"no message on {_list(offered)}" if offered else f"it holds {_all(bag)}"
        raise BagError(
            f"{bag.path} has no images (sensor_msgs/Image or CompressedImage): {empty}"
            + _oddities(bag)
        )
    cameras = _by_camera(topic for topic in filled if not _is_depth(bag, topic))
    if not cameras:
        raise BagError(
            f"{bag.path} has depth images only, on {_list(filled)}: a camera's colour or grey "
            "images are needed; name one with --image-topic if this is wrong"
        )
    if len(cameras) > 1:
        raise BagError(
            f"{bag.path} has images of {len(cameras)} cameras: {_list(cameras)}. Say which with "
            "--image-topic (camera_node: parameter image_topic); a frame log belongs to one camera"
        )
    return _decodable(bag, cameras[0])


def choose_info(bag: Bag, images: Topic, wanted: str = "") -> Topic | None:
    """Return the topic of the camera's calibration; None where there is none to be sure of.

    That is `camera_info` beside the images, as image_pipeline names it, or the bag's only one.

    Raises:
        BagError: the named topic has no calibration.
    """
    if wanted:
        return _named(bag, wanted, (CAMERA_INFO,), "camera_info messages", "--camera-info")
    offered = {
        each.name: each for each in bag.topics.values() if each.type == CAMERA_INFO and each.count
    }
    sibling = _base(images).rpartition("/")[0] + "/camera_info"
    if sibling in offered:
        return offered[sibling]
    cameras = [each for each in bag.topics.values() if each.type in (IMAGE, COMPRESSED)]
    alone = len(offered) == 1 and len(_by_camera(cameras)) == 1
    return next(iter(offered.values())) if alone else None


def _named(bag: Bag, name: str, types: tuple[str, ...], what: str, option: str) -> Topic:
    topic = bag.topics.get(name) or bag.topics.get(f"/{name}")
    if topic is None:
        raise BagError(f"{bag.path} has no topic {name} ({option}): it holds {_all(bag)}")
    if topic.type not in types:
        why = MIXED if topic.type == MIXED else f"of type {topic.type}"
        raise BagError(
            f"{topic.name} in {bag.path} is {why}, but {what} are {' or '.join(types)}; the bag "
            f"holds {_all(bag)}"
        )
    if not topic.count:
        raise BagError(f"{topic.name} in {bag.path} has no messages" + _oddities(bag))
    return _decodable(bag, topic)


def _decodable(bag: Bag, topic: Topic) -> Topic:
    if topic.encoding not in (CDR, ROS1):
        raise BagError(
            f"{topic.name} in {bag.path} is encoded as {topic.encoding!r}; only messages as ROS "
            "writes them (cdr) can be read: record the bag with ROS, or convert it"
        )
    return topic


def _by_camera(topics: Iterable[Topic]) -> list[Topic]:
    """Return one topic for each camera."""
    cameras: dict[str, list[Topic]] = {}
    for topic in topics:
        cameras.setdefault(_base(topic), []).append(topic)
    return [max(each, key=lambda t: (t.count, t.type == IMAGE)) for each in cameras.values()]


def _base(topic: Topic) -> str:
    return topic.name.removesuffix(_COMPRESSED_NAME)


def _is_depth(bag: Bag, topic: Topic) -> bool:
    """Look at a topic's first image."""
    message = bag.first(topic.name)
    if message is None or topic.encoding not in (CDR, ROS1):
        return False
    try:
        fields = bag.decode(message)
    except BagError:
        return False
    return is_depth(str(fields.encoding if topic.type == IMAGE else fields.format))


def _oddities(bag: Bag) -> str:
    return f". ({'; '.join(bag.notes)})" if bag.notes else ""


def _all(bag: Bag) -> str:
    return _list(bag.topics.values()) or "no topics at all"


def _list(topics: Iterable[Topic]) -> str:
    return ", ".join(map(str, topics))


_NS_PER_S = 1_000_000_000
_TRIES = 20  # broken images at a bag's start


@dataclass(frozen=True)
class BagImage:
    """One image message; its pixels are converted when they are asked for."""

    topic: Topic
    log_ns: int
    """Time of its recording, nanoseconds."""
    stamp_ns: int
    """Stamp of its header; time of its recording where that is 0."""
    stamped: bool
    """Whether its header has a stamp."""
    frame_id: str
    model: CameraModel | None
    """The calibration with its stamp, where that was recorded next to it; else the one recorded
    last before it, or the first one after it."""
    fields: Any
    file: int
    """Number of the bag's file that holds it."""
    fault: str = ""
    """Why the message cannot be read; empty where it can."""

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
        self.rectified = is_rectified_topic(self.images.name)
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
        return _stamp_of(fields), CameraModel.from_message(fields)

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
