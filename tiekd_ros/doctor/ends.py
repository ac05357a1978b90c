"""The two ends of a topic: who publishes, who listens, and whether they can hear each other."""

from __future__ import annotations

from collections.abc import Iterator

from tiekd_ros.doctor.facts import DEPTH_NODE, Endpoint, RosFacts
from tiekd_ros.doctor.findings import ERROR, WARN, Finding

_OPTIONS = {"image": "image-topic", "camera_info": "camera-info-topic"}


def qos_mismatch(publisher: Endpoint, subscriber: Endpoint) -> str:
    """Say which policy keeps a subscriber from hearing a publisher; empty where none does."""
    if publisher.reliability == "best_effort" and subscriber.reliability == "reliable":
        return "reliability"
    if publisher.durability == "volatile" and subscriber.durability == "transient_local":
        return "durability"
    return ""


def check_unpublished(ros: RosFacts, role: str, asked: str, level: str, remedy: str) -> Finding:
    """Say that nobody publishes an input, as far as that is known.

    Args:
        ros: the facts.
        role: image or camera_info.
        asked: the topic that the user named; empty where that of depth_node is meant.
        level: of the finding.
        remedy: likewise.
    """
    name, node = ros.topics[role].name, ros.managed.get(DEPTH_NODE)
    what = f"nobody publishes {name}"
    if ros.unheard:
        what = f"nobody was seen to publish {name} within {ros.looked_s:.0f} s"
    is_guessed = not asked and not ros.heard.get(role)
    if is_guessed and (ros.depth_nodes_elsewhere if node is None else node.state != "active"):
        return Finding(
            WARN,
            role,
            f"which topic is meant is not known without a depth_node that is active in "
            f"{ros.namespace}; {what}",
            f"mend depth_node first, or name the topic (--{_OPTIONS[role]} TOPIC)",
        )
    return Finding(level, role, what, remedy)


def check_unheard(ros: RosFacts, role: str, wanted: str, worst: str) -> Iterator[Finding]:
    """Say which publishers of an input depth_node cannot hear.

    Args:
        ros: the facts.
        role: image or camera_info.
        wanted: the type that it should have.
        worst: the level where it hears none.
    """
    topic, own = ros.topics[role], ros.managed.get(DEPTH_NODE)
    listening = [s for s in topic.subscribers if own is not None and s.node == own.name]
    right = [each for each in topic.publishers if each.type == wanted]
    mismatches = [
        (each, policy) for each in right for ear in listening if (policy := qos_mismatch(each, ear))
    ]
    level = worst if len(mismatches) >= len(right) else WARN
    for each, policy in mismatches:
        offered = each.reliability if policy == "reliability" else each.durability
        asked = ros.parameter(DEPTH_NODE, f"input_{policy}", "unknown")
        yield Finding(
            level,
            role,
            f"depth_node cannot hear {each.node}: it publishes {topic.name} {offered}, which does "
            f"not serve input_{policy}: {asked}",
            f"start depth_node with input_{policy}: auto",
        )


def check_several(ros: RosFacts, role: str, wanted: str) -> Iterator[Finding]:
    """Say where more than one publishes what should come from one camera."""
    topic = ros.topics[role]
    names = sorted(each.node for each in topic.publishers if each.type == wanted)
    if len(names) > 1:
        yield Finding(
            WARN,
            role,
            f"{len(names)} publishers of {topic.name} ({', '.join(names)}): what they send is "
            "mixed up",
            "stop all but one, or remap them: a namespace for each camera",
        )


def check_unserved(ros: RosFacts) -> Iterator[Finding]:
    """Say who asks for depth in a quality that it does not have."""
    topic = ros.topics["depth"]
    for ear in topic.subscribers:
        policies = {qos_mismatch(each, ear) for each in topic.publishers}
        if "" in policies or not policies:
            continue
        policy = sorted(policies)[0]
        remedy = (
            "let it subscribe volatile: old depth is useless"
            if policy == "durability"
            else "set output_reliability to reliable, or let it subscribe best effort"
        )
        what = f"{ear.node} asks for more ({policy}) than {topic.name} offers, and gets nothing"
        yield Finding(WARN, "depth", what, remedy)


def errors_in(findings: list[Finding]) -> bool:
    """Say whether there is an error among them."""
    return any(each.level == ERROR for each in findings)
