"""Requests for transitions that a managed node's state does not have."""

from __future__ import annotations

from typing import Any

from rclpy.lifecycle import LifecycleNode


def refuse_what_does_not_fit(node: LifecycleNode) -> None:
    """Have the node answer a request for a transition that its state does not have.

    Up to Jazzy rclpy raises it in the executor, where it ends the program.
    """
    service = node._service_change_state
    change_state = service.callback

    def answer(request: Any, response: Any) -> Any:
        try:
            return change_state(request, response)
        except RuntimeError as error:  # rclpy's RCLError
            node.get_logger().error(f"refused: {str(error).splitlines()[0]}")
            response.success = False
            return response

    service.callback = answer
