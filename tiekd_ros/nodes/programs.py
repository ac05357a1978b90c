"""The programs `depth_node`, `companion_node`, `tiekd_nodes` and `camera_node` of an installation.

`python -m tiekd_ros.nodes.programs depth_node --ros-args ...` runs one where nothing is installed.

A node's imports take seconds. Ctrl-C in that time, when nothing is open yet, ends its program at
once and without a traceback; once the node is imported, `run.py` sees to it.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from types import FrameType

MODULES = {
    "depth_node": "tiekd_ros.nodes.depth.node",
    "companion_node": "tiekd_ros.nodes.companion.node",
    "tiekd_nodes": "tiekd_ros.nodes.composed",
    "camera_node": "tiekd_ros.nodes.camera.node",
}


def depth_node() -> int:
    """Run depth_node."""
    return _run("depth_node")


def companion_node() -> int:
    """Run companion_node."""
    return _run("companion_node")


def tiekd_nodes() -> int:
    """Run depth_node and companion_node in one process."""
    return _run("tiekd_nodes")


def camera_node() -> int:
    """Run camera_node."""
    return _run("camera_node")


def _run(program: str) -> int:
    usual = signal.getsignal(signal.SIGINT)
    if usual is not signal.SIG_IGN:  # as it is for what a script starts with &
        signal.signal(signal.SIGINT, _end)
    main = importlib.import_module(MODULES[program]).main
    signal.signal(signal.SIGINT, usual)
    status: int = main()
    return status


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(0)  # not an exception: half of an imported library may swallow it, or tell of it


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in MODULES:
        sys.exit(
            f"usage: python -m tiekd_ros.nodes.programs {{{','.join(MODULES)}}} [--ros-args ...]"
        )
    del sys.argv[0]
    sys.exit(_run(sys.argv[0]))
