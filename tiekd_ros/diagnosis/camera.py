"""The camera's calibration: whether it is there and can be right."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from tiekd_ros.core.camera import is_rectified_topic
from tiekd_ros.core.supervisor import TRANSPORTS
from tiekd_ros.diagnosis.facts import (
    CAMERA_INFO,
    COMPRESSED_IMAGE,
    DEPTH_NODE,
    ERROR,
    IMAGE,
    OK,
    WARN,
    Endpoint,
    Finding,
    RosFacts,
    Topic,
    candidates,
    check_several,
    check_unheard,
    check_unpublished,
    domains_in_words,
    errors_in,
    listed,
    start_with,
)

COMPRESSED = "/compressed"
_AT_MOST = 3
"""Topics that a hint lists."""
_CALIBRATE = "calibrate the camera (camera_calibration), and have its driver publish the result"

NO_IMAGES_REMEDY = (
    "see in its log whether the camera runs; large images get lost in small network buffers (on "
    "another machine, its FASTDDS_BUILTIN_TRANSPORTS has to be the nodes' too: "
    f"{TRANSPORTS.split('?')[0]})"
)
"""Where there is a publisher, and no image comes."""


# The publishers of a topic. The nodes log these findings; `tiekd doctor` shows them.


def qos_mismatches(publisher: Endpoint, reliability: str, durability: str) -> list[str]:
    """Return the policies in which a publisher offers less than a subscription requests.

    Args:
        publisher: with what it offers.
        reliability: that the subscription requests: reliable or best_effort.
        durability: likewise: transient_local or volatile.
    """
    found = []
    if publisher.reliability == "best_effort" and reliability == "reliable":
        found.append("reliability")
    if publisher.durability == "volatile" and durability == "transient_local":
        found.append("durability")
    return found


def qos_remedy(policy: str) -> str:
    """Return the parameter to change where a camera offers less of a policy than requested."""
    if policy == "reliability":
        return "set input_reliability to auto or best_effort"
    if policy == "durability":
        return "set input_durability to auto or volatile"
    return "its quality of service does not fit; publish with the sensor data profile"


def wrong_types(
    topic: str, publishers: Sequence[Endpoint], wanted: str, worst: str = ERROR
) -> list[Finding]:
    """Find the publishers of another type than the subscription's.

    Args:
        topic: its full name.
        publishers: all of them.
        wanted: the subscription's type.
        worst: the level where all publishers have another type; else it is a warning.
    """
    level = WARN if any(each.type == wanted for each in publishers) else worst
    wrong = {each.type: each.node for each in publishers if each.type != wanted}
    return [
        Finding(
            level,
            _role(wanted),
            f"{node} publishes {topic} as {kind}, not as {wanted}",
            _type_remedy(topic, wanted, kind),
        )
        for kind, node in wrong.items()
    ]


def _type_remedy(topic: str, wanted: str, kind: str) -> str:
    if wanted == CAMERA_INFO:
        return "remap image_info to the camera's calibration, or stop that publisher"
    if kind == COMPRESSED_IMAGE:
        remap = "" if topic.endswith(COMPRESSED) else f" and remap image{COMPRESSED}:={topic}"
        return f"set image_transport to compressed{remap}"
    if kind == IMAGE:
        return f"set image_transport to raw and remap image:={topic}"
    return "remap image to the camera's topic, or stop that publisher"


def unmatched_publishers(
    topic: str,
    publishers: Sequence[Endpoint],
    subscription: Endpoint,
    worst: str = ERROR,
) -> list[Finding]:
    """Find the publishers that offer a lower quality of service than the subscription requests.

    Args:
        topic: its full name.
        publishers: all of them; those of another type are passed over.
        subscription: with what it requests.
        worst: the level where no publisher is received; else it is a warning.
    """
    right = [each for each in publishers if each.type == subscription.type]
    requested = (subscription.reliability, subscription.durability)
    found = {each: qos_mismatches(each, *requested) for each in right}
    level = WARN if [] in found.values() else worst
    return [
        Finding(
            level,
            _role(subscription.type),
            f"{each.node} publishes {topic}, but is not received: it offers "
            f"{getattr(each, policy)}, {getattr(subscription, policy)} is requested",
            qos_remedy(policy),
        )
        for each, policies in found.items()
        for policy in policies
    ]


def several_publishers(topic: str, publishers: Sequence[Endpoint], wanted: str) -> list[Finding]:
    """Find out whether more than one camera publishes messages of this type on a topic."""
    names = sorted(each.node for each in publishers if each.type == wanted)
    if len(names) < 2:
        return []
    what = f"{len(names)} publishers of {topic} ({', '.join(names)}): their messages mix"
    remedy = "stop all but one, or remap them (a namespace for each camera)"
    return [Finding(WARN, _role(wanted), what, remedy)]


def _role(kind: str) -> str:
    return "camera_info" if kind == CAMERA_INFO else "image"


# Hints: other topics of the graph that may be meant.


def missing_image_remedy(
    topic: str,
    wanted: str,
    published: Mapping[str, Collection[str]],
    own: Collection[str],
    network: str = "compare ROS_DOMAIN_ID and the network",
) -> str:
    """Return the way to images where a topic has no publisher.

    Args:
        topic: the one that was subscribed to.
        wanted: its type, IMAGE or COMPRESSED_IMAGE.
        published: types by topic, of all topics with a publisher.
        own: topics that are no camera's, such as depth.
        network: what to do where the camera runs and there is no such topic.
    """
    base = topic.removesuffix(COMPRESSED)
    is_raw = wanted == IMAGE
    other = COMPRESSED_IMAGE if is_raw else IMAGE
    sibling = topic + COMPRESSED if is_raw else base
    if sibling != topic and other in published.get(sibling, ()):
        return f"there is {sibling}: set image_transport to {_transport(other)}"
    for kind in (wanted, other):
        found = _nearest(topic, kind, published, own)
        if found:
            change = "" if kind == wanted else f"set image_transport to {_transport(kind)} and "
            return f"{_there_are(found)}: {change}{_remap_image(kind, found[0])}"
    return f"start the camera's driver; if it runs, {network}"


def missing_info_remedy(
    image_topic: str, published: Mapping[str, Collection[str]], own: Collection[str]
) -> str:
    """Return the way to a camera_info where its topic has no publisher.

    Args:
        image_topic: the images', for its siblings are named first.
        published: types by topic, of all topics with a publisher.
        own: topics that are no camera's, such as that beside depth.
    """
    found = _nearest(image_topic.removesuffix(COMPRESSED), CAMERA_INFO, published, own)
    if found:
        first = found[0]
        return f"{_there_are(found)}: remap image_info:={first} {_option('camera_info', first)}"
    return _CALIBRATE


def _transport(kind: str) -> str:
    return "compressed" if kind == COMPRESSED_IMAGE else "raw"


def _remap_image(kind: str, topic: str) -> str:
    if kind == COMPRESSED_IMAGE and not topic.endswith(COMPRESSED):
        return f"remap image{COMPRESSED}:={topic}"
    base = topic.removesuffix(COMPRESSED) if kind == COMPRESSED_IMAGE else topic
    return f"remap image:={base} {_option('image', base)}"


def _option(role: str, topic: str) -> str:
    return f"(launch files: {role}_topic:={topic})"


def _there_are(names: Sequence[str]) -> str:
    return f"there {'is' if len(names) == 1 else 'are'} {_listed(names)}"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _AT_MOST
    return ", ".join(names[:_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def _nearest(
    topic: str, kind: str, published: Mapping[str, Collection[str]], own: Collection[str]
) -> list[str]:
    """Return the topics of a type that share most of a topic's namespace, or are most like it."""

    def distance(name: str) -> tuple[int, float, str]:
        pairs = zip(topic.split("/"), name.split("/"), strict=False)
        shared = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
        return (-shared, -difflib.SequenceMatcher(None, topic, name).ratio(), name)

    found = [name for name, kinds in published.items() if kind in kinds and name not in own]
    return sorted(found, key=distance)


