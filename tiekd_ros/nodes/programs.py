"""The programs `depth_node`, `companion_node`, `tiekd_nodes` and `camera_node` of an installation.

A node's imports take seconds. Ctrl-C in that time, when nothing is open yet, ends its program at
once and without a traceback; once the node is imported, `run.py` sees to it.
"""

from __future__ import annotations

import importlib
import os
import signal
from types import FrameType


def depth_node() -> int:
    """Run depth_node."""
    return _run("depth_node")


def companion_node() -> int:
    """Run companion_node."""
    return _run("companion_node")


def tiekd_nodes() -> int:
    """Run depth_node and companion_node in one process."""
    return _run("composed")


def camera_node() -> int:
    """Run camera_node."""
    return _run("camera_node")


def _run(module: str) -> int:
    usual = signal.getsignal(signal.SIGINT)
    if usual is not signal.SIG_IGN:  # as it is for what a script starts with &
        signal.signal(signal.SIGINT, _end)
    main = importlib.import_module(f"tiekd_ros.nodes.{module}").main
    signal.signal(signal.SIGINT, usual)
    status: int = main()
    return status


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(0)  # not an exception: half of an imported library may swallow it, or tell of it
