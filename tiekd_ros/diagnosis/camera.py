"""The camera's topics: publishers, quality of service, type, and the calibration's plausibility."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import takewhile

from tiekd_ros.core.camera import (
    VISIBLE_SHIFT_PX,
    CameraModel,
    Intrinsics,
    Size,
    is_rectified_topic,
)
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
    TopicFacts,
    namespace_of,
    split_remedy,
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
    flag = f"--{role.replace('_', '-')}-topic"
    return f"(launch files: {role}_topic:={topic}, tiekd up: {flag} {topic})"


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


# The calibration.


def check_calibration(
    model: CameraModel, image_size: Size | None, image_topic: str, *, rectify: bool
) -> Iterator[Finding]:
    """Check whether a calibration can be right, in itself and for its images.

    Args:
        model: as the camera_info has it.
        image_size: of the images; None while none has come.
        image_topic: their topic, whose name tells whether they are rectified.
        rectify: whether the nodes rectify them.
    """
    for level, what, remedy in _calibration_faults(model, image_size, image_topic, rectify):
        yield Finding(level, "camera_info", what, remedy)


def _calibration_faults(
    model: CameraModel, size: Size | None, topic: str, rectify: bool
) -> Iterator[tuple[str, str, str]]:
    if not model.is_calibrated:
        yield ERROR if rectify else WARN, "camera_info is uncalibrated (K[0] = 0)", _CALIBRATE
        return
    if size is None or not all(size):
        return
    expected = model.image_size
    sizes = (
        f"camera_info is for {expected[0]:g} x {expected[1]:g}, images are {size[0]} x {size[1]}"
    )
    if not model.fits_shape(*size):
        yield (
            ERROR,
            f"{sizes}: another shape, so K and P cannot be right and are not used (no points, an "
            "uncalibrated camera_info beside depth)",
            "calibrate the camera at this size, or remap image_info to this camera's",
        )
        return
    if not all(expected):
        yield (
            WARN,
            f"camera_info says {model.width} x {model.height} pixels; K and P are taken for the "
            f"images' {size[0]} x {size[1]}",
            "calibrate the camera, or set them in its driver",
        )
    elif not model.fits_size(*size):
        remedy = "better: have the camera's driver publish both for one size"
        yield WARN, f"{sizes}; K and P are scaled", remedy
    view = model.of_view(*size)
    fault = Intrinsics.from_matrix(view.k).implausibility(*size)
    if fault:
        yield WARN, *split_remedy(fault, _CALIBRATE)
    yield from _distortion(view, topic, rectify)


def _distortion(view: CameraModel, topic: str, rectify: bool) -> Iterator[tuple[str, str, str]]:
    if is_rectified_topic(topic):
        if rectify:
            what = f"rectify is on, but by its name {topic} is rectified already"
            yield WARN, what, "set rectify to false, or remap image to the raw images"
        return
    if rectify or not view.is_distorted:
        return
    fault = view.distortion_fault()
    if fault:
        yield WARN, *split_remedy(fault, _CALIBRATE)
        return
    shift_px = view.border_shift_px()
    if shift_px >= VISIBLE_SHIFT_PX:
        yield (
            WARN,
            f"the images are not rectified: the lens moves their border by up to {shift_px:.0f} "
            "px, and so depth's",
            "set rectify to true for both nodes, or remap image to image_rect",
        )


# The camera's topics as the probe saw them.

_LATE_S = 10.0
"""Stamps that far from now are of another clock."""
_OWN_OUTPUTS = ("depth", "depth/preview", "confidence", "camera_info")


def check_image(ros: RosFacts, requested: str) -> Iterator[Finding]:
    """Check the topic of the images.

    `requested` is the topic that the user named; empty where depth_node's is meant.
    """
    topic = ros.topics["image"]
    wanted = _image_type(ros, topic)
    found = _other_topic(ros, "image", requested, ERROR)
    if not topic.publishers:
        network = (
            f"compare ROS_DOMAIN_ID (here {ros.domain}{_other_domains(ros)}) and the discovery "
            "range with those of its shell"
        )
        remedy = missing_image_remedy(topic.name, wanted, ros.published, _own(ros), network)
        found.append(_unpublished(ros, "image", requested, ERROR, remedy))
    else:
        found += _check_publishers(ros, "image", wanted, ERROR)
        if not any(each.level == ERROR for each in found):
            found += _check_messages(ros, topic)
    if not found:
        last = topic.last or {}
        size = f", {last['width']}x{last['height']} {last['encoding']}" if last else ""
        what = f"{offered(topic)}{size}, from {topic.publishers[0].node}"
        found = [Finding(OK, "image", what)]
    yield from found


def check_camera_info(ros: RosFacts, requested: str) -> Iterator[Finding]:
    """Check the topic of the calibration; `requested` as of `check_image`."""
    topic, image = ros.topics["camera_info"], ros.topics["image"]
    rectify = bool(ros.parameter(DEPTH_NODE, "rectify", False))
    level = ERROR if rectify else WARN
    effect = "no depth, since rectify is on" if rectify else "depth comes without it"
    found = _other_topic(ros, "camera_info", requested, WARN)
    if not topic.publishers:
        remedy = missing_info_remedy(image.name, ros.published, _own(ros))
        unpublished = _unpublished(ros, "camera_info", requested, level, remedy)
        found.append(replace(unpublished, what=f"{unpublished.what} ({effect})"))
    found += _check_publishers(ros, "camera_info", CAMERA_INFO, level)
    model = camera_model(topic)
    if model is not None:
        size = None if image.last is None else (image.last["width"], image.last["height"])
        found += check_calibration(model, size, image.name, rectify=rectify)
    elif topic.type == CAMERA_INFO:
        what = f"{topic.publishers[0].node} publishes {topic.name}, but nothing arrives ({effect})"
        found.append(Finding(level, "camera_info", what, "see the log of the camera's driver"))
    if not found:
        assert model is not None
        lens = f"{model.width}x{model.height}, fx {model.k[0]:.1f}, fy {model.k[4]:.1f} px"
        found = [Finding(OK, "camera_info", f"{offered(topic)}, {lens}")]
    yield from found


def camera_model(topic: TopicFacts) -> CameraModel | None:
    """Return the calibration of the last camera_info; None where none came."""
    if topic.last is None:
        return None
    values = {each.name: topic.last[each.name] for each in fields(CameraModel)}
    for name, value in values.items():
        if isinstance(value, Sequence) and not isinstance(value, str):  # JSON has no NaN
            values[name] = tuple(math.nan if each is None else each for each in value)
    return CameraModel(**values)


def offered(topic: TopicFacts) -> str:
    """Return a published topic's name, type, quality of service and rate, in words."""
    first = topic.publishers[0]
    kind = topic.type.rpartition("/")[2]
    rate = f"{topic.count} message{'s' if topic.count != 1 else ''}"
    if topic.rate_hz is not None:
        rate = f"{topic.rate_hz:.1f} Hz"
    return f"{topic.name} ({kind}, {first.reliability}, {first.durability}): {rate}"


