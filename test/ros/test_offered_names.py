"""Topics and services in config/, compared with the graph of the running nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from typing import Any

import pytest
from rclpy.node import Node
from rclpy.parameter import Parameter

from helpers.views import OPERATOR, Profile, foxglove_names, profiles, rviz_topics
from ros_helpers.peer import Peer
from ros_helpers.waiting import wait_for
from tiekd_ros.core.state import StateFolder
from tiekd_ros.nodes.camera.node import CameraNode
from tiekd_ros.nodes.companion.node import CompanionNode
from tiekd_ros.nodes.depth.node import DepthNode

NAMESPACE = "/tiekd"  # the files name what depth.launch.py starts, so this does too
NODES = ("depth_node", "companion_node", "camera_node")
INPUT = ("image:=/camera/image_raw", "image_info:=/camera/camera_info")
CAMERA = ("image_raw:=/camera/image_raw", "camera_info:=/camera/camera_info")


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Profile]]:
    """Each node's topics and services, by its name."""
    folder = tmp_path_factory.mktemp("offered")
    own = {"state_dir": str(StateFolder(folder / "state").create().root), "use_sim_time": True}
    with ExitStack() as stack:
        peer = stack.enter_context(Peer(NAMESPACE))

        def start(kind: Any, remappings: Sequence[str], **parameters: Any) -> Any:
            given = {name.replace("__", "."): value for name, value in parameters.items()}
            return kind(
                namespace=NAMESPACE,
                context=peer.context,
                cli_args=["--ros-args", *(word for each in remappings for word in ("-r", each))],
                parameter_overrides=[Parameter(name, value=v) for name, v in given.items()],
                use_global_arguments=False,
            )

        camera = start(CameraNode, CAMERA, use_sim_time=True, width=64, height=48)
        stack.callback(camera.destroy_node)
        stack.callback(camera.release)
        for kind, parameters in (
            (DepthNode, {"image_transport": "compressed"}),
            (CompanionNode, {"teacher__url": "", "log_confidence": True}),
        ):
            node = start(kind, INPUT, **own, **parameters, autostart=False)
            stack.callback(node.destroy_node)
            stack.callback(node.release)
            node.trigger_configure()
            node.trigger_activate()
        wait_for(lambda: all(_is_whole(peer.node, name) for name in NODES), "the nodes' names")
        yield {name: _used_by(peer.node, name) for name in NODES}


def _used_by(node: Node, name: str) -> Profile:
    def names(ask: str) -> set[str]:
        return {found for found, _ in getattr(node, f"get_{ask}_by_node")(name, NAMESPACE)}

    return Profile(
        NAMESPACE,
        name,
        publish=names("publisher_names_and_types"),
        subscribe=names("subscriber_names_and_types"),
        reply=names("service_names_and_types"),
        request=names("client_names_and_types"),
    )


def _is_whole(node: Node, name: str) -> bool:
    """Discovery brings a node's names one by one: wait for one of each kind."""
    found = _used_by(node, name)
    inputs = {"/clock"} if name == "camera_node" else {"/clock", "/camera/camera_info"}
    outputs = {"/rosout", "/camera/image_raw" if name == "camera_node" else "/diagnostics"}
    services = f"{NAMESPACE}/{name}/set_parameters"
    return inputs <= found.subscribe and outputs <= found.publish and services in found.reply


def forbidden(allowed: set[str], names: set[str]) -> set[str]:
    """Return the names that no pattern allows."""
    return {name for name in names if not any(fnmatchcase(name, each) for each in allowed)}


def test_the_security_policy_allows_all_that_a_node_does(used: Mapping[str, Profile]) -> None:
    for name, does in used.items():
        allowed = profiles()[f"{NAMESPACE}/{name}"]
        for verb in ("publish", "subscribe", "reply", "request"):
            assert forbidden(getattr(allowed, verb), getattr(does, verb)) == set()
    operator = profiles()[f"{NAMESPACE}/{OPERATOR}"]
    for does in used.values():
        assert forbidden(operator.subscribe, does.publish) == set()
        assert forbidden(operator.request, does.reply) == set()
    assert {"/tf", "/tf_static"} <= operator.subscribe  # RViz asks for them whatever it shows
    assert forbidden({"/tiekd/*", "/rosout"}, {"/tiekd/depth", "/rosout", "/other"}) == {"/other"}


def test_the_security_policy_allows_nothing_that_no_node_does(
    used: Mapping[str, Profile],
) -> None:
    # Raw and compressed images are alternatives, and a node subscribes to parameters if asked to.
    optional = {"/camera/image_raw", "/camera/image_raw/compressed", "/parameter_events"}
    # New since Iron.
    optional |= {f"{NAMESPACE}/{name}/get_type_description" for name in NODES}
    for name, does in used.items():
        allowed = profiles()[f"{NAMESPACE}/{name}"]
        for verb in ("publish", "subscribe", "reply"):
            assert getattr(allowed, verb) - getattr(does, verb) - optional == set()


def test_no_node_has_a_transform_of_its_own(used: Mapping[str, Profile]) -> None:
    for does in used.values():
        assert not {"/tf", "/tf_static"} & (does.publish | does.subscribe)


def test_names_are_in_the_nodes_namespace_or_remapped_or_common(
    used: Mapping[str, Profile],
) -> None:
    common = {"/diagnostics", "/rosout", "/parameter_events", "/clock"}
    for does in used.values():
        for name in (does.publish | does.subscribe | does.reply | does.request) - common:
            assert name.startswith((f"{NAMESPACE}/", "/camera/"))


def test_rviz_and_foxglove_show_what_the_nodes_publish(used: Mapping[str, Profile]) -> None:
    published = set().union(*(does.publish for does in used.values()))
    offered = set().union(*(does.reply for does in used.values()))
    topics, services = foxglove_names()
    assert rviz_topics() <= published
    assert topics <= published
    assert services <= offered