# The examination of `tiekd doctor`.

_LATE_S = 10.0
"""Stamps that far from now are of another clock."""


def check_image(ros: RosFacts, asked: str) -> Iterator[Finding]:
    """Look at the topic of the images.

    Args:
        ros: the facts.
        asked: the topic that the user named; empty where that of depth_node is meant.
    """
    topic = ros.topics["image"]
    wanted = _wanted_type(ros, topic)
    heard = ros.heard.get("image", ())
    found = []
    if asked and heard and topic.name not in heard:
        what = f"depth_node listens to {listed(list(heard))}, not to {topic.name}"
        found.append(_error(what, start_with("image_topic", topic.name)))
    if not topic.publishers:
        remedy = _camera_where_else(ros, topic.name, wanted)
        found.append(check_unpublished(ros, "image", asked, ERROR, remedy))
    else:
        found += _wrong_types(topic, wanted)
        found += check_unheard(ros, "image", wanted, ERROR)
        found += check_several(ros, "image", wanted)
        if not errors_in(found):
            found += _camera_content(ros, topic)
    yield from found or [_fine(topic)]


def _error(what: str, remedy: str) -> Finding:
    return Finding(ERROR, "image", what, remedy)


def _wanted_type(ros: RosFacts, topic: Topic) -> str:
    """Return what depth_node takes; where it does not listen, either will do."""
    if topic.name in ros.heard.get("image", ()):
        transport = ros.parameter(DEPTH_NODE, "image_transport", "raw")
        return COMPRESSED_IMAGE if transport == "compressed" else IMAGE
    return topic.type if topic.type == COMPRESSED_IMAGE else IMAGE


