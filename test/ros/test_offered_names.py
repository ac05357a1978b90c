"""What config/ says of topics and services, compared with the graph of the running nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase

import pytest
from rclpy.node import Node

from helpers.views import OPERATOR, Profile, foxglove_names, profiles, rviz_topics
from ros_helpers.peer import Peer
from ros_helpers.processes import Processes
from ros_helpers.waiting import wait_for
from tiekd_ros.core.state import StateFolder

NAMESPACE = "/tiekd"  # the files name what depth.launch.py starts, so this does too
NODES = ("depth_node", "companion_node", "camera_node")
INPUT = ("image:=/camera/image_raw", "image_info:=/camera/camera_info")
CAMERA = ("image_raw:=/camera/image_raw", "camera_info:=/camera/camera_info")


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Profile]]:
    """What each node publishes, subscribes to and offers, by its name."""
    folder = tmp_path_factory.mktemp("offered")
    own = {"state_dir": str(StateFolder(folder / "state").create().root), "use_sim_time": True}
    with Processes(NAMESPACE, folder) as processes, Peer(NAMESPACE) as peer:
        processes.node("camera_node", *CAMERA, use_sim_time=True, width=64, height=48)
        processes.node("depth_node", *INPUT, **own, image_transport="compressed")
        processes.node("companion_node", *INPUT, **own, teacher__url="", log_confidence=True)
        for name in ("depth_node", "companion_node"):
            peer.await_active(name)
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


def may(allowed: set[str], names: set[str]) -> set[str]:
    """Return the names that no pattern allows."""
    return {name for name in names if not any(fnmatchcase(name, each) for each in allowed)}


@pytest.mark.parametrize("name", NODES)
def test_the_security_policy_allows_all_that_a_node_does(
    used: Mapping[str, Profile], name: str
) -> None:
    allowed, does = profiles()[f"{NAMESPACE}/{name}"], used[name]
    assert may(allowed.publish, does.publish) == set()
    assert may(allowed.subscribe, does.subscribe) == set()
    assert may(allowed.reply, does.reply) == set()
    assert may(allowed.request, does.request) == set()


def test_the_security_policy_lets_people_hear_and_ask_all_nodes(
    used: Mapping[str, Profile],
) -> None:
    allowed = profiles()[f"{NAMESPACE}/{OPERATOR}"]
    for does in used.values():
        assert may(allowed.subscribe, does.publish) == set()
        assert may(allowed.request, does.reply) == set()
    assert {"/tf", "/tf_static"} <= allowed.subscribe  # RViz asks for them whatever it shows


def test_the_security_policy_allows_nothing_that_no_node_does(
    used: Mapping[str, Profile],
) -> None:
    # Raw and compressed images are alternatives, and a node hears of parameters if asked to.
    optional = {"/camera/image_raw", "/camera/image_raw/compressed", "/parameter_events"}
    # New since Iron.
    optional |= {f"{NAMESPACE}/{name}/get_type_description" for name in NODES}
    for name, does in used.items():
        allowed = profiles()[f"{NAMESPACE}/{name}"]
        assert allowed.publish - does.publish - optional == set()
        assert allowed.subscribe - does.subscribe - optional == set()
        assert allowed.reply - does.reply - optional == set()


def test_no_node_has_a_transform_of_its_own(used: Mapping[str, Profile]) -> None:
    for does in used.values():
        assert not {"/tf", "/tf_static"} & (does.publish | does.subscribe)


def test_names_are_in_the_nodes_namespace_or_remapped_or_everybodys(
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


def test_a_name_that_is_not_allowed_is_found() -> None:
    assert may({"/tiekd/*", "/rosout"}, {"/tiekd/depth", "/rosout", "/other"}) == {"/other"}
