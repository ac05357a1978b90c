"""Qualities of service: offered, asked for, and not met, on every ROS from Humble on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from rclpy.node import Node
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSProfile,
    ReliabilityPolicy,
    qos_policy_name_from_kind,
)

from tiekd_ros.diagnosis.facts import Endpoint

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


def endpoint_of(info: Any) -> Endpoint:
    """Return a publisher or subscriber as plain values, by its TopicEndpointInfo."""
    offer = info.qos_profile
    return Endpoint(
        node_name(info),
        info.topic_type,
        offer.reliability.name.lower(),
        offer.durability.name.lower(),
    )


def publishers_of(node: Node, topic: str) -> list[Endpoint]:
    """Return the publishers of a topic, as the graph knows them by now."""
    return [endpoint_of(info) for info in node.get_publishers_info_by_topic(topic)]


def highest_offered(publishers: Sequence[Endpoint]) -> tuple[str, str]:
    """Return the highest reliability and durability that every publisher offers."""
    reliable = {each.reliability for each in publishers} == {"reliable"}
    latched = {each.durability for each in publishers} == {"transient_local"}
    return (
        "reliable" if reliable else "best_effort",
        "transient_local" if latched else "volatile",
    )


def published_topics(node: Node) -> dict[str, tuple[str, ...]]:
    """Return the types of all topics that have a publisher, by name."""
    return {
        name: tuple(types)
        for name, types in sorted(node.get_topic_names_and_types())
        if node.count_publishers(name)
    }


def profile(reliability: str, durability: str = "volatile", depth: int = 5) -> QoSProfile:
    """Return a quality of service.

    Args:
        reliability: `best_effort` (as sensor data) or `reliable`.
        durability: `volatile` or `transient_local`.
        depth: messages kept. For images not 1: the one-slot mailbox behind a subscription drops
            what is stale, and counts it; what the middleware overwrites is not counted.
    """
    return QoSProfile(
        depth=depth,
        history=HistoryPolicy.KEEP_LAST,
        reliability=ReliabilityPolicy[reliability.upper()],
        durability=DurabilityPolicy[durability.upper()],
    )


LATCHED = profile("reliable", "transient_local", depth=1)
"""State that late joiners must see: the student's version, the round's status."""

RELIABLE = profile("reliable", depth=2)
"""Outputs: reliable serves every subscriber; shallow, since a stale depth image is useless."""


try:
    from rclpy.event_handler import (
        PublisherEventCallbacks as PublisherEventCallbacks,
    )
    from rclpy.event_handler import (
        SubscriptionEventCallbacks,
    )
    from rclpy.event_handler import (
        UnsupportedEventTypeError as UnsupportedEventTypeError,
    )
except ImportError:  # Humble
    from rclpy.qos_event import (
        PublisherEventCallbacks as PublisherEventCallbacks,
    )
    from rclpy.qos_event import (
        SubscriptionEventCallbacks,
    )
    from rclpy.qos_event import (
        UnsupportedEventTypeError as UnsupportedEventTypeError,
    )

_GRAPH_LAG_S = 5.0
"""The middleware tells of a mismatch before the graph lists whose it is; so long it may take."""


class Mismatch:
    """The last one that the middleware told of; noted in one thread, looked at in another."""

    def __init__(self) -> None:
        self._last = ("", -math.inf)  # (policy, when), monotonic seconds; replaced as a whole

    def note(self, policy: str) -> None:
        """Take note of one, by the policy's name (RELIABILITY, ...)."""
        self._last = (policy, time.monotonic())

    @property
    def policy(self) -> str:
        """The policy that did not fit; empty where there was none."""
        return self._last[0]

    @property
    def is_recent(self) -> bool:
        """Whether the graph may not list yet whose it was."""
        return time.monotonic() - self._last[1] <= _GRAPH_LAG_S


def subscribe(
    node: Node,
    kind: Any,
    topic: str,
    callback: Callable[[Any], None],
    profile: QoSProfile,
    *,
    on_mismatch: Callable[[str], None],
    on_lost: Callable[[int], None],
) -> Any:
    """Return a subscription, with as many of the middleware's events as it knows.

    Args:
        node: the subscriber.
        kind: the message's class.
        topic: its name.
        callback: called with each message.
        profile: the quality that is asked for.
        on_mismatch: called with the policy's name (RELIABILITY, ...) when a publisher is found
            that cannot serve it.
        on_lost: called with the number of messages that were lost on the way since the last time.
    """
    mismatch = {"incompatible_qos": lambda event: on_mismatch(policy_name(event))}
    lost = {"message_lost": lambda event: on_lost(event.total_count_change)}
    for events in ({**mismatch, **lost}, mismatch):
        try:
            return node.create_subscription(
                kind, topic, callback, profile, event_callbacks=SubscriptionEventCallbacks(**events)
            )
        except UnsupportedEventTypeError:
            continue
    return node.create_subscription(kind, topic, callback, profile)


def policy_name(event: Any) -> str:
    """Return the name of the policy that does not fit, by an incompatible-QoS event."""
    return str(qos_policy_name_from_kind(event.last_policy_kind))
