"""One topic that a node publishes, and who asks for it in a quality it does not have."""

from __future__ import annotations

from typing import Any

from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSCompatibility, QoSProfile, qos_check_compatible

from tiekd_ros.nodes.graph import node_name
from tiekd_ros.nodes.qos_events import (
    Mismatch,
    PublisherEventCallbacks,
    UnsupportedEventTypeError,
    policy_name,
)
from tiekd_ros.nodes.reporting import WARN


class OutputTopic:
    """A lifecycle publisher that counts what it publishes and reports subscribers it cannot serve.

    Args:
        node: who publishes.
        kind: the message's class.
        name: of the topic.
        profile: the quality that is offered.
    """

    def __init__(self, node: LifecycleNode, kind: Any, name: str, profile: QoSProfile) -> None:
        self._node, self._profile = node, profile
        self._mismatch = Mismatch()
        self.published = 0
        """How many messages went out."""
        try:
            self._publisher = node.create_lifecycle_publisher(
                kind,
                name,
                profile,
                event_callbacks=PublisherEventCallbacks(incompatible_qos=self._on_mismatch),
            )
        except UnsupportedEventTypeError:  # this middleware does not tell
            self._publisher = node.create_lifecycle_publisher(kind, name, profile)

    @property
    def name(self) -> str:
        """The topic's name, with its namespace and remappings."""
        return str(self._publisher.topic_name)

    @property
    def heard(self) -> bool:
        """Whether anybody listens."""
        return bool(self._publisher.get_subscription_count() > 0)

    def publish(self, message: Any) -> None:
        """Publish and count a message."""
        self._publisher.publish(message)
        self.published += 1

    def findings(self) -> list[tuple[bytes, str]]:
        """Say who subscribed in vain, as long as they do, with what would mend it."""
        policy = self._mismatch.policy
        if not policy:
            return []
        nodes = self._unserved()
        if not nodes and not self._mismatch.is_recent:  # whoever it was has gone
            return []
        who = " and ".join(nodes) or "a subscriber"
        return [(WARN, f"{who} gets nothing of {self.name}: {self._remedy(policy)}")]

    def close(self) -> None:
        """Stop publishing."""
        self._node.destroy_lifecycle_publisher(self._publisher)

    def _on_mismatch(self, event: Any) -> None:
        policy = policy_name(event)
        self._mismatch.note(policy)
        self._node.get_logger().warning(
            f"somebody subscribes to {self.name} in vain: {self._remedy(policy)}"
        )

    def _remedy(self, policy: str) -> str:
        if policy == "RELIABILITY":
            return (
                "it asks for RELIABLE, offered is BEST_EFFORT; subscribe best effort, or set "
                "output_reliability: reliable"
            )
        if policy == "DURABILITY":
            return (
                "it asks for TRANSIENT_LOCAL, offered is VOLATILE, since old depth is useless; "
                "subscribe volatile"
            )
        return f"its {policy} does not fit what is offered; subscribe with the sensor data profile"

    def _unserved(self) -> list[str]:
        """Return the names of the nodes whose subscriptions do not fit."""
        found = set()
        for info in self._node.get_subscriptions_info_by_topic(self.name):
            fit, _ = qos_check_compatible(self._profile, info.qos_profile)
            if fit == QoSCompatibility.ERROR:
                found.add(node_name(info))
        return sorted(found)
