"""The two ends of a topic: who publishes, who listens, and whether they can hear each other."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

OK, WARN, ERROR = "ok", "warn", "error"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: str
    """ok; warn: depth may come all the same; error: it does not, or must not be trusted."""
    check: str
    """What was looked at: ros, image, student, ..."""
    what: str
    """What was found, with the values."""
    remedy: str = ""
    """What would mend it; empty where all is well."""

    @property
    def text(self) -> str:
        """Observation and remedy in one line, as the nodes log it."""
        return f"{self.what}; {self.remedy}" if self.remedy else self.what

    def as_dict(self) -> dict[str, str]:
        """Return plain values, fit for JSON."""
        return asdict(self)


def split_remedy(text: str, otherwise: str) -> tuple[str, str]:
    """Split an error's text, `what is wrong; what would do`, at its last semicolon.

    Where it has none, the remedy is `otherwise`.
    """
    what, _, remedy = text.rpartition("; ")
    return (what, remedy) if what else (text, otherwise)


IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
DEPTH_NODE, COMPANION_NODE = "depth_node", "companion_node"


@dataclass(frozen=True)
class Endpoint:
    """One publisher of a topic, or one subscriber."""

    node: str
    type: str
    reliability: str
    """reliable, best_effort or unknown."""
    durability: str
    """volatile, transient_local or unknown."""


@dataclass(frozen=True)
class Topic:
    """A topic, and what came on it while the probe listened."""

    name: str
    type: str
    """Of what was listened to; empty where nobody publishes."""
    count: int
    rate_hz: float | None
    bytes: int
    """Size of the last message."""
    last: Mapping[str, Any] | None
    """The last message in short, where it has the type that it should have."""
    publishers: tuple[Endpoint, ...]
    subscribers: tuple[Endpoint, ...]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Topic:
        """Read from the probe's JSON."""
        ends = {
            end: tuple(Endpoint(**each) for each in values[end])
            for end in ("publishers", "subscribers")
        }
        return cls(**{**values, **ends})


@dataclass(frozen=True)
class Managed:
    """What one of our nodes answered."""

    name: str
    state: str
    """Of its life cycle; empty where it did not answer."""
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Diagnosis:
    """A node's last word on /diagnostics."""

    level: int
    message: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class RosFacts:
    """What ROS has."""

    rmw: str
    domain: int
    looked_s: float
    """How long the probe looked."""
    unheard: int
    """Programs of this domain that this machine has, and that ROS did not show until the end."""
    elsewhere: Mapping[int, int]
    """How many programs with ROS this machine has in other domains."""
    namespace: str
    nodes: tuple[str, ...]
    """Full names; one that runs twice is there twice."""
    published: Mapping[str, tuple[str, ...]]
    """Types by topic, of the topics that somebody publishes."""
    heard: Mapping[str, tuple[str, ...]]
    """What depth_node subscribes to: topics by role (image, camera_info)."""
    made: tuple[str, ...]
    """The topics on which depth_node publishes images."""
    topics: Mapping[str, Topic]
    """By role: image, camera_info, depth, clock."""
    managed: Mapping[str, Managed]
    """Our nodes in the namespace, by kind: depth_node, companion_node."""
    diagnostics: Mapping[str, Diagnosis]
    """By full name."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RosFacts:
        """Read from the probe's JSON."""
        return cls(
            rmw=values["rmw"],
            domain=values["domain"],
            looked_s=values["looked_s"],
            unheard=values["unheard"],
            elsewhere={int(domain): count for domain, count in values["elsewhere"].items()},
            namespace=values["namespace"],
            nodes=tuple(values["nodes"]),
            published={each["name"]: tuple(each["types"]) for each in values["published"]},
            heard={role: tuple(names) for role, names in values["heard"].items()},
            made=tuple(values["made"]),
            topics={role: Topic.from_json(each) for role, each in values["topics"].items()},
            managed={kind: Managed(**each) for kind, each in values["managed"].items()},
            diagnostics={name: Diagnosis(**d) for name, d in values["diagnostics"].items()},
        )

    def parameter(self, kind: str, name: str, otherwise: Any) -> Any:
        """Return a parameter of one of our nodes, `otherwise` where it is not known."""
        node = self.managed.get(kind)
        return otherwise if node is None else node.parameters.get(name, otherwise)

    def said(self, kind: str) -> Diagnosis:
        """Return a node's last diagnostics, empty ones where there are none."""
        node = self.managed.get(kind)
        nothing = Diagnosis(0, "", {})
        return nothing if node is None else self.diagnostics.get(node.name, nothing)

    @property
    def depth_nodes_elsewhere(self) -> tuple[str, ...]:
        """Full names of the depth nodes that are not in the namespace, whatever they are called."""
        own = self.managed.get(DEPTH_NODE)
        kinds = {name: said.values.get("kind") for name, said in self.diagnostics.items()}
        named = [name for name in self.nodes if name.endswith(f"/{DEPTH_NODE}")]
        named += [name for name in self.nodes if kinds.get(name) == DEPTH_NODE]
        return tuple(name for name in named if own is None or name != own.name)

    @property
    def depth_flows(self) -> bool:
        """Whether depth came while the probe listened."""
        return self.topics["depth"].count > 0


_OWN_OUTPUTS = ("depth", "depth/preview", "confidence", "camera_info")
_AT_MOST = 3


def candidates(ros: RosFacts, kinds: Iterable[str], name: str) -> list[str]:
    """Return the published topics of these types, but for our own, those like `name` first."""
    spaces = {ros.namespace, *map(namespace_of, ros.depth_nodes_elsewhere)}
    own = {f"{space.rstrip('/')}/{each}" for space in spaces for each in _OWN_OUTPUTS}
    own |= set(ros.made)
    found = [n for n, types in ros.published.items() if set(types) & set(kinds) and n not in own]

    def likeness(other: str) -> float:
        return difflib.SequenceMatcher(None, name, other).ratio()

    return sorted(found, key=lambda other: (-likeness(other), other))


def namespace_of(full_name: str) -> str:
    """Return where a node is."""
    return full_name.rpartition("/")[0] or "/"


def listed(names: list[str]) -> str:
    """Return the first few names."""
    more = len(names) - _AT_MOST
    return ", ".join(names[:_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def domains_in_words(domains: Iterable[int]) -> str:
    """Return the numbers of domains, such as `domains 0, 5`; empty where there are none."""
    found = [str(each) for each in sorted(domains)]
    return f"domain{'s' if len(found) > 1 else ''} {', '.join(found)}" if found else ""


def start_with(option: str, value: str) -> str:
    """Say how the nodes are started with an argument, such as image_topic."""
    flag = option.replace("_", "-")
    return f"start the nodes with {option}:={value} (tiekd up --{flag} {value})"


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
