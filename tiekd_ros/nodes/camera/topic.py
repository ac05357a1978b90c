"""One topic of the camera: subscribed in the quality that fits, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from rclpy.node import Node
from rclpy.qos import (
    DurabilityPolicy,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
)
from sensor_msgs.msg import CompressedImage, Image

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.nodes.common import qos
from tiekd_ros.nodes.common.qos import Mismatch, node_name, subscribe, type_name
from tiekd_ros.nodes.common.reporting import ERROR, WARN

Finding = tuple[bytes, str]


class Quality(NamedTuple):
    """The quality of service that is asked for; `auto` = what every publisher offers."""

    reliability: str
    durability: str
    depth: int


class CameraTopic:
    """A subscription that is made anew when the publishers turn out to offer another quality.

    A best-effort subscription receives from every camera, but large images get lost on a busy
    machine; a reliable one loses none, but hears nothing of a best-effort camera. With `auto`
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
        self._publishers = self._look()
        self._fit = self._fitting()
        self._subscription = self._subscribe()

    @property
    def quality(self) -> str:
        """The quality that is asked for at present, in words."""
        return f"{self._fit.reliability}, {self._fit.durability}, depth {self._fit.depth}"

    @property
    def publishers(self) -> list[str]:
        """The nodes that publish what can be received, once for each publisher."""
        return [node_name(info) for info in self._publishers if self._is_right(info)]

    def check(self) -> None:
        """Look who publishes, and make the subscription anew if they offer another quality."""
        self._publishers = self._look()
        fit = self._fitting()
        if fit != self._fit:
            self.close()
            self._fit, self._mismatch = fit, Mismatch()
            self._subscription = self._subscribe()

    def findings(self) -> list[Finding]:
        """Say which publishers are not heard, and whether there are several."""
        return [*self._wrong_types(), *self._mismatches(), *self._several()]

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

    def _look(self) -> list[Any]:
        return list(self._node.get_publishers_info_by_topic(self.topic))

    def _is_right(self, info: Any) -> bool:
        return bool(info.topic_type == self.type)

    def _fitting(self) -> Quality:
        offers = [info.qos_profile for info in self._publishers if self._is_right(info)]
        reliability, durability, depth = self._quality
        if reliability == "auto":
            reliable = {o.reliability for o in offers} == {ReliabilityPolicy.RELIABLE}
            reliability = "reliable" if reliable else "best_effort"
        if durability == "auto":
            latched = {o.durability for o in offers} == {DurabilityPolicy.TRANSIENT_LOCAL}
            durability = "transient_local" if latched else "volatile"
        return Quality(reliability, durability, depth)

    def _on_lost(self, count: int) -> None:
        self.lost += count

    def _mismatches(self) -> list[Finding]:
        """Say which publishers offer less than is asked for, as long as they do."""
        right = [info for info in self._publishers if self._is_right(info)]
        unheard = [info for info in right if not self._fits(info)]
        if not unheard:
            if not self._mismatch.is_recent:  # there was none, or whoever it was has gone
                return []
            remedy = _remedy(self._mismatch.policy)
            return [(ERROR, f"a publisher of {self.topic} is not heard: {remedy}")]
        level = ERROR if len(unheard) == len(right) else WARN
        return [
            (level, f"{node_name(info)} publishes {self.topic}, but is not heard: {text}")
            for info in unheard
            for text in self._reasons(info.qos_profile)
        ]

    def _fits(self, info: Any) -> bool:
        fit, _ = qos_check_compatible(info.qos_profile, self._profile())
        return bool(fit != QoSCompatibility.ERROR)

    def _reasons(self, offer: QoSProfile) -> list[str]:
        fit, reasons = self._fit, []
        if fit.reliability == "reliable" and offer.reliability == ReliabilityPolicy.BEST_EFFORT:
            reasons.append(f"it offers best_effort, {_remedy('RELIABILITY')}")
        if fit.durability == "transient_local" and offer.durability == DurabilityPolicy.VOLATILE:
            reasons.append(f"it offers volatile, {_remedy('DURABILITY')}")
        return reasons or [_remedy("")]

    def _wrong_types(self) -> list[Finding]:
        wrong = {i.topic_type: node_name(i) for i in self._publishers if not self._is_right(i)}
        level = WARN if self.publishers else ERROR
        return [
            (
                level,
                f"{who} publishes {self.topic} as {kind}, not as {self.type}; {self._way(kind)}",
            )
            for kind, who in wrong.items()
        ]

    def _way(self, kind: str) -> str:
        if kind == type_name(CompressedImage):
            return (
                "set image_transport to compressed"
                if self.topic.endswith("/compressed")
                else f"set image_transport to compressed and remap image/compressed:={self.topic}"
            )
        if kind == type_name(Image):
            return f"set image_transport to raw and remap image:={self.topic}"
        return "remap the topic, or stop that publisher"

    def _several(self) -> list[Finding]:
        names = self.publishers
        if len(names) < 2:
            return []
        return [
            (
                WARN,
                f"{len(names)} publishers of {self.topic} ({', '.join(sorted(names))}): what they "
                "send is mixed up; stop all but one, or remap them (a camera each, with a "
                "namespace each)",
            )
        ]


def _remedy(policy: str) -> str:
    if policy == "RELIABILITY":
        return "reliable is asked for; set input_reliability to auto or best_effort"
    if policy == "DURABILITY":
        return "transient_local is asked for; set input_durability to auto or volatile"
    return "its quality of service does not fit; publish with the sensor data profile"