def _camera_where_else(ros: RosFacts, name: str, wanted: str) -> str:
    raw, compressed = name.removesuffix(COMPRESSED), name.removesuffix(COMPRESSED) + COMPRESSED
    if name != compressed and COMPRESSED_IMAGE in ros.published.get(compressed, ()):
        return f"there is {compressed}: start the nodes with image_transport: compressed"
    if name == compressed and IMAGE in ros.published.get(raw, ()):
        return f"there is {raw}: start the nodes with image_transport: raw"
    found = candidates(ros, [wanted], name)
    if not found:
        return (
            f"start the camera's driver; if it runs, compare ROS_DOMAIN_ID (here {ros.domain}"
            f"{_others(ros)}) and the discovery range with those of its shell"
        )
    base = found[0].removesuffix(COMPRESSED) if wanted == COMPRESSED_IMAGE else found[0]
    return f"there is {listed(found)}: {start_with('image_topic', base)}"


def _others(ros: RosFacts) -> str:
    found = domains_in_words(ros.elsewhere)
    return f"; this machine has programs with ROS in {found}" if found else ""


def _wrong_types(topic: Topic, wanted: str) -> Iterator[Finding]:
    wrong = {each.type: each.node for each in topic.publishers if each.type != wanted}
    right = len(topic.publishers) > sum(each.type != wanted for each in topic.publishers)
    for kind, node in wrong.items():
        what = f"{node} publishes {topic.name} as {kind}, not as {wanted}"
        if kind == COMPRESSED_IMAGE:
            remedy = "start depth_node with image_transport: compressed"
            if not topic.name.endswith(COMPRESSED):
                remedy += f" and -r image/compressed:={topic.name}"
        elif kind == IMAGE:
            remedy = "start depth_node with image_transport: raw"
        else:
            remedy = "name the camera's topic (image_topic), or stop that publisher"
        yield Finding(WARN if right else ERROR, "image", what, remedy)


