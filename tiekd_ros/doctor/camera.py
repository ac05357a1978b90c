"""The camera's images: whether they are there, are heard, and can be used."""

from __future__ import annotations

from collections.abc import Iterator

from tiekd_ros.doctor.ends import check_several, check_unheard, check_unpublished, errors_in
from tiekd_ros.doctor.facts import (
    COMPRESSED_IMAGE,
    DEPTH_NODE,
    IMAGE,
    RosFacts,
    Topic,
)
from tiekd_ros.doctor.findings import ERROR, OK, WARN, Finding
from tiekd_ros.doctor.naming import candidates, domains_in_words, listed, start_with
from tiekd_ros.ros_environment import TRANSPORTS

_COMPRESSED = "/compressed"
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
        remedy = _where_else(ros, topic.name, wanted)
        found.append(check_unpublished(ros, "image", asked, ERROR, remedy))
    else:
        found += _wrong_types(topic, wanted)
        found += check_unheard(ros, "image", wanted, ERROR)
        found += check_several(ros, "image", wanted)
        if not errors_in(found):
            found += _content(ros, topic)
    yield from found or [_fine(topic)]


def _error(what: str, remedy: str) -> Finding:
    return Finding(ERROR, "image", what, remedy)


def _wanted_type(ros: RosFacts, topic: Topic) -> str:
    """Return what depth_node takes; where it does not listen, either will do."""
    if topic.name in ros.heard.get("image", ()):
        transport = ros.parameter(DEPTH_NODE, "image_transport", "raw")
        return COMPRESSED_IMAGE if transport == "compressed" else IMAGE
    return topic.type if topic.type == COMPRESSED_IMAGE else IMAGE


def _where_else(ros: RosFacts, name: str, wanted: str) -> str:
    raw, compressed = name.removesuffix(_COMPRESSED), name.removesuffix(_COMPRESSED) + _COMPRESSED
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
    base = found[0].removesuffix(_COMPRESSED) if wanted == COMPRESSED_IMAGE else found[0]
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
            if not topic.name.endswith(_COMPRESSED):
                remedy += f" and -r image/compressed:={topic.name}"
        elif kind == IMAGE:
            remedy = "start depth_node with image_transport: raw"
        else:
            remedy = "name the camera's topic (image_topic), or stop that publisher"
        yield Finding(WARN if right else ERROR, "image", what, remedy)


def _content(ros: RosFacts, topic: Topic) -> Iterator[Finding]:
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
