"""Facts about a robot's depth, as plain values, and the findings that rules make of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tiekd_ros.diagnosis import keys

OK, WARN, ERROR = "ok", "warn", "error"
"""Levels of findings. warn: depth may come all the same; error: it does not, or is wrong."""

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
DEPTH_NODE, COMPANION_NODE = "depth_node", "companion_node"


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    level: str
    check: str
    """The subject: ros, image, student, ..."""
    what: str
    """The observation, with its values."""
    remedy: str = ""
    """Empty where all is well."""

    @property
    def text(self) -> str:
        """Observation and remedy in one line, as the nodes log it."""
        return f"{self.what}; {self.remedy}" if self.remedy else self.what

    def as_dict(self) -> dict[str, str]:
        """Return plain values, fit for JSON."""
        return asdict(self)


def split_remedy(text: str, otherwise: str) -> tuple[str, str]:
    """Split an error's text, `observation; remedy`, at its last semicolon.

    Where it has none, the remedy is `otherwise`.
    """
    what, _, remedy = text.rpartition("; ")
    return (what, remedy) if what else (text, otherwise)


def namespace_of(full_name: str) -> str:
    """Return the namespace of a node's full name."""
    return full_name.rpartition("/")[0] or "/"


@dataclass(frozen=True)
class Endpoint:
    """One publisher or subscriber of a topic."""

    node: str
    type: str
    reliability: str
    """reliable, best_effort or unknown."""
    durability: str
    """volatile, transient_local or unknown."""


@dataclass(frozen=True)
class TopicFacts:
    """A topic, and the messages that came while the probe listened."""

    name: str
    type: str
    """Of the subscription; empty where no node publishes."""
    count: int
    rate_hz: float | None
    """None for fewer than two messages."""
    bytes: int
    """Size of the last message."""
    last: Mapping[str, Any] | None
    """The last message in short, where it has the expected type."""
    publishers: tuple[Endpoint, ...]
    subscribers: tuple[Endpoint, ...]


@dataclass(frozen=True)
class NodeFacts:
    """Answers of depth_node or companion_node to the probe."""

    name: str
    state: str
    """Of its life cycle; empty where it did not answer."""
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class NodeReport:
    """A node's last status on /diagnostics."""

    level: int
    message: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class RosFacts:
    """The ROS graph, and the messages of the topics that depth depends on."""

    rmw: str
    domain: int
    duration_s: float
    """How long the probe looked."""
    undiscovered: int
    """Programs of this domain that run on this machine and were not discovered until the end."""
    other_domains: Mapping[int, int]
    """How many programs with ROS this machine has in other domains."""
    namespace: str
    nodes: tuple[str, ...]
    """Full names; one that runs twice is there twice."""
    published: Mapping[str, tuple[str, ...]]
    """Types by topic, of all topics with a publisher."""
    inputs: Mapping[str, tuple[str, ...]]
    """The topics that depth_node subscribes to, by role (image, camera_info)."""
    outputs: tuple[str, ...]
    """The topics on which depth_node publishes images."""
    topics: Mapping[str, TopicFacts]
    """By role: image, camera_info, depth, clock."""
    own_nodes: Mapping[str, NodeFacts]
    """depth_node and companion_node, as far as they run in the namespace, by kind."""
    reports: Mapping[str, NodeReport]
    """By full name."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RosFacts:
        """Read from the JSON of `dataclasses.asdict`."""

        def topic(each: Mapping[str, Any]) -> TopicFacts:
            endpoints = {
                side: tuple(Endpoint(**one) for one in each[side])
                for side in ("publishers", "subscribers")
            }
            return TopicFacts(**{**each, **endpoints})

        converted = {
            "other_domains": {int(n): count for n, count in values["other_domains"].items()},
            "nodes": tuple(values["nodes"]),
            "published": {name: tuple(types) for name, types in values["published"].items()},
            "inputs": {role: tuple(names) for role, names in values["inputs"].items()},
            "outputs": tuple(values["outputs"]),
            "topics": {role: topic(each) for role, each in values["topics"].items()},
            "own_nodes": {kind: NodeFacts(**each) for kind, each in values["own_nodes"].items()},
            "reports": {name: NodeReport(**each) for name, each in values["reports"].items()},
        }
        return cls(**{**values, **converted})

    def parameter(self, kind: str, name: str, otherwise: Any) -> Any:
        """Return a parameter of depth_node or companion_node, `otherwise` if it is not known."""
        node = self.own_nodes.get(kind)
        return otherwise if node is None else node.parameters.get(name, otherwise)

    def report_of(self, kind: str) -> NodeReport:
        """Return a node's last report, an empty one where there is none."""
        node, empty = self.own_nodes.get(kind), NodeReport(0, "", {})
        return empty if node is None else self.reports.get(node.name, empty)

    @property
    def other_depth_nodes(self) -> tuple[str, ...]:
        """Full names of the depth nodes outside the namespace, also of those that are renamed."""
        own = self.own_nodes.get(DEPTH_NODE)
        return tuple(
            name
            for name in self.nodes
            if (own is None or name != own.name)
            and (name.endswith(f"/{DEPTH_NODE}") or self._kind_of(name) == DEPTH_NODE)
        )

    def _kind_of(self, name: str) -> str:
        report = self.reports.get(name)
        return "" if report is None else report.values.get(keys.KIND, "")

    @property
    def depth_flows(self) -> bool:
        """Whether depth came while the probe listened."""
        return self.topics["depth"].count > 0

    @property
    def domains_in_words(self) -> str:
        """The other domains in use on this machine, such as `domains 0, 5`; may be empty."""
        found = [str(each) for each in sorted(self.other_domains)]
        return f"domain{'s' if len(found) > 1 else ''} {', '.join(found)}" if found else ""


