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


def image_input(reliability: str) -> QoSProfile:
    """Return the profile of image subscriptions: `best_effort` (sensor data) or `reliable`."""
    chosen = ReliabilityPolicy.RELIABLE
    if reliability == "best_effort":
        chosen = ReliabilityPolicy.BEST_EFFORT
    # Five, not one: the one-slot mailbox behind it drops what is stale, and counts it; what the
    # middleware overwrites nobody counts.
    return QoSProfile(depth=5, history=HistoryPolicy.KEEP_LAST, reliability=chosen)
