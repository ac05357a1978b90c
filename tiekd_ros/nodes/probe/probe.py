"""What ROS has at the moment, as lines of JSON: the half of `tiekd doctor` that needs ROS.

    python -m tiekd_ros.nodes.probe.probe --namespace tiekd --seconds 3

It waits until the graph is whole, listens to the camera, to depth and to /diagnostics, and asks
the nodes for their states and parameters. What seems not to be there it waits for: as long as
something speaks for it, and never longer than `_LONGEST_S`. It changes nothing; but while it
listens, depth_node computes depth, which is what is to be seen.

The last line are the facts; those before say what is waited for.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import get_rmw_implementation_identifier

from tiekd_ros.nodes.probe.graph import Graph
from tiekd_ros.nodes.probe.listening import Answers, Listening, Patience
from tiekd_ros.nodes.probe.topics import DiagnosticsListener, TopicListener, endpoints

_DISCOVERY_S = 12.0
"""So long programs that are there may take until ROS knows them."""
_WORD_S = 8.0
"""So long a node may take until it sends its diagnostics, which it does once a second."""
_PATIENCE_S = 8.0
"""How much longer to listen where something that should come does not."""
_LONGEST_S = 25.0
"""All that is waited for, together, beside the seconds that are asked for."""
_NODES = ("depth_node", "companion_node")
_NO_DEPTH = ("confidence", "preview")
"""What depth_node's other images are called."""


class _Probe:
    """Finds our nodes, and what is to be listened to."""

    def __init__(self, node: Node, patience: Patience, options: argparse.Namespace) -> None:
        self._patience, self._options = patience, options
        self.namespace = "/" + options.namespace.strip("/")
        self.graph = Graph(node)
        self.diagnostics = DiagnosticsListener(node)

    def find_nodes(self) -> dict[str, str]:
        """Wait for the graph; return our nodes' full names by kind, the usual ones if not there."""
        expected = f"{self.namespace.rstrip('/')}/{_NODES[0]}"
        self._patience.wait(lambda: self.graph.missing(expected), _DISCOVERY_S)
        asked = _full(self._options.depth_topic)
        return {kind: self._find(kind, asked) for kind in _NODES}

    def _find(self, kind: str, topic: str) -> str:
        """Return the name of a node, which may run under another; `topic`: what it publishes."""
        usual = f"{self.namespace.rstrip('/')}/{kind}"

        def renamed() -> list[str]:
            nodes = self.graph.nodes()
            named = [n for n in self.diagnostics.of_kind(kind) if n in nodes]
            return [n for n in named if (n.rpartition("/")[0] or "/") == self.namespace]

        def missing() -> str:
            if usual in self.graph.nodes() or renamed():
                return ""
            unheard = self.graph.speakers_in(self.namespace) - self.diagnostics.names
            return f"what {sorted(unheard)[0]} says of itself" if unheard else ""

        self._patience.wait(missing, _WORD_S)
        found = [*([usual] if usual in self.graph.nodes() else []), *renamed()]
        meant = [name for name in found if topic in self.graph.images_by(name)]
        return next(iter([*meant, *found]), usual)

    def find_ends(
        self, depth_node: str, answers: Answers
    ) -> tuple[dict[str, list[str]], list[str]]:
        """Return what depth_node listens to, by role, and the topics of its images.

        On a busy machine a node is known before its topics are: then either they or its own word
        on them are waited for.
        """
        self._patience.wait(answers.missing, _PATIENCE_S)

        def missing() -> str:
            heard = self.graph.heard_by(depth_node, self.diagnostics)
            known = all(heard.values()) and self.graph.images_by(depth_node)
            waits = answers.is_active("depth_node") and not known
            return f"the topics of {depth_node}" if waits else ""

        self._patience.wait(missing, _WORD_S)
        heard = self.graph.heard_by(depth_node, self.diagnostics)
        return heard, self.graph.images_by(depth_node)

    def topics(self, heard: Mapping[str, Sequence[str]], made: Sequence[str]) -> dict[str, str]:
        """Return the topics to listen to, by role."""
        asked = self._options
        image, info = heard.get("image", []), heard.get("camera_info", [])
        return {
            "image": _topic(asked.image_topic, image, "/camera/image_raw"),
            "camera_info": _topic(asked.camera_info_topic, info, "/camera/camera_info"),
            "depth": _full(asked.depth_topic) or depth_among(made, self.namespace),
            "clock": "/clock",
        }


def probe(
    options: argparse.Namespace,
    node: Node,
    executor: SingleThreadedExecutor,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Look, listen and ask; return what there is, fit for JSON.

    Args:
        options: namespace, image_topic, camera_info_topic, depth_topic, seconds.
        node: to look with.
        executor: that runs it.
        say: called with what is waited for.
    """
    patience = Patience(executor, say, _LONGEST_S)
    it = _Probe(node, patience, options)
    own = it.find_nodes()
    answers = Answers(node, own, it.graph, it.diagnostics)
    heard, made = it.find_ends(own["depth_node"], answers)
    names = it.topics(heard, made)
    listeners = {role: TopicListener(node, role, name) for role, name in names.items()}
    listening = Listening(it.graph, listeners, answers)
    patience.listen(listening.missing, options.seconds)
    patience.wait(listening.missing, _PATIENCE_S)
    return {
        "rmw": get_rmw_implementation_identifier(),
        "domain": node.context.get_domain_id(),
        "looked_s": patience.looked_s,
        "unheard": it.graph.unheard(),
        "elsewhere": it.graph.elsewhere(),
        "namespace": it.namespace,
        "nodes": it.graph.nodes(),
        "published": it.graph.published(),
        "heard": heard,
        "made": made,
        "topics": {
            role: {**endpoints(node, each.name), **each.measured()}
            for role, each in listeners.items()
        },
        "managed": answers.facts(),
        "diagnostics": it.diagnostics.of([*own.values(), *it.diagnostics.of_kind("depth_node")]),
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


def _write(**values: Any) -> None:
    print(json.dumps(values), flush=True)


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
        facts = probe(options, node, executor, lambda what: _write(waits_for=what))
    except KeyboardInterrupt:
        return 130
    except RuntimeError as error:  # rclpy's RCLError: a bad domain, a middleware that is not there
        sys.stderr.write(f"error: {str(error).splitlines()[0]}\n")
        return 1
    _write(**facts)
    executor.shutdown()
    node.destroy_node()
    rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