def _camera_content(ros: RosFacts, topic: Topic) -> Iterator[Finding]:
    if not topic.count:
        yield _error(
            f"{topic.publishers[0].node} publishes {topic.name}, but nothing arrives",
            "see in its log whether the camera runs; on another machine, its "
            f"FASTDDS_BUILTIN_TRANSPORTS has to be the nodes' too ({TRANSPORTS.split('?')[0]})",
        )
        return
    last = topic.last or {}
    if last.get("fault"):
        yield _error(last["fault"], "change the camera's pixel format, for example to rgb8")
    if last and not last["stamped"]:
        yield Finding(
            WARN,
            "image",
            f"the images on {topic.name} carry no stamps (0)",
            "have the camera's driver stamp them; nothing can be matched with depth by time",
        )
    elif last and abs(last["age_s"]) > _LATE_S and not ros.topics["clock"].publishers:
        yield Finding(
            WARN,
            "image",
            f"the images' stamps are {abs(last['age_s']):.0f} s "
            f"{'behind' if last['age_s'] > 0 else 'ahead of'} this machine's clock",
            "let both machines follow one clock (chrony, PTP); of a recording: play it with "
            "/clock, and start the nodes with use_sim_time:=true",
        )


def _fine(topic: Topic) -> Finding:
    last = topic.last or {}
    size = f", {last['width']}x{last['height']} {last['encoding']}" if last else ""
    who = topic.publishers[0]
    return Finding(
        OK,
        "image",
        f"{topic.name} ({offered(topic)}): {rate(topic)}{size}, from {who.node}",
    )


def offered(topic: Topic) -> str:
    """Return the type and the quality of service of a topic that somebody publishes, in words."""
    who = topic.publishers[0]
    return f"{topic.type.rpartition('/')[2]}, {who.reliability}, {who.durability}"


def rate(topic: Topic) -> str:
    """Return how often something comes, in words."""
    if topic.rate_hz is None:
        return f"{topic.count} message{'s' if topic.count != 1 else ''}"
    return f"{topic.rate_hz:.1f} Hz"


_VIEW_DEG = (15.0, 170.0)
"""Horizontal fields of view of cameras for robots."""
_SAME_SHAPE = 0.01


def check_camera_info(ros: RosFacts, asked: str) -> Iterator[Finding]:
    """Look at the topic of the calibration; `asked` as for `check_image`."""
    topic = ros.topics["camera_info"]
    heard = ros.heard.get("camera_info", ())
    needed = bool(ros.parameter(DEPTH_NODE, "rectify", False))
    level = ERROR if needed else WARN
    effect = "no depth, since rectify is on" if needed else "depth comes without it"
    found = []
    if asked and heard and asked not in heard:
        what = f"depth_node listens to {listed(list(heard))}, not to {asked}"
        found.append(Finding(WARN, "camera_info", what, start_with("camera_info_topic", asked)))
    if not topic.publishers:
        unpublished = check_unpublished(
            ros, "camera_info", asked, level, _where_else(ros, topic.name)
        )
        found.append(replace(unpublished, what=f"{unpublished.what} ({effect})"))
    elif topic.type != CAMERA_INFO:
        who = topic.publishers[0].node
        what = f"{who} publishes {topic.name} as {topic.type}, not as {CAMERA_INFO} ({effect})"
        remedy = "name the camera's topic (camera_info_topic)"
        found.append(Finding(level, "camera_info", what, remedy))
    elif topic.last is None:
        what = f"{topic.publishers[0].node} publishes {topic.name}, but nothing arrives ({effect})"
        found.append(Finding(level, "camera_info", what, "see the log of the camera's driver"))
    else:
        found += _content(topic.last, ros, rectify=needed)
    found += check_unheard(ros, "camera_info", CAMERA_INFO, level)
    found += check_several(ros, "camera_info", CAMERA_INFO)
    if not found:
        what = f"{topic.name} ({offered(topic)}): {rate(topic)}, {_words(topic.last)}"
        found = [Finding(OK, "camera_info", what)]
    yield from found


def focal_px(ros: RosFacts) -> tuple[float, int] | None:
    """Return the focal length fx and the width that it is for, of a calibrated camera."""
    last = ros.topics["camera_info"].last
    if last is None or not _is_calibrated(last):
        return None
    width, _ = _described_size(last)
    scale = max(last["binning"][0], 1)
    return last["k"][0] / scale, round(width)


