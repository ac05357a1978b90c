"""Bags (rosbag2 in SQLite or MCAP, ROS 1): their images into the frame log, and back out of it.

Nothing here needs ROS. Sound files are read by `rosbags`, damaged ones as far as they are whole.
The other modules of this folder import rosbags, so call `require_rosbags` before they are imported.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tiekd_ros.core.errors import TiekdError

CDR = "cdr"
"""Serialisation of ROS 2."""
ROS1 = "ros1"
"""Serialisation of ROS 1."""


class BagError(TiekdError):
    """A bag that cannot be read or written; the message says what there is and what would do."""


@dataclass(frozen=True)
class Topic:
    """One topic of a bag."""

    name: str
    type: str
    """With its package and 'msg', as in 'sensor_msgs/msg/Image'."""
    encoding: str
    """CDR, ROS1, or what else a recorder wrote (protobuf, json)."""
    count: int
    """Number of messages."""

    def __str__(self) -> str:
        return f"{self.name} ({self.type}, {self.count} messages)"


class Message(NamedTuple):
    """One message, as it was recorded."""

    topic: str
    log_ns: int
    """Time of its recording, nanoseconds."""
    data: bytes
    file: int = 0
    """Number of the bag's file that holds it, from 0."""


class Storage(Protocol):
    """One file of a bag."""

    topics: list[Topic]
    notes: list[str]
    """Oddities of the file, for people; more may come while it is read."""
    span_ns: tuple[int, int] | None
    """Recording times of its first and last message; None where it has none."""

    def messages(self, names: Collection[str]) -> Iterator[Message]:
        """Yield the messages of these topics in the order of their recording."""

    def close(self) -> None:
        """Close the file."""


def full_type(name: str) -> str:
    """Return a message type with its 'msg', which ROS 1 and some recorders leave out."""
    parts = name.split("/")
    return f"{parts[0]}/msg/{parts[1]}" if len(parts) == 2 else name


def require_rosbags() -> None:
    """Raise TiekdError, saying how to install it, where the library for bags is missing."""
    if importlib.util.find_spec("rosbags") is None:
        raise TiekdError(
            'bags are read and written by rosbags, which is not installed: pip install "rosbags", '
            'or tiekd_ros with its extra: pip install "tiekd_ros[bags]"'
        )
