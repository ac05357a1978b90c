"""A topic that a node publishes, on a middleware that does not tell who cannot be served."""

from __future__ import annotations

from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.lifecycle import LifecycleNode

from ros_helpers.peer import Peer
from ros_helpers.waiting import wait_for
from tiekd_ros.nodes.common import qos
from tiekd_ros.nodes.common.qos import PublisherEventCallbacks, UnsupportedEventTypeError
from tiekd_ros.nodes.depth import output as output_topic
from tiekd_ros.nodes.depth.output import OutputTopic


def test_a_middleware_without_these_events_is_published_on_all_the_same(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(PublisherEventCallbacks):  # type: ignore[misc, valid-type]
        def create_event_handlers(self, *arguments: Any) -> list[Any]:
            raise UnsupportedEventTypeError("no such event")

    monkeypatch.setattr(output_topic, "PublisherEventCallbacks", Refusing)
    node = LifecycleNode(
        "talker", namespace=peer.namespace, context=peer.context, use_global_arguments=False
    )
    heard: list[str] = []
    peer.node.create_subscription(
        DiagnosticStatus, "words", lambda message: heard.append(message.name), 10
    )
    try:
        topic = OutputTopic(node, DiagnosticStatus, "words", qos.RELIABLE)
        node.trigger_configure()
        node.trigger_activate()
        wait_for(
            lambda: heard,
            "a message",
            nudge=lambda: topic.publish(DiagnosticStatus(name="here")),
        )
        assert topic.findings() == []
        topic.close()
    finally:
        node.destroy_node()
    assert set(heard) == {"here"}
