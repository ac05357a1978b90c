"""The facts about ROS that the probe (`tiekd_ros.nodes.probe`) gathered, read from its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