def _where_else(ros: RosFacts, name: str) -> str:
    found = candidates(ros, [CAMERA_INFO], name)
    folder = ros.topics["image"].name.rpartition("/")[0]
    found.sort(key=lambda other: other.rpartition("/")[0] != folder)  # the image's sibling first
    if found:
        return f"there is {listed(found)}: {start_with('camera_info_topic', found[0])}"
    return _CALIBRATE


def _content(last: Mapping[str, Any], ros: RosFacts, *, rectify: bool) -> Iterator[Finding]:
    if not _is_calibrated(last):
        yield Finding(
            ERROR if rectify else WARN,
            "camera_info",
            "camera_info is uncalibrated (K is no camera's): points and labels lack the lens",
            _CALIBRATE,
        )
        return
    yield from _geometry(last)
    yield from _size(last, ros)
    yield from _distortion(last, ros.topics["image"].name, rectify=rectify)


def _geometry(last: Mapping[str, Any]) -> Iterator[Finding]:
    fx, cx, cy = last["k"][0], last["k"][2], last["k"][5]
    width, height = last["width"], last["height"]
    if not width or not height:
        remedy = "have the camera's driver fill in width and height"
        yield Finding(WARN, "camera_info", "camera_info has no size (width, height)", remedy)
        return
    if not (0 < cx < width and 0 < cy < height):
        what = f"the centre ({cx:.0f}, {cy:.0f}) lies outside of the {width} x {height} image"
        yield Finding(WARN, "camera_info", what, _CALIBRATE)
    view = math.degrees(2 * math.atan(width / 2 / fx))
    if not _VIEW_DEG[0] <= view <= _VIEW_DEG[1]:
        what = f"fx = {fx:.0f} px at {width} px is a field of view of {view:.0f} degrees"
        yield Finding(WARN, "camera_info", what, f"see that it is this camera's; {_CALIBRATE}")


def _size(last: Mapping[str, Any], ros: RosFacts) -> Iterator[Finding]:
    image = ros.topics["image"].last
    width, height = _described_size(last)
    if image is None or not width or not height or not image["width"] or not image["height"]:
        return
    size = (image["width"], image["height"])
    if abs(width - size[0]) < 1 and abs(height - size[1]) < 1:
        return
    text = f"camera_info is for {width:g} x {height:g}, images are {size[0]} x {size[1]}"
    if abs(width * size[1] / (height * size[0]) - 1) > _SAME_SHAPE:
        remedy = "calibrate the camera at the size that it sends, or have it send the other"
        yield Finding(ERROR, "camera_info", f"{text}: another shape, so K cannot be right", remedy)
    else:
        remedy = "better: have the camera's driver publish both for one size"
        yield Finding(WARN, "camera_info", f"{text}; K and P are scaled", remedy)


def _distortion(last: Mapping[str, Any], image_topic: str, *, rectify: bool) -> Iterator[Finding]:
    if rectify or is_rectified_topic(image_topic) or not any(last["d"]):
        return
    yield Finding(
        WARN,
        "camera_info",
        f"the lens distorts ({last['distortion_model']}, D is not 0), and the images are not "
        "rectified",
        "set rectify to true for both nodes, or take the rectified topic (image_rect)",
    )


def _is_calibrated(last: Mapping[str, Any]) -> bool:
    k = last["k"]
    return None not in k and k[0] > 0 and k[4] > 0


def _described_size(last: Mapping[str, Any]) -> tuple[float, float]:
    """Return the (width, height) of the images that it is for, by ROI and binning."""
    _, _, width, height = last["roi"]
    if not (width and height):
        width, height = last["width"], last["height"]
    return width / max(last["binning"][0], 1), height / max(last["binning"][1], 1)


def _words(last: Mapping[str, Any] | None) -> str:
    assert last is not None
    fx, fy = last["k"][0], last["k"][4]
    return f"{last['width']}x{last['height']}, fx {fx:.1f}, fy {fy:.1f} px"
