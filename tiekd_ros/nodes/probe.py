"""What ROS has at the moment, as one line of JSON: the half of `tiekd doctor` that needs ROS.

    python -m tiekd_ros.nodes.probe --namespace tiekd --seconds 3

It waits until the graph has settled, listens to the camera, to depth and to /diagnostics, and asks
the nodes for their states and parameters. It changes nothing; but while it listens, depth_node
computes depth, which is what is to be seen.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import get_rmw_implementation_identifier

from tiekd_ros.nodes.probe_answers import NodeQuestions
from tiekd_ros.nodes.probe_topics import DiagnosticsListener, TopicListener, endpoints

_SETTLED_S = 1.0
"""A graph that has not changed for so long is taken for whole."""
_SETTLED_WITHOUT_S = 2.0
"""The same while a node that is expected is not there."""
_LONGEST_DISCOVERY_S = 6.0
"""So long it may take on a busy machine."""
_PATIENCE_S = 4.0
"""How much longer to listen where something is missing."""
_REPORTED_S = 2.5
"""So long it may take until each node has sent its diagnostics, once a second."""
_NODES = ("depth_node", "companion_node")
_CAMERA = {
    "image": ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"),
    "camera_info": ("sensor_msgs/msg/CameraInfo",),
}
_NO_DEPTH = ("confidence", "preview")
"""What depth_node's other images are called."""


class _Probe:
    def __init__(self, node: Node, executor: SingleThreadedExecutor) -> None:
        self.node, self._executor = node, executor

    def spin(self, until: Callable[[], bool], at_most_s: float) -> None:
        """Let ROS work until something holds, or for so long."""
        end = time.monotonic() + at_most_s
        while time.monotonic() < end and not until():
            self._executor.spin_once(timeout_sec=0.05)

    def settle(self, expected: str) -> None:
        """Wait until the graph no longer grows, and longer without a node that is expected."""
        seen: Any = None
        since = time.monotonic()

        def is_settled() -> bool:
            nonlocal seen, since
            now = (self.nodes(), self.node.get_topic_names_and_types())
            if now != seen:
                seen, since = now, time.monotonic()
            enough = _SETTLED_S if expected in now[0] else _SETTLED_WITHOUT_S
            # Nothing at all may as well be a machine that is too busy to tell.
            return bool(now[0]) and time.monotonic() - since >= enough

        self.spin(is_settled, _LONGEST_DISCOVERY_S)

    def nodes(self) -> list[str]:
        """Return the full names of all nodes but this one."""
        own = (self.node.get_name(), self.node.get_namespace())
        found = self.node.get_node_names_and_namespaces()
        return sorted(
            f"{space.rstrip('/')}/{name}" for name, space in found if (name, space) != own
        )

    def published(self) -> list[dict[str, Any]]:
        """Return the topics that somebody publishes."""
        return [
            {"name": name, "types": list(kinds)}
            for name, kinds in sorted(self.node.get_topic_names_and_types())
            if self.node.count_publishers(name)
        ]

    def heard_by(self, full_name: str, diagnostics: DiagnosticsListener) -> dict[str, list[str]]:
        """Return the topics of the camera that a node subscribes to.

        Which node a subscription belongs to is told apart from the subscription, and now and then
        that news stays out: then the node's own diagnostics say it.
        """
        found = self._of_node(self.node.get_subscriber_names_and_types_by_node, full_name)
        told = diagnostics.of([full_name]).get(full_name, {}).get("values", {})
        return {
            role: sorted(topic for topic, types in found if set(types) & set(kinds))
            or [topic for topic in (told.get(f"{role} topic"),) if topic]
            for role, kinds in _CAMERA.items()
        }

    def images_by(self, full_name: str) -> list[str]:
        """Return the topics on which a node publishes images."""
        found = self._of_node(self.node.get_publisher_names_and_types_by_node, full_name)
        return sorted(topic for topic, types in found if "sensor_msgs/msg/Image" in types)

    def find(self, kind: str, namespace: str, topic: str, diagnostics: DiagnosticsListener) -> str:
        """Return the full name of a node of ours, which may run under a name of its own.

        Args:
            kind: depth_node or companion_node.
            namespace: where it is.
            topic: that which is meant publishes this, if several could be; '' = any.
            diagnostics: in which each node says what it is.
        """
        usual = f"{namespace.rstrip('/')}/{kind}"

        def renamed() -> list[str]:
            named = [n for n in diagnostics.of_kind(kind) if n in self.nodes()]
            return [n for n in named if (n.rpartition("/")[0] or "/") == namespace]

        def unheard() -> set[str]:
            found = self.node.get_publishers_info_by_topic("/diagnostics")
            own = {
                f"{i.node_namespace.rstrip('/')}/{i.node_name}"
                for i in found
                if i.node_namespace == namespace
            }
            return own - diagnostics.names

        if usual not in self.nodes():
            self.spin(lambda: bool(renamed()) or not unheard(), _REPORTED_S)
        found = [*([usual] if usual in self.nodes() else []), *renamed()]
        meant = [name for name in found if topic in self.images_by(name)]
        return next(iter([*meant, *found]), usual)

    def _of_node(
        self, ask: Callable[[str, str], list[tuple[str, list[str]]]], full_name: str
    ) -> list[tuple[str, list[str]]]:
        space, _, name = full_name.rpartition("/")
        try:
            return ask(name, space or "/")
        except RuntimeError:  # rclpy's NodeNameNonExistentError: it is not there, or has gone
            return []


