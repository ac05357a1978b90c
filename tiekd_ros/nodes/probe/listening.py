"""Waiting for what ROS may still bring, and knowing when nothing more will come."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from lifecycle_msgs.srv import GetState
from rcl_interfaces.srv import GetParameters, ListParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python

from tiekd_ros.nodes.probe.graph import Graph
from tiekd_ros.nodes.probe.topics import DiagnosticsListener, TopicListener

_LONGEST_S = 10.0
"""A node whose executor is busy answers late, as one that loads a student."""
_AGAIN_S = 0.5
_LOST_S = 3.0
"""An answer that has not come by then may be lost."""
_ERROR = 2
_ACTIVE = "active"


class Answers:
    """Asks our nodes, without waiting.

    Args:
        node: who asks.
        names: the nodes' full names, by kind.
        graph: in which they may be.
        diagnostics: that they send.
    """

    def __init__(
        self, node: Node, names: Mapping[str, str], graph: Graph, diagnostics: DiagnosticsListener
    ) -> None:
        self._questions = {kind: NodeQuestions(node, name) for kind, name in names.items()}
        self._graph, self._diagnostics = graph, diagnostics

    def missing(self) -> str:
        """Take a step; return for which answer it is worth to wait, '' = for none."""
        found = [self._step(each) for each in self._running().values()]
        return next(filter(None, found), "")

    def _step(self, question: NodeQuestions) -> str:
        answered = question.step()
        if question.asked_for_s > _LONGEST_S:
            return ""
        if not answered:
            return f"{question.name} to answer"
        # One that starts by itself is on its way, unless it says what hinders it.
        if question.starts and self._said(question.name).get("level") != _ERROR:
            return f"{question.name} to be active"
        return ""

    def is_active(self, kind: str) -> bool:
        """Return whether a node answered that it is active."""
        return self._questions[kind].state == _ACTIVE

    def may_bring_depth(self) -> bool:
        """Return whether depth can be expected of depth_node, by what it says of itself."""
        said = self._said(self._questions["depth_node"].name)
        has_student = said.get("values", {}).get("student") != "none"
        return self.is_active("depth_node") and said.get("level") != _ERROR and has_student

    def _said(self, name: str) -> Mapping[str, Any]:
        return self._diagnostics.of([name]).get(name, {})

    @property
    def any_runs(self) -> bool:
        """Whether one of the nodes is there."""
        return bool(self._running())

    def facts(self) -> dict[str, Any]:
        """Return what was answered, by kind, fit for JSON."""
        return {kind: each.answers() for kind, each in self._running().items()}

    def _running(self) -> dict[str, NodeQuestions]:
        nodes = self._graph.nodes()
        return {kind: each for kind, each in self._questions.items() if each.name in nodes}


class NodeQuestions:
    """Asks one node, without waiting: call `step` while ROS works.

    Args:
        node: who asks.
        name: full name of the node that is asked.
    """

    def __init__(self, node: Node, name: str) -> None:
        self.name = name
        self._begin: float | None = None
        self._state = _Question(node, GetState, f"{name}/get_state")
        self._names = _Question(node, ListParameters, f"{name}/list_parameters")
        self._values = _Question(node, GetParameters, f"{name}/get_parameters")

    def step(self) -> bool:
        """Ask what can be asked by now; return whether all is answered.

        A node that is not active is asked again and again: it may be about to be.
        """
        self._begin = self._begin or time.monotonic()
        self._state.ask(GetState.Request(), again=self.state != _ACTIVE)
        self._names.ask(ListParameters.Request())
        names = self._names.answer
        if names is not None:
            self._values.ask(GetParameters.Request(names=names.result.names))
        return self._state.answer is not None and self._values.answer is not None

    @property
    def asked_for_s(self) -> float:
        """For how long it has been asked."""
        return time.monotonic() - (self._begin or time.monotonic())

    @property
    def state(self) -> str:
        """Its last answer's; empty where there is none."""
        state = self._state.answer
        return "" if state is None else str(state.current_state.label)

    @property
    def starts(self) -> bool:
        """Whether it is not active yet, and becomes so by itself."""
        return self.state != _ACTIVE and self.answers()["parameters"].get("autostart") is True

    def answers(self) -> dict[str, Any]:
        """Return what was answered, fit for JSON; an empty state where nothing was."""
        names, values = self._names.answer, self._values.answer
        parameters = {}
        if names is not None and values is not None:
            found = map(parameter_value_to_python, values.values)
            parameters = {
                name: value if isinstance(value, str | int | float | bool) else str(value)
                for name, value in zip(names.result.names, found, strict=False)
            }
        return {
            "name": self.name,
            "state": self.state,
            "parameters": parameters,
        }


class _Question:
    """One call of a service, made once the service is there."""

    def __init__(self, node: Node, kind: Any, name: str) -> None:
        self._client = node.create_client(kind, name)
        self._open: list[Any] = []  # futures; an answer on its way for long may still come
        self._asked_s = -math.inf
        self.answer: Any = None
        """The last answer, None while there is none."""

    def ask(self, request: Any, *, again: bool = False) -> None:
        """Take the answer, if it came; ask once, or `again` when the last is not quite new.

        An answer that does not come is asked for once more: a service may be there before the way
        back from it is, and what it says then is lost.
        """
        for future in [each for each in self._open if each.done()]:
            self._open.remove(future)
            self.answer = future.result()
        silent_s = time.monotonic() - self._asked_s
        is_due = silent_s > (_LOST_S if self._open else _AGAIN_S)
        if (self.answer is None or again) and is_due and self._client.service_is_ready():
            self._asked_s = time.monotonic()
            self._open.append(self._client.call_async(request))


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
