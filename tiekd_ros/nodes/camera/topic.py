"""One topic of the camera: subscribed in the quality that fits, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from rclpy.node import Node
from rclpy.qos import QoSProfile

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.diagnosis import facts as diagnosis
from tiekd_ros.diagnosis.camera import (
    qos_remedy,
    several_publishers,
    unmatched_publishers,
    wrong_types,
)
from tiekd_ros.diagnosis.facts import Endpoint
from tiekd_ros.nodes.common import qos
from tiekd_ros.nodes.common.qos import (
    Mismatch,
    highest_offered,
    publishers_of,
    subscribe,
    type_name,
)
from tiekd_ros.nodes.common.reporting import as_reported

Finding = tuple[bytes, str]


class Quality(NamedTuple):
    """The quality of service that is asked for; `auto` = what every publisher offers."""

    reliability: str
    durability: str
    depth: int


class CameraTopic:
    """A subscription that is made anew when the publishers turn out to offer another quality.

    A best-effort subscription receives from every camera, but large images get lost on a busy
    machine; a reliable one loses none, but gets nothing from a best-effort camera. With `auto`
    it is reliable as long as every publisher is, and likewise for durability.

    Args:
        node: who subscribes.
        kind: the message's class.
        topic: its full name.
        quality: what to ask for.
        callback: called with each message.

    Raises:
        TiekdError: the node's process has the topic with another type already.
    """

    def __init__(
        self,
        node: Node,
        kind: Any,
        topic: str,
        quality: Quality,
        callback: Callable[[Any], None],
    ) -> None:
        self._node, self._kind, self._quality, self._callback = node, kind, quality, callback
        self.topic = topic
        self.lost = 0
        """Messages that were lost on the way, as far as the middleware knows."""
        self.type = type_name(kind)
        self._mismatch = Mismatch()
        self._publishers = publishers_of(node, topic)
        self._fit = self._fitting()
        self._subscription = self._subscribe()

    @property
    def quality(self) -> str:
        """The quality that is asked for at present, in words."""
        return f"{self._fit.reliability}, {self._fit.durability}, depth {self._fit.depth}"

    @property
    def publishers(self) -> list[str]:
        """The nodes that publish what can be received, once for each publisher."""
        return [each.node for each in self._publishers if each.type == self.type]

    def check(self) -> None:
        """Look who publishes, and make the subscription anew if they offer another quality."""
        self._publishers = publishers_of(self._node, self.topic)
        fit = self._fitting()
        if fit != self._fit:
            self.close()
            self._fit, self._mismatch = fit, Mismatch()
            self._subscription = self._subscribe()

    def findings(self) -> list[Finding]:
        """Return which publishers are not received, and whether there are several."""
        requested = Endpoint("", self.type, self._fit.reliability, self._fit.durability)
        unmatched = unmatched_publishers(self.topic, self._publishers, requested)
        return as_reported(
            [
                *wrong_types(self.topic, self._publishers, self.type),
                *(unmatched or self._unmatched_yet_unknown()),
                *several_publishers(self.topic, self._publishers, self.type),
            ]
        )

    def close(self) -> None:
        """Stop listening."""
        self._node.destroy_subscription(self._subscription)

    def _subscribe(self) -> Any:
        try:
            return subscribe(
                self._node,
                self._kind,
                self.topic,
                self._callback,
                self._profile(),
                on_mismatch=self._mismatch.note,
                on_lost=self._on_lost,
            )
        except RuntimeError as error:  # rclpy's RCLError
            others = sorted(self._types() - {self.type})
            if not others:
                raise
            raise TiekdError(
                f"{self.topic} cannot be listened to as {self.type}, since this process has it "
                f"as {' and '.join(others)}; remap image or image_info, so that each is a topic of "
                "its own type"
            ) from error

    def _types(self) -> set[str]:
        """Return the types that the graph has of the topic."""
        return {
            kind
            for topic, kinds in self._node.get_topic_names_and_types()
            if topic == self.topic
            for kind in kinds
        }

    def _profile(self) -> QoSProfile:
        return qos.image_input(*self._fit)

    def _fitting(self) -> Quality:
        offered = highest_offered([each for each in self._publishers if each.type == self.type])
        reliability, durability, depth = self._quality
        return Quality(
            offered[0] if reliability == "auto" else reliability,
            offered[1] if durability == "auto" else durability,
            depth,
        )

    def _on_lost(self, count: int) -> None:
        self.lost += count

    def _unmatched_yet_unknown(self) -> list[diagnosis.Finding]:
        """Return the mismatch of a publisher that the graph does not list yet."""
        if not self._mismatch.is_recent:  # there was none, or that publisher has gone
            return []
        what = f"a publisher of {self.topic} is not received"
        remedy = qos_remedy(self._mismatch.policy.lower())
        return [diagnosis.Finding(diagnosis.ERROR, "image", what, remedy)]
