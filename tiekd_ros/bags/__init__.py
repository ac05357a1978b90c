"""Bags (rosbag2 in SQLite or MCAP, ROS 1): their images into the frame log, and back out of it.

Nothing here needs ROS. Files are read by `rosbags` where they are sound, and as far as they are
whole where they are not. The other modules of this folder import rosbags, so call
`require_rosbags` before they are imported.
"""

from __future__ import annotations

import importlib.util

from tiekd_ros.core.errors import TiekdError


def require_rosbags() -> None:
    """Raise TiekdError, saying how to install it, where the library for bags is missing."""
    if importlib.util.find_spec("rosbags") is None:
        raise TiekdError(
            'bags are read and written by rosbags, which is not installed: pip install "rosbags", '
            'or tiekd_ros with its extra: pip install "tiekd_ros[bags]"'
        )
