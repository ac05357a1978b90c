"""A camera's topic: a subscription in the quality that its publishers offer, and its faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from rclpy.node import Node

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.diagnosis import facts as diagnosis
from tiekd_ros.diagnosis.camera import (
    COMPRESSED,
    NO_IMAGES_REMEDY,
    missing_image_remedy,
    missing_info_remedy,
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
    published_topics,
    publishers_of,
    subscribe,
    type_name,
)
from tiekd_ros.nodes.common.reporting import Finding, as_reported

_OWN_OUTPUTS = ("depth", "depth/preview", "confidence")


class Quality(NamedTuple):
    """The quality of service that is asked for; `auto` = what every publisher offers."""

    reliability: str
    durability: str
    depth: int


class CameraTopic:
    """A subscription that is renewed when the publishers turn out to offer another quality.

    A best-effort subscription receives from every camera, but large images get lost on a busy
    machine; a reliable one loses none, but gets nothing from a best-effort camera. With `auto`
    it is reliable as long as every publisher is, and likewise for durability.

    Args:
        node: the subscriber.
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
        """Messages that were lost on the way, as far as the middleware tells."""
        self.type = type_name(kind)
        self._mismatch = Mismatch()
        self._publishers = publishers_of(node, topic)
        self._chosen = self._choose_quality()
        self._subscription = self._subscribe()

    @property
    def quality(self) -> str:
        """The quality that is asked for at present, as text."""
        return f"{self._chosen.reliability}, {self._chosen.durability}, depth {self._chosen.depth}"

    @property
    def publishers(self) -> list[str]:
        """The nodes that publish what can be received, once for each publisher."""
        return [each.node for each in self._publishers if each.type == self.type]

    def check(self) -> None:
        """Find the publishers; renew the subscription if they offer another quality."""
        self._publishers = publishers_of(self._node, self.topic)
        chosen = self._choose_quality()
        if chosen != self._chosen:
            self.close()
            self._chosen, self._mismatch = chosen, Mismatch()
            self._subscription = self._subscribe()

    def findings(self) -> list[Finding]:
        """Return which publishers are not received, and whether there are several."""
        requested = Endpoint("", self.type, self._chosen.reliability, self._chosen.durability)
        unmatched = unmatched_publishers(self.topic, self._publishers, requested)
        return as_reported(
            [
                *wrong_types(self.topic, self._publishers, self.type),
                *(unmatched or self._unmatched_yet_unknown()),
                *several_publishers(self.topic, self._publishers, self.type),
            ]
        )

    def close(self) -> None:
        """End the subscription."""
        self._node.destroy_subscription(self._subscription)

    def _subscribe(self) -> Any:
        try:
            return subscribe(
                self._node,
                self._kind,
                self.topic,
                self._callback,
                qos.profile(*self._chosen),
                on_mismatch=self._mismatch.note,
                on_lost=self._on_lost,
            )
        except RuntimeError as error:  # rclpy's RCLError
            types = dict(self._node.get_topic_names_and_types()).get(self.topic, [])
            others = sorted({*types} - {self.type})
            if not others:
                raise
            raise TiekdError(
                f"{self.topic} cannot be subscribed to as {self.type}, since this process has it "
                f"as {' and '.join(others)}; remap image or image_info, so that each is a topic of "
                "its own type"
            ) from error

    def _choose_quality(self) -> Quality:
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


def compressed_topic(node: Node) -> str:
    """Return the topic of compressed images, by image_transport's rule and what is remapped.

    That is `<image>/compressed`, unless `image/compressed` is remapped itself, or `image` to a
    topic that ends so already.
    """
    own = node.resolve_topic_name("image" + COMPRESSED)
    if own != node.resolve_topic_name("image" + COMPRESSED, only_expand=True):
        return own
    base = node.resolve_topic_name("image")
    return base if base.endswith(COMPRESSED) else base + COMPRESSED


def why_no_image(node: Node, topic: CameraTopic) -> str:
    """Return why no image may have come on a topic, with the remedy."""
    if topic.publishers:
        return f"{topic.publishers[0]} publishes it: {NO_IMAGES_REMEDY}"
    own = {node.resolve_topic_name(name) for name in _OWN_OUTPUTS}
    published = published_topics(node)
    return f"no node publishes it; {missing_image_remedy(topic.topic, topic.type, published, own)}"


def why_no_info(node: Node, topic: CameraTopic, image_topic: str) -> str:
    """Return why no camera_info may have come on a topic, with the remedy."""
    if topic.publishers:
        return f"{topic.publishers[0]} publishes it, but sends none; see its log"
    own = {node.resolve_topic_name("camera_info")}
    return f"no node publishes it; {missing_info_remedy(image_topic, published_topics(node), own)}"


def why_info_stopped(topic: CameraTopic) -> str:
    """Return why camera_info may have stopped on a topic, with the remedy."""
    if topic.publishers:
        return f"{topic.publishers[0]} publishes it, but sends none any more; see its log"
    return "no node publishes it any more; restart the camera's driver"
