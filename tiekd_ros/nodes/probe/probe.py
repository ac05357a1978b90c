"""The part of `tiekd doctor` that needs ROS: prints facts about nodes and topics as lines of JSON.

    python -m tiekd_ros.nodes.probe.probe --namespace tiekd --seconds 3

It waits until the graph is whole, subscribes to the camera, to depth and to /diagnostics, and asks
the nodes for their states and parameters. For what seems not to be there it waits as long as
there is a sign of it, and never longer than `_LONGEST_S`. It changes nothing; but while it
is subscribed, depth_node computes depth.

The last line has the facts; those before say what is waited for.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import rclpy
from lifecycle_msgs.srv import GetState
from rcl_interfaces.srv import GetParameters, ListParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import get_rmw_implementation_identifier

from tiekd_ros.diagnosis import keys
from tiekd_ros.diagnosis.facts import COMPANION_NODE, DEPTH_NODE, NodeFacts, RosFacts, namespace_of
from tiekd_ros.nodes.common import qos
from tiekd_ros.nodes.common.run import leave_ros
from tiekd_ros.nodes.probe.graph import Graph, ReportListener, TopicListener

_DISCOVERY_S = 12.0
"""So long programs that are there may take until ROS knows them."""
_REPORT_S = 8.0
"""So long a node may take until it sends its diagnostics, which it does once a second."""
_PATIENCE_S = 8.0
"""How much longer to wait for messages and answers that should come and do not."""
_LONGEST_S = 25.0
"""All waiting together, beside the seconds that are asked for."""
_STEP_S = 0.1
_NODES = (DEPTH_NODE, COMPANION_NODE)
_OTHER_IMAGES = ("confidence", "preview")
"""Names of depth_node's images that are no depth."""


class Waiter:
    """Lets ROS work while something is waited for; `on_progress` is called with what that is."""

    def __init__(
        self, executor: SingleThreadedExecutor, on_progress: Callable[[str], None]
    ) -> None:
        self._executor, self._on_progress = executor, on_progress
        self._begin = time.monotonic()
        self._left_s = _LONGEST_S

    @property
    def duration_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._begin

    def wait(self, missing: Callable[[], str], at_most_s: float) -> None:
        """Wait until `missing` returns '', for so long, or until no time is left."""
        begin = time.monotonic()
        end = begin + min(at_most_s, self._left_s)
        shown = ""
        while (what := missing()) and time.monotonic() < end:
            if what != shown:
                self._on_progress(what)
                shown = what
            self._spin(_STEP_S)
        self._left_s -= time.monotonic() - begin

    def listen(self, step: Callable[[], object], seconds: float) -> None:
        """Let ROS work for so long, taking a step now and then."""
        self._on_progress(f"what comes within {seconds:g} s")
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            step()
            self._spin(min(_STEP_S, left))

    def _spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=left)


# Asking nodes.

_LONGEST_ANSWER_S = 10.0
"""A node whose executor is busy answers late, as one that loads a student."""
_AGAIN_S = 0.5
_LOST_S = 3.0
"""An answer that has not come by then may be lost."""
_ACTIVE = "active"


class _ServiceCall:
    """A call of a service, made once the service is there."""

    def __init__(self, node: Node, kind: Any, name: str) -> None:
        self._client = node.create_client(kind, name)
        self._open: list[Any] = []  # futures; an answer on its way for long may still come
        self._asked_s = -math.inf
        self.answer: Any = None
        """The last answer, None while there is none."""

    def step(self, request: Any, *, again: bool = False) -> None:
        """Take the answer, if it came; call once, or `again` when the last is not quite new.

        Where no answer comes it is called once more: a service may be there before the way back
        from it is, and that answer is lost.
        """
        for future in [each for each in self._open if each.done()]:
            self._open.remove(future)
            self.answer = future.result()
        silent_s = time.monotonic() - self._asked_s
        is_due = silent_s > (_LOST_S if self._open else _AGAIN_S)
        if (self.answer is None or again) and is_due and self._client.service_is_ready():
            self._asked_s = time.monotonic()
            self._open.append(self._client.call_async(request))


