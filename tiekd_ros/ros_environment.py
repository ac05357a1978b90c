"""What the environment of ROS processes needs; imports no ROS."""

from __future__ import annotations

import importlib.util
import os
import secrets
import sys

from tiekd_ros.errors import TiekdError

TRANSPORTS = "LARGE_DATA?max_msg_size=2MB&sockets_size=4MB&non_blocking=true"
"""Fast DDS loses most camera images between processes with its default transports."""


def require_ros() -> None:
    """Raise TiekdError, with the way out, where Python finds no ROS 2."""
    if importlib.util.find_spec("rclpy") is None:
        raise TiekdError(
            "ROS 2 is not to be found (no module rclpy): source your installation "
            "(source /opt/ros/$ROS_DISTRO/setup.bash), or install the wheels: "
            'pip install "tiekd_ros[ros]"'
        )


def prepare_environment() -> None:
    """Set what ROS needs in this process and its children; the user's own settings win."""
    os.environ.setdefault("FASTDDS_BUILTIN_TRANSPORTS", TRANSPORTS)
    os.environ.setdefault("AMENT_PREFIX_PATH", sys.prefix)


def isolate() -> int:
    """Keep this process and its children to this machine, in a domain of their own.

    Returns:
        The domain's number; a ROS_DOMAIN_ID that the user set is kept.
    """
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    return int(os.environ.setdefault("ROS_DOMAIN_ID", str(secrets.randbelow(101) + 1)))
