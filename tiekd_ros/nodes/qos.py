"""Quality-of-service profiles of this package's topics."""

from __future__ import annotations

from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSProfile,
    ReliabilityPolicy,
)

LATCHED = QoSProfile(
    depth=1,
    history=HistoryPolicy.KEEP_LAST,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
"""State that late joiners must see: the student's version, the round's status."""

RELIABLE = QoSProfile(
    depth=2, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.RELIABLE
)
"""Outputs: reliable serves every subscriber; shallow, since a stale depth image is useless."""


def image_input(reliability: str, durability: str = "volatile", depth: int = 5) -> QoSProfile:
    """Return the profile of a subscription to the camera.

    Args:
        reliability: `best_effort` (as sensor data) or `reliable`.
        durability: `volatile` or `transient_local`.
        depth: messages kept. Not 1: the one-slot mailbox behind it drops what is stale, and
            counts it; what the middleware overwrites nobody counts.
    """
    return QoSProfile(
        depth=depth,
        history=HistoryPolicy.KEEP_LAST,
        reliability=ReliabilityPolicy[reliability.upper()],
        durability=DurabilityPolicy[durability.upper()],
    )


def output(reliability: str, depth: int) -> QoSProfile:
    """Return the profile of what depth_node publishes.

    Args:
        reliability: `reliable` or `best_effort`.
        depth: messages kept for a reliable subscriber that is slow.
    """
    return QoSProfile(
        depth=depth,
        history=HistoryPolicy.KEEP_LAST,
        reliability=ReliabilityPolicy[reliability.upper()],
    )