class NodeQuery:
    """Asks a node for its state and parameters, without waiting: call `missing` while ROS works.

    `name` is the full name of the node that is asked.
    """

    def __init__(self, node: Node, name: str) -> None:
        self.name = name
        self._begin: float | None = None
        self._state = _ServiceCall(node, GetState, f"{name}/get_state")
        self._names = _ServiceCall(node, ListParameters, f"{name}/list_parameters")
        self._values = _ServiceCall(node, GetParameters, f"{name}/get_parameters")

    def missing(self, reports: ReportListener) -> str:
        """Take a step; return the answer that is worth to wait for, '' = none.

        A node that is not active is asked again and again: it may be about to be.
        """
        self._begin = self._begin or time.monotonic()
        self._state.step(GetState.Request(), again=not self.is_active)
        self._names.step(ListParameters.Request())
        if self._names.answer is not None:
            names = self._names.answer.result.names
            self._values.step(GetParameters.Request(names=names))
        if time.monotonic() - self._begin > _LONGEST_ANSWER_S:
            return ""
        if self._state.answer is None or self._values.answer is None:
            return f"{self.name} to answer"
        # One that starts by itself is on its way, unless it reports what hinders it.
        starts = not self.is_active and self.facts().parameters.get("autostart") is True
        return f"{self.name} to be active" if starts and not reports.has_error(self.name) else ""

    @property
    def is_active(self) -> bool:
        """Whether its last answer was that it is active."""
        return self.facts().state == _ACTIVE

    def facts(self) -> NodeFacts:
        """Return the answers; an empty state where none came."""
        state, names, values = (each.answer for each in (self._state, self._names, self._values))
        parameters = {}
        if names is not None and values is not None:
            found = map(parameter_value_to_python, values.values)
            parameters = {
                name: value if isinstance(value, str | int | float | bool) else str(value)
                for name, value in zip(names.result.names, found, strict=False)
            }
        label = "" if state is None else str(state.current_state.label)
        return NodeFacts(self.name, label, parameters)


# The probe.


class Probe:
    """Finds the nodes and their topics, and collects facts about them.

    Args:
        node: to look with.
        waiter: runs it.
        options: namespace, image_topic, camera_info_topic, depth_topic, seconds.
    """

    def __init__(self, node: Node, waiter: Waiter, options: argparse.Namespace) -> None:
        self._node, self._waiter, self._options = node, waiter, options
        self._namespace = "/" + options.namespace.strip("/")
        self._graph, self._reports = Graph(node), ReportListener(node)
        self._queries: dict[str, NodeQuery] = {}
        self._listeners: dict[str, TopicListener] = {}

    def run(self) -> RosFacts:
        """Wait for the graph, find the nodes and their topics, listen, and return the facts."""
        graph, waiter = self._graph, self._waiter
        expected = f"{self._namespace.rstrip('/')}/{DEPTH_NODE}"
        waiter.wait(lambda: graph.missing(expected), _DISCOVERY_S)
        names = {kind: self._find_node(kind) for kind in _NODES}
        self._queries = {kind: NodeQuery(self._node, name) for kind, name in names.items()}
        depth_node = names[DEPTH_NODE]
        waiter.wait(self._missing_answer, _PATIENCE_S)
        # On a busy machine a node is discovered before its topics: wait for them, or its report.
        waiter.wait(lambda: self._missing_topics_of(depth_node), _REPORT_S)
        inputs, outputs = self._topics_of(depth_node)
        topics = self._topics(inputs, outputs)
        self._listeners = {
            role: TopicListener(self._node, role, name) for role, name in topics.items()
        }
        waiter.listen(self._missing, self._options.seconds)
        waiter.wait(self._missing, _PATIENCE_S)
        reporting = {*names.values(), *self._reports.of_kind(DEPTH_NODE)}
        return RosFacts(
            rmw=get_rmw_implementation_identifier(),
            domain=self._node.context.get_domain_id(),
            duration_s=waiter.duration_s,
            undiscovered=graph.undiscovered(),
            other_domains=graph.other_domains(),
            namespace=self._namespace,
            nodes=tuple(graph.nodes()),
            published=qos.published_topics(self._node),
            inputs=inputs,
            outputs=outputs,
            topics={role: each.facts() for role, each in self._listeners.items()},
            own_nodes={kind: each.facts() for kind, each in self._running().items()},
            reports={n: each for n, each in self._reports.last.items() if n in reporting},
        )

    def _find_node(self, kind: str) -> str:
        """Return the full name of a node, the usual one if it does not run under any."""
        usual = f"{self._namespace.rstrip('/')}/{kind}"
        graph, reports = self._graph, self._reports

        def found() -> list[str]:
            nodes = graph.nodes()
            renamed = [n for n in reports.of_kind(kind) if namespace_of(n) == self._namespace]
            return [name for name in (usual, *renamed) if name in nodes]

        def missing() -> str:
            silent = graph.reporting_nodes(self._namespace) - set(reports.last)
            return f"the report of {min(silent)}" if silent and not found() else ""

        self._waiter.wait(missing, _REPORT_S)
        asked = _full(self._options.depth_topic)
        meant = [name for name in found() if asked in graph.image_outputs_of(name)]
        return next(iter([*meant, *found()]), usual)

    def _topics_of(self, depth_node: str) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
        inputs = self._graph.inputs_of(depth_node, self._reports)
        return inputs, self._graph.image_outputs_of(depth_node)

    def _missing_topics_of(self, depth_node: str) -> str:
        inputs, outputs = self._topics_of(depth_node)
        known = all(inputs.values()) and outputs
        waits = self._queries[DEPTH_NODE].is_active and not known
        return f"the topics of {depth_node}" if waits else ""

    def _topics(
        self, inputs: Mapping[str, Sequence[str]], outputs: Sequence[str]
    ) -> dict[str, str]:
        """Return the topics to listen to, by role."""
        options = self._options
        image, info = inputs.get("image", ()), inputs.get("camera_info", ())
        return {
            "image": _topic(options.image_topic, image, "/camera/image_raw"),
            "camera_info": _topic(options.camera_info_topic, info, "/camera/camera_info"),
            "depth": _full(options.depth_topic) or depth_among(outputs, self._namespace),
            "clock": "/clock",
        }

    # What is worth to wait for; each returns '' for nothing.

    def _running(self) -> dict[str, NodeQuery]:
        nodes = self._graph.nodes()
        return {kind: each for kind, each in self._queries.items() if each.name in nodes}

    def _missing_answer(self) -> str:
        found = [each.missing(self._reports) for each in self._running().values()]
        return next(filter(None, found), "")

    def _missing(self) -> str:
        for listener in self._listeners.values():
            listener.step()
        return self._missing_answer() or self._missing_message() or self._nameless()

    def _missing_message(self) -> str:
        whole = not self._graph.missing() and self._graph.includes_other_machines()
        for role, listener in self._listeners.items():
            if listener.is_settled or (role == "depth" and not self._expects_depth()):
                continue
            if listener.has_publisher:
                return f"something to come on {listener.name}"
            # Where none of our nodes runs, their topics are not waited for either.
            if self._running() and not whole:
                return f"a publisher of {listener.name}"
        return ""

    def _expects_depth(self) -> bool:
        """Return whether depth can be expected: images come, and depth_node reports no obstacle."""
        query = self._queries[DEPTH_NODE]
        student = self._reports.values_of(query.name).get(keys.STUDENT)
        ready = query.is_active and not self._reports.has_error(query.name) and student != "none"
        return ready and self._listeners["image"].has_messages

    def _nameless(self) -> str:
        names = [each.name for each in self._listeners.values()]
        found = next(filter(self._graph.has_nameless, names), "")
        return f"the nodes at {found}" if found else ""


