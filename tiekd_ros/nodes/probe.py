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
_LONGEST_DISCOVERY_S = 6.0
"""So long it may take on a busy machine."""
_PATIENCE_S = 4.0
"""How much longer to listen where something is missing."""
_NODES = ("depth_node", "companion_node")
_CAMERA = {
    "image": ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"),
    "camera_info": ("sensor_msgs/msg/CameraInfo",),
}


class _Probe:
    def __init__(self, node: Node, executor: SingleThreadedExecutor) -> None:
        self.node, self._executor = node, executor

    def spin(self, until: Callable[[], bool], at_most_s: float) -> None:
        """Let ROS work until something holds, or for so long."""
        end = time.monotonic() + at_most_s
        while time.monotonic() < end and not until():
            self._executor.spin_once(timeout_sec=0.05)

    def settle(self, expected: str) -> None:
        """Wait until the graph no longer grows, and longer for a node that is expected."""
        seen: Any = None
        since = time.monotonic()

        def is_settled() -> bool:
            nonlocal seen, since
            now = (self.nodes(), self.node.get_topic_names_and_types())
            if now != seen:
                seen, since = now, time.monotonic()
            return expected in now[0] and time.monotonic() - since >= _SETTLED_S

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

    def heard_by(self, full_name: str) -> dict[str, list[str]]:
        """Return the topics of the camera that a node subscribes to."""
        space, _, name = full_name.rpartition("/")
        try:
            found = self.node.get_subscriber_names_and_types_by_node(name, space or "/")
        except RuntimeError:  # rclpy's NodeNameNonExistentError: it has gone meanwhile
            found = []
        return {
            role: sorted(topic for topic, types in found if set(types) & set(kinds))
            for role, kinds in _CAMERA.items()
        }


def probe(arguments: argparse.Namespace, node: Node, executor: SingleThreadedExecutor) -> Any:
    """Look, listen and ask; return what there is, fit for JSON.

    Args:
        arguments: namespace, image_topic, camera_info_topic, seconds.
        node: to look with.
        executor: that runs it.
    """
    it = _Probe(node, executor)
    namespace = "/" + arguments.namespace.strip("/")
    diagnostics = DiagnosticsListener(node)
    own = {name: f"{namespace.rstrip('/')}/{name}" for name in _NODES}
    it.settle(own["depth_node"])
    nodes = it.nodes()
    questions = {name: NodeQuestions(node, full) for name, full in own.items()}
    heard = it.heard_by(own["depth_node"]) if own["depth_node"] in nodes else {}
    names = _topics(arguments, namespace, heard)
    listeners = {role: TopicListener(node, role, name) for role, name in names.items()}

    def is_complete() -> bool:
        for listener in listeners.values():
            listener.step()
        answered = [each.step() for name, each in questions.items() if own[name] in it.nodes()]
        return all(answered) and all(each.is_heard for each in listeners.values())

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
        "topics": {
            role: {**endpoints(node, each.name), **each.measured()}
            for role, each in listeners.items()
        },
        "managed": {n: each.answers() for n, each in questions.items() if own[n] in nodes},
        "diagnostics": diagnostics.of(own.values()),
    }


def _topics(
    arguments: argparse.Namespace, namespace: str, heard: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Return the topics to listen to, by role."""
    image, info = heard.get("image", []), heard.get("camera_info", [])
    return {
        "image": _topic(arguments.image_topic, image, "/camera/image_raw"),
        "camera_info": _topic(arguments.camera_info_topic, info, "/camera/camera_info"),
        "depth": f"{namespace.rstrip('/')}/depth",
        "clock": "/clock",
    }


def _topic(asked: str, heard: Sequence[str], otherwise: str) -> str:
    """Return the topic that is meant: what was asked for, what is heard, or the usual one."""
    if not asked:
        return heard[0] if heard else otherwise
    name = f"/{asked.lstrip('/')}"
    return f"{name}/compressed" if f"{name}/compressed" in heard else name


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the facts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--namespace", default="tiekd")
    parser.add_argument("--image-topic", default="")
    parser.add_argument("--camera-info-topic", default="")
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