def probe(arguments: argparse.Namespace, node: Node, executor: SingleThreadedExecutor) -> Any:
    """Look, listen and ask; return what there is, fit for JSON.

    Args:
        arguments: namespace, image_topic, camera_info_topic, depth_topic, seconds.
        node: to look with.
        executor: that runs it.
    """
    it = _Probe(node, executor)
    namespace = "/" + arguments.namespace.strip("/")
    diagnostics = DiagnosticsListener(node)
    it.settle(f"{namespace.rstrip('/')}/depth_node")
    asked = _full(arguments.depth_topic)
    own = {kind: it.find(kind, namespace, asked, diagnostics) for kind in _NODES}
    questions = {kind: NodeQuestions(node, full) for kind, full in own.items()}
    # On a busy machine a node is known long before what it listens to.
    if own["depth_node"] in it.nodes() or node.count_publishers("/diagnostics"):
        it.spin(
            lambda: bool(it.heard_by(own["depth_node"], diagnostics)["image"]),
            _LONGEST_DISCOVERY_S,
        )
    heard = it.heard_by(own["depth_node"], diagnostics)
    made = it.images_by(own["depth_node"])
    names = _topics(arguments, namespace, heard, made)
    listeners = {role: TopicListener(node, role, name) for role, name in names.items()}

    def is_complete() -> bool:
        for listener in listeners.values():
            listener.step()
        nodes = it.nodes()
        answered = [each.step() for name, each in questions.items() if own[name] in nodes]
        # Where none of our nodes runs, nobody's topics are waited for either.
        missed = [each for each in listeners.values() if not each.is_heard]
        return all(answered) and not any(answered or each.has_publisher for each in missed)

    def never() -> bool:
        is_complete()
        return False

    it.spin(never, arguments.seconds)
    it.spin(is_complete, _PATIENCE_S)
    nodes = it.nodes()
    return {
        "rmw": get_rmw_implementation_identifier(),
        "domain": node.context.get_domain_id(),
        "namespace": namespace,
        "nodes": nodes,
        "published": it.published(),
        "heard": heard,
        "made": made,
        "topics": {
            role: {**endpoints(node, each.name), **each.measured()}
            for role, each in listeners.items()
        },
        "managed": {n: each.answers() for n, each in questions.items() if own[n] in nodes},
        "diagnostics": diagnostics.of([*own.values(), *diagnostics.of_kind("depth_node")]),
    }


def _topics(
    arguments: argparse.Namespace,
    namespace: str,
    heard: Mapping[str, Sequence[str]],
    made: Sequence[str],
) -> dict[str, str]:
    """Return the topics to listen to, by role."""
    image, info = heard.get("image", []), heard.get("camera_info", [])
    return {
        "image": _topic(arguments.image_topic, image, "/camera/image_raw"),
        "camera_info": _topic(arguments.camera_info_topic, info, "/camera/camera_info"),
        "depth": _full(arguments.depth_topic) or depth_among(made, namespace),
        "clock": "/clock",
    }


def depth_among(made: Sequence[str], namespace: str) -> str:
    """Return the topic with depth among those on which depth_node publishes images.

    Where it was given another name, that which is not called as the other images are, and
    `depth` rather than anything else; the usual name where there is none.
    """
    usual = f"{namespace.rstrip('/')}/depth"
    others = [name for name in made if not any(word in name for word in _NO_DEPTH)]
    found = [usual] if usual in made else sorted(others, key=lambda name: "depth" not in name)
    return found[0] if found else usual


def _full(name: str) -> str:
    return f"/{name.lstrip('/')}" if name else ""


def _topic(asked: str, heard: Sequence[str], otherwise: str) -> str:
    """Return the topic that is meant: what was asked for, what is heard, or the usual one."""
    if not asked:
        return heard[0] if heard else otherwise
    name = _full(asked)
    return f"{name}/compressed" if f"{name}/compressed" in heard else name


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the facts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--namespace", default="tiekd")
    parser.add_argument("--image-topic", default="")
    parser.add_argument("--camera-info-topic", default="")
    parser.add_argument("--depth-topic", default="")
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args(arguments)
    try:
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        node = Node("tiekd_doctor", use_global_arguments=False, start_parameter_services=False)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        facts = probe(options, node, executor)
    except KeyboardInterrupt:
        return 130
    except RuntimeError as error:  # rclpy's RCLError: a bad domain, a middleware that is not there
        sys.stderr.write(f"error: {str(error).splitlines()[0]}\n")
        return 1
    print(json.dumps(facts), flush=True)
    executor.shutdown()
    node.destroy_node()
    rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
