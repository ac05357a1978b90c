"""What a running node answers: its lifecycle state and its parameters."""

from __future__ import annotations

from typing import Any

from lifecycle_msgs.srv import GetState
from rcl_interfaces.srv import GetParameters, ListParameters
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python


class NodeQuestions:
    """Asks one node, without waiting: call `step` while ROS works.

    Args:
        node: who asks.
        name: full name of the node that is asked.
    """

    def __init__(self, node: Node, name: str) -> None:
        self._name = name
        self._state = _Question(node, GetState, f"{name}/get_state")
        self._names = _Question(node, ListParameters, f"{name}/list_parameters")
        self._values = _Question(node, GetParameters, f"{name}/get_parameters")

    def step(self) -> bool:
        """Ask what can be asked by now; return whether all is answered."""
        self._state.ask(GetState.Request())
        self._names.ask(ListParameters.Request())
        names = self._names.answer
        if names is not None:
            self._values.ask(GetParameters.Request(names=names.result.names))
        return self._state.answer is not None and self._values.answer is not None

    def answers(self) -> dict[str, Any]:
        """Return what was answered, fit for JSON; an empty state where nothing was."""
        state, names, values = self._state.answer, self._names.answer, self._values.answer
        parameters = {}
        if names is not None and values is not None:
            found = map(parameter_value_to_python, values.values)
            parameters = {
                name: value if isinstance(value, str | int | float | bool) else str(value)
                for name, value in zip(names.result.names, found, strict=False)
            }
        return {
            "name": self._name,
            "state": "" if state is None else str(state.current_state.label),
            "parameters": parameters,
        }


class _Question:
    """One call of a service, made once the service is there."""

    def __init__(self, node: Node, kind: Any, name: str) -> None:
        self._client = node.create_client(kind, name)
        self._future: Any = None

    def ask(self, request: Any) -> None:
        """Ask, once."""
        if self._future is None and self._client.service_is_ready():
            self._future = self._client.call_async(request)

    @property
    def answer(self) -> Any:
        """The answer, None while there is none."""
        if self._future is None or not self._future.done():
            return None
        return self._future.result()
