"""What the ROS graph tells, in words."""

from __future__ import annotations

from typing import Any

_UNKNOWN_NODE = "_NODE_NAME_UNKNOWN_"
"""What the middleware says of an endpoint outside ROS, or whose node's name is still on its way."""


def node_name(endpoint: Any) -> str:
    """Return the full name of the node that publishes or subscribes, by its TopicEndpointInfo."""
    if endpoint.node_name == _UNKNOWN_NODE:
        return "an unnamed node"
    return f"{endpoint.node_namespace.rstrip('/')}/{endpoint.node_name}"


def type_name(kind: Any) -> str:
    """Return a message class's name as the graph has it, such as sensor_msgs/msg/Image."""
    package, folder = kind.__module__.split(".")[:2]
    return f"{package}/{folder}/{kind.__name__}"