@dataclass(frozen=True)
class DeviceFacts:
    """The device that depth_node's parameters choose on this machine."""

    requested: str
    """The parameter `device`."""
    runtime: str
    """The parameter `runtime`."""
    name: str = ""
    """Such as cuda:0 (NVIDIA Orin); empty with a fault."""
    torch: str = ""
    """Its version."""
    torch_has_cuda: bool = False
    fault: str = ""
    """Why the requested device cannot be used."""
    onnxruntime_fault: str | None = None
    """Empty where it can be used there; None where it was not asked for."""
    gpu: str = ""
    """A file that only a machine with a GPU has."""


@dataclass(frozen=True)
class MachineFacts:
    """This machine and the environment that the doctor was called with."""

    environment: Mapping[str, str]
    device: DeviceFacts
    rclpy_wheel: str = ""
    """Version of the PyPI package ros-rclpy."""
    receive_buffer_bytes: int | None = None
    """net.core.rmem_max."""
    shared_memory: str = "/dev/shm"
    shared_memory_bytes: tuple[int, int] | None = None
    """(total, free); None where there is none."""


@dataclass(frozen=True)
class StudentFacts:
    """The card of a registry's student."""

    version: str
    status: str
    is_refused: bool
    reason: str
    architecture: str
    input_size: tuple[int, int]
    """(width, height), pixels."""
    max_depth_m: float
    focal_px: tuple[float, float] | None
    """(fx, fy) at the input size."""
    age_days: float | None


@dataclass(frozen=True)
class StateFacts:
    """A state folder."""

    root: str
    nearest: str
    """The folder itself, or its nearest parent that exists."""
    is_folder: bool
    """Whether `nearest` is one."""
    write_fault: str = ""
    """Why `nearest` cannot be written to."""
    free_bytes: int = 0
    frames: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Number of frames by state (logged, labelled, rejected) and split; empty without a log."""
    frames_fault: str = ""
    """Why the frame log cannot be read."""
    holders: tuple[str, ...] = ()
    """Programs that hold its locks: kind and process."""
    live: str = ""
    """The live student's version."""
    versions: tuple[str, ...] = ()
    student: StudentFacts | None = None
    """The live student, or the newest where none is live."""
    student_fault: str = ""
    """Why the registry or the live student cannot be read."""


UNREACHABLE, DENIED, BUSY = "unreachable", "denied", "busy"


@dataclass(frozen=True)
class TeacherFacts:
    """A teacher's answer to one request."""

    url: str = ""
    """host:port; empty where none is configured."""
    tls: bool = False
    identity: str = ""
    """Its name and version; empty with a fault."""
    fault: str = ""
    cause: str = ""
    """UNREACHABLE, DENIED, BUSY, or empty for all else."""
