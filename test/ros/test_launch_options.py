"""Which sections of a parameter file a node takes: as rclpy itself does."""

from __future__ import annotations

from pathlib import Path

import pytest
import rclpy
import yaml
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from tiekd_ros.core.launch_options import full_name, sections, takes

NAME = "depth_node"
KEYS = (
    "/**", "/*", "**", "*", "/*/*", "/**/*", "/*/**", "/**/**", "/tiekd", "/tiekd/*", "/tiekd/**",
    "/tiekd/depth_node", "tiekd/depth_node", "/tiekd/deph_node", "/depth_node", "depth_node",
    "/**/depth_node", "/*/depth_node", "*/depth_node", "**/depth_node", "/**/tiekd/depth_node",
    "/tiekd/**/depth_node", "/tiekd/depth_node/**", "/a/tiekd/depth_node", "/**/epth_node",
)  # fmt: skip


def taken(file: Path, namespace: str) -> bool:
    """Say whether a real node in this namespace gets the parameter x from the file."""
    context = rclpy.Context()
    arguments = ["--ros-args", "--params-file", str(file)]
    rclpy.init(context=context, args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    node = Node(
        NAME,
        namespace=namespace,
        context=context,
        enable_rosout=False,
        start_parameter_services=False,
        automatically_declare_parameters_from_overrides=True,
    )
    try:
        return bool(node.has_parameter("x"))
    finally:
        node.destroy_node()
        context.try_shutdown()


@pytest.mark.parametrize("namespace", ["tiekd", "/", "/a/tiekd"])
def test_a_node_takes_the_sections_that_we_say_it_takes(namespace: str, tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    values = {"ros__parameters": {"x": 1}}
    wrong = []
    for section in (*({key: values} for key in KEYS), {"tiekd": {NAME: values}}):
        file.write_text(yaml.safe_dump(section))
        (read,) = sections(file)
        if takes(read, full_name(namespace, NAME)) != taken(file, namespace):
            wrong.append(read)
    assert wrong == []