def _image_type(ros: RosFacts, topic: TopicFacts) -> str:
    """Return depth_node's type; where it does not subscribe, the publisher's."""
    if topic.name in ros.inputs.get("image", ()):
        transport = ros.parameter(DEPTH_NODE, "image_transport", "raw")
        return COMPRESSED_IMAGE if transport == "compressed" else IMAGE
    return topic.type if topic.type == COMPRESSED_IMAGE else IMAGE


def _own(ros: RosFacts) -> set[str]:
    """Return the outputs of all depth nodes, which are no cameras."""
    spaces = {ros.namespace, *map(namespace_of, ros.other_depth_nodes)}
    own = {f"{space.rstrip('/')}/{each}" for space in spaces for each in _OWN_OUTPUTS}
    return own | set(ros.outputs)


def _other_domains(ros: RosFacts) -> str:
    found = ros.domains_in_words
    return f"; this machine has programs with ROS in {found}" if found else ""


def _other_topic(ros: RosFacts, role: str, requested: str, level: str) -> list[Finding]:
    """Find out whether depth_node subscribes to another topic than the user named."""
    topic, inputs = ros.topics[role].name, ros.inputs.get(role, ())
    if not requested or not inputs or topic in inputs:
        return []
    what = f"depth_node subscribes to {_listed(inputs)}, not to {topic}"
    name = "image" if role == "image" else "image_info"
    return [Finding(level, role, what, f"remap {name}:={topic} {_option(role, topic)}")]


def _unpublished(ros: RosFacts, role: str, requested: str, level: str, remedy: str) -> Finding:
    """Return that an input has no publisher, as far as that is known."""
    name, node = ros.topics[role].name, ros.own_nodes.get(DEPTH_NODE)
    what = f"no node publishes {name}"
    if ros.undiscovered:
        what = f"no publisher of {name} was discovered within {ros.duration_s:.0f} s"
    is_guess = not requested and not ros.inputs.get(role)
    if is_guess and (ros.other_depth_nodes if node is None else node.state != "active"):
        return Finding(
            WARN,
            role,
            f"which topic is meant is not known without a depth_node that is active in "
            f"{ros.namespace}; {what}",
            f"fix depth_node first, or name the topic (--{role.replace('_', '-')}-topic TOPIC)",
        )
    return Finding(level, role, what, remedy)


def _check_publishers(ros: RosFacts, role: str, wanted: str, worst: str) -> list[Finding]:
    topic, node = ros.topics[role], ros.own_nodes.get(DEPTH_NODE)
    own = {each for each in topic.subscribers if node is not None and each.node == node.name}
    found = wrong_types(topic.name, topic.publishers, wanted, worst)
    for each in own:
        if each.type == wanted:
            found += unmatched_publishers(topic.name, topic.publishers, each, worst)
    return found + several_publishers(topic.name, topic.publishers, wanted)


def _check_messages(ros: RosFacts, topic: TopicFacts) -> Iterator[Finding]:
    if not topic.count:
        what = f"{topic.publishers[0].node} publishes {topic.name}, but nothing arrives"
        yield Finding(ERROR, "image", what, NO_IMAGES_REMEDY)
    last = topic.last
    if last is None:
        return
    if last["fault"]:
        remedy = "change the camera's pixel format, for example to rgb8"
        yield Finding(ERROR, "image", last["fault"], remedy)
    if not last["stamped"]:
        yield Finding(
            WARN,
            "image",
            f"the images on {topic.name} carry no stamps (0)",
            "have the camera's driver stamp them; nothing can be matched with depth by time",
        )
    elif abs(last["age_s"]) > _LATE_S and not ros.topics["clock"].publishers:
        yield Finding(
            WARN,
            "image",
            f"the images' stamps are {abs(last['age_s']):.0f} s "
            f"{'behind' if last['age_s'] > 0 else 'ahead of'} this machine's clock",
            "let both machines follow one clock (chrony, PTP); of a recording: play it with "
            "/clock, and start the nodes with use_sim_time:=true",
        )
