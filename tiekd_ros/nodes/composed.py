"""depth_node and companion_node in one process, which takes one Python and one torch, not two."""

from __future__ import annotations

from collections.abc import Sequence

from tiekd_ros.nodes.common.run import run_nodes
from tiekd_ros.nodes.companion.node import CompanionNode
from tiekd_ros.nodes.depth.node import DepthNode


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both nodes (`ros2 run tiekd_ros tiekd_nodes`).

    A remapping such as `-r depth_node:__node:=eye` and a key such as `/**/depth_node:` in a file
    of parameters name the node that they are for; without a name they are for both.
    """
    return run_nodes([DepthNode, CompanionNode], arguments)
