"""Which of a bag's topics are the camera's images, and which its calibration."""

from __future__ import annotations

from collections.abc import Iterable

from tiekd_ros.frames.bags.bag import MIXED, Bag
from tiekd_ros.frames.bags.records import CDR, ROS1, BagError, Topic

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"

_COMPRESSED_NAME = "/compressed"
_DEPTH_ENCODINGS = ("16UC1", "32FC1")


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
    chosen: dict[str, Topic] = {}
    for topic in topics:
        other = chosen.get(_base(topic))
        better = other is None or (topic.count, topic.type == IMAGE) > (
            other.count,
            other.type == IMAGE,
        )
        if better:
            chosen[_base(topic)] = topic
    return list(chosen.values())


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
    if topic.type == IMAGE:
        return str(fields.encoding) in _DEPTH_ENCODINGS
    return "compresseddepth" in str(fields.format).lower()


def _oddities(bag: Bag) -> str:
    return f". ({'; '.join(bag.notes)})" if bag.notes else ""


def _all(bag: Bag) -> str:
    return _list(bag.topics.values()) or "no topics at all"


def _list(topics: Iterable[Topic]) -> str:
    return ", ".join(map(str, topics))
