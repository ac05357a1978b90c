"""The programs `depth_node`, `companion_node`, `tiekd_nodes` and `camera_node` of an installation.

`python -m tiekd_ros.nodes.programs depth_node --ros-args ...` runs one where nothing is installed.

A node's imports take seconds. Ctrl-C in that time, when nothing is open yet, ends its program at
once and without a traceback; once the nodes are imported, `run_nodes` sees to it.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from types import FrameType

PROGRAMS = {
    "depth_node": ("tiekd_ros.nodes.depth.node:DepthNode",),
    "companion_node": ("tiekd_ros.nodes.companion.node:CompanionNode",),
    "tiekd_nodes": (
        "tiekd_ros.nodes.depth.node:DepthNode",
        "tiekd_ros.nodes.companion.node:CompanionNode",
    ),
    "camera_node": ("tiekd_ros.nodes.camera.node:CameraNode",),
}
"""The nodes that each program runs in its process, as module:class."""


def depth_node() -> int:
    """Run depth_node."""
    return _run("depth_node")


def companion_node() -> int:
    """Run companion_node."""
    return _run("companion_node")


def tiekd_nodes() -> int:
    """Run depth_node and companion_node in one process: one Python and one torch, not two.

    A remapping such as `-r depth_node:__node:=eye` and a key such as `/**/depth_node:` in a file
    of parameters name the node that they are for; without a name they are for both.
    """
    return _run("tiekd_nodes")


def camera_node() -> int:
    """Run camera_node."""
    return _run("camera_node")


def _run(program: str) -> int:
    usual = signal.getsignal(signal.SIGINT)
    if usual is not signal.SIG_IGN:  # as it is for what a script starts with &
        signal.signal(signal.SIGINT, _end)
    nodes = []
    for place in PROGRAMS[program]:
        module, name = place.split(":")
        nodes.append(getattr(importlib.import_module(module), name))
    from tiekd_ros.nodes.common.run import run_nodes

    signal.signal(signal.SIGINT, usual)
    return run_nodes(nodes, None)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(0)  # not an exception: half of an imported library may swallow it, or tell of it


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in PROGRAMS:
        sys.exit(
            f"usage: python -m tiekd_ros.nodes.programs {{{','.join(PROGRAMS)}}} [--ros-args ...]"
        )
    del sys.argv[0]
    sys.exit(_run(sys.argv[0]))