def depth_among(outputs: Sequence[str], namespace: str) -> str:
    """Return the topic with depth among those on which depth_node publishes images.

    Where it was given another name, that which is not called as the other images are, and
    `depth` rather than anything else; the usual name where there is none.
    """
    usual = f"{namespace.rstrip('/')}/depth"
    others = [name for name in outputs if not any(word in name for word in _OTHER_IMAGES)]
    found = [usual] if usual in outputs else sorted(others, key=lambda name: "depth" not in name)
    return found[0] if found else usual


def _full(name: str) -> str:
    return f"/{name.lstrip('/')}" if name else ""


def _topic(asked: str, inputs: Sequence[str], otherwise: str) -> str:
    """Return the topic that is meant: that asked for, that of depth_node, or the usual one."""
    if not asked:
        return inputs[0] if inputs else otherwise
    name = _full(asked)
    return f"{name}/compressed" if f"{name}/compressed" in inputs else name


def _write(values: Mapping[str, Any]) -> None:
    print(json.dumps(values), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the facts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--namespace", default="tiekd")
    for option in ("--image-topic", "--camera-info-topic", "--depth-topic"):
        parser.add_argument(option, default="")
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args(arguments)
    try:
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        node = Node("tiekd_doctor", use_global_arguments=False, start_parameter_services=False)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        waiter = Waiter(executor, lambda what: _write({"waits_for": what}))
        facts = Probe(node, waiter, options).run()
    except KeyboardInterrupt:
        return 130
    except RuntimeError as error:  # rclpy's RCLError: a bad domain, a middleware that is not there
        sys.stderr.write(f"error: {str(error).splitlines()[0]}\n")
        return 1
    _write(dataclasses.asdict(facts))
    leave_ros([node], executor)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
