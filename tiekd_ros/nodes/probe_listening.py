"""Waiting for what ROS may still bring, and knowing when nothing more will come."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from rclpy.executors import SingleThreadedExecutor

from tiekd_ros.nodes.probe_answers import Answers
from tiekd_ros.nodes.probe_graph import Graph
from tiekd_ros.nodes.probe_topics import TopicListener

_STEP_S = 0.1


class Patience:
    """Lets ROS work while something is waited for.

    Args:
        executor: that runs the node.
        say: called with what is waited for, when that changes.
        longest_s: all that is waited for, together, beside what is listened.
    """

    def __init__(
        self, executor: SingleThreadedExecutor, say: Callable[[str], None], longest_s: float
    ) -> None:
        self._executor, self._say = executor, say
        self._begin = time.monotonic()
        self._left_s = longest_s

    @property
    def looked_s(self) -> float:
        """For how long it has been looked."""
        return time.monotonic() - self._begin

    def wait(self, missing: Callable[[], str], at_most_s: float) -> None:
        """Wait until nothing is missing, or for so long, or until no patience is left."""
        begin = time.monotonic()
        end = begin + min(at_most_s, self._left_s)
        said = ""
        while (what := missing()) and time.monotonic() < end:
            if what != said:
                self._say(what)
                said = what
            self._spin(_STEP_S)
        self._left_s -= time.monotonic() - begin

    def listen(self, step: Callable[[], object], seconds: float) -> None:
        """Listen for so long, taking a step now and then."""
        self._say(f"what comes within {seconds:g} s")
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            step()
            self._spin(min(_STEP_S, left))

    def _spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=left)


class Listening:
    """Listens to topics and asks nodes, until all that can come has come.

    Args:
        graph: that tells who publishes.
        listeners: to the topics, by role.
        answers: of our nodes.
    """

    def __init__(
        self, graph: Graph, listeners: Mapping[str, TopicListener], answers: Answers
    ) -> None:
        self._graph, self._listeners, self._answers = graph, listeners, answers

    def missing(self) -> str:
        """Take a step; return what should come and has not, '' where nothing should."""
        for listener in self._listeners.values():
            listener.step()
        return self._answers.missing() or self._missing_topic() or self._nameless()

    def _missing_topic(self) -> str:
        whole = not self._graph.missing() and self._graph.reaches_afar()
        for role, listener in self._listeners.items():
            if listener.is_heard or (role == "depth" and self._depth_stays_out()):
                continue
            if listener.has_publisher:
                return f"something to come on {listener.name}"
            # Where none of our nodes runs, nobody's topics are waited for either.
            if self._answers.any_runs and not whole:
                return f"a publisher of {listener.name}"
        return ""

    def _depth_stays_out(self) -> bool:
        """Return whether it is known that no depth will come."""
        image = self._listeners["image"]
        comes = image.is_heard and image.has_publisher
        return not (comes and self._answers.may_bring_depth())

    def _nameless(self) -> str:
        names = [each.name for each in self._listeners.values()]
        found = next(filter(self._graph.has_nameless, names), "")
        return f"the nodes at {found}" if found else ""
