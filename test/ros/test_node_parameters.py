"""Parameters: a bad value is refused with its reason, at the start and while running."""

from __future__ import annotations

from pathlib import Path

import pytest
import rclpy
import yaml
from diagnostic_msgs.msg import DiagnosticStatus
from rcl_interfaces.msg import ParameterType
from rcl_interfaces.srv import DescribeParameters
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions

from ros_helpers.companion import logging_companion
from ros_helpers.messages import image_message
from ros_helpers.peer import UNCONFIGURED, Peer, refusal, running
from ros_helpers.processes import Processes
from tiekd_ros.core.launch_options import full_name, sections, takes
from tiekd_ros.core.state import StateFolder
from tiekd_ros.core.supervisor import node_command
from tiekd_ros.nodes.common.managed import ManagedNode
from tiekd_ros.nodes.companion.node import CompanionNode
from tiekd_ros.nodes.depth.node import DepthNode

NODE = "depth_node"


@pytest.mark.usefixtures("depth_node")
def test_the_encoding_may_change_while_running(peer: Peer) -> None:
    assert peer.depth_of(image_message(1)).encoding == "32FC1"
    assert peer.set_parameter(NODE, "encoding", "16UC1").successful
    assert peer.depth_of(image_message(2)).encoding == "16UC1"


def test_a_bad_value_is_refused_with_its_reason(peer: Peer, depth_node: DepthNode) -> None:
    before = depth_node.settings
    for name, value, reason in (
        ("encoding", "64FC1", "'32FC1', '16UC1'"),
        ("min_confidence", 1.5, "min_confidence"),
        ("min_range_m", float("nan"), "min_range_m"),
        ("min_range_m", "near", "parameter type"),
        ("state_dir", "other", "read-only"),
        ("device", "cuda", "read-only"),
        ("max_range", 5.0, "max_range (did you mean max_range_m?)"),
    ):
        result = peer.set_parameter(NODE, name, value)
        assert not result.successful, name
        assert reason in result.reason
    assert depth_node.settings == before
    assert peer.depth_of(image_message()).encoding == "32FC1"


@pytest.mark.usefixtures("depth_node")
def test_a_range_without_depth_is_refused(peer: Peer) -> None:
    assert peer.set_parameter(NODE, "min_range_m", 3.0).successful
    result = peer.set_parameter(NODE, "max_range_m", 2.0)
    assert not result.successful
    assert "max_range_m must be greater than min_range_m = 3 m" in result.reason


def test_a_whole_number_does_for_a_float(peer: Peer, depth_node: DepthNode) -> None:
    for value in (5, 6.0):
        assert peer.set_parameter(NODE, "max_range_m", value).successful
        assert depth_node.settings.max_range_m == float(value)
        stored = depth_node.get_parameter("max_range_m")
        assert stored.type_ == Parameter.Type.DOUBLE
    assert not peer.set_parameter(NODE, "max_range_m", -1).successful
    assert not peer.set_parameter(NODE, "max_range_m", True).successful


def test_a_bad_value_at_the_start_is_refused_by_name(peer: Peer) -> None:
    for name, value in (
        ("encoding", "64FC1"),
        ("threads", -1),
        ("min_range_m", "near"),
        ("min_confidence", 2.0),
    ):
        assert name in refusal(DepthNode, peer, **{name: value})
    contradicting = {"labels__retry_s": 10.0, "labels__max_retry_s": 1.0}
    said = refusal(CompanionNode, peer, **contradicting)
    assert "labels.max_retry_s 1 must be at least retry_s 10" in said


def test_a_whole_number_does_for_a_float_at_the_start(peer: Peer) -> None:
    with running(DepthNode, peer, until=UNCONFIGURED, max_range_m=7) as node:
        assert node.settings.max_range_m == 7.0
        assert node.get_parameter("max_range_m").type_ == Parameter.Type.DOUBLE


def test_an_unknown_name_is_reported_with_the_nearest_one(peer: Peer) -> None:
    given = {
        "max_rnge_m": 5.0,
        "jpeg_quality": 90,  # the companion has it, in a group
        "frames__min_interval_s": 1.0,  # the companion's, as in a file for all nodes
        "source": "synthetic",  # the camera's
        "qos_overrides.nothing": "x",
    }
    with running(DepthNode, peer, until=UNCONFIGURED, **given):
        said = peer.await_diagnosis(NODE, "max_rnge_m", DiagnosticStatus.WARN).message
    assert "unknown parameter max_rnge_m is ignored; did you mean max_range_m?" in said
    assert "unknown parameter jpeg_quality is ignored" in said
    assert said.count("unknown parameter") == 2


def test_what_is_another_nodes_is_noted_and_no_fault(
    peer: Peer, capfd: pytest.CaptureFixture[str]
) -> None:
    given = {"frames__max_bytes_mb": 512, "source": "synthetic", "state_dir": ""}
    with running(DepthNode, peer, until=UNCONFIGURED, **given):
        peer.await_diagnosis(NODE, "not configured", DiagnosticStatus.WARN)
        said = peer.diagnosis(NODE).message
    assert "frames" not in said
    noted = "frames.max_bytes_mb (companion_node), source (camera_node)"
    assert noted in capfd.readouterr().err


@pytest.mark.parametrize("kind", [DepthNode, CompanionNode])
def test_quality_of_service_that_is_set_in_vain_is_told_with_what_would_do(
    peer: Peer, state: StateFolder, kind: type[ManagedNode]
) -> None:
    topics = {DepthNode: ("publisher", "depth"), CompanionNode: ("subscription", "image")}
    entity, topic = topics[kind]
    vain = f"qos_overrides.{peer.namespace}/{topic}.{entity}.reliability"
    given = {
        vain: "best_effort",
        f"qos_overrides.{peer.namespace}/elsewhere.publisher.depth": 3,  # another node's
        "qos_overrides./clock.subscription.depth": 3,
        "qos_overrides./rosout.publisher.depth": 3,
    }
    with running(kind, peer, state_dir=str(state.root), **given) as node:
        text = f"parameter {vain} has no effect: use input_reliability"
        said = peer.await_diagnosis(node.get_name(), text, DiagnosticStatus.WARN).message
    assert said.count("has no effect") == 1, said


def test_a_file_for_all_nodes_is_taken_by_each(
    peer: Peer, processes: Processes, tmp_path: Path
) -> None:
    file = tmp_path / "all.yaml"
    values = {"autostart": False, "max_range_m": 6, "frames": {"min_interval_s": 2}, "min_rage": 1}
    file.write_text(yaml.safe_dump({"/**": {"ros__parameters": values}}))
    programs = {}
    for name in (NODE, "companion_node"):
        command = [*node_command(name, ["-r", f"__ns:={peer.namespace}"]), "--params-file", file]
        programs[name] = processes.start(name, [str(word) for word in command])
    for name, process in programs.items():
        said = peer.await_diagnosis(name, "unknown parameter", DiagnosticStatus.WARN).message
        assert said.count("unknown parameter") == 1, said
        process.await_output("unknown parameter min_rage is ignored")
        assert process.stop() == 0, process.output


@pytest.mark.parametrize("kind", [DepthNode, CompanionNode])
def test_every_parameter_is_described_and_every_number_has_a_range(
    peer: Peer, kind: type[ManagedNode]
) -> None:
    with running(kind, peer, until=UNCONFIGURED) as node:
        settings = node.parameters.names()
        request = DescribeParameters.Request(names=settings)
        answer = peer.ask(DescribeParameters, f"{node.get_name()}/describe_parameters", request)
    for descriptor in answer.descriptors:
        assert len(descriptor.description) > 8, descriptor.name
        limits = [*descriptor.integer_range, *descriptor.floating_point_range]
        if descriptor.type in (ParameterType.PARAMETER_INTEGER, ParameterType.PARAMETER_DOUBLE):
            assert limits, descriptor.name


def test_the_next_rounds_settings_may_change_while_running_and_a_bad_value_is_refused(
    peer: Peer, state: StateFolder
) -> None:
    with logging_companion(peer, state):
        assert peer.set_parameter("companion_node", "distill.min_frames", 7).successful
        _, message = peer.trigger("distill")
        assert "need 7" in message
        for name, value, reason in (
            ("gate.min_gain", -0.5, "gate.min_gain"),
            ("student.spacing", "uneven", "student.spacing must be one of 'uniform', 'log'"),
            ("distill.min_frames", 1.5, "parameter type"),
            ("frames.min_interval_s", 2.0, "read-only"),
            ("labels.in_flight", 3, "read-only"),
            ("teacher.url", "other:8001", "read-only"),
        ):
            result = peer.set_parameter("companion_node", name, value)
            assert not result.successful, name
            assert reason in result.reason


# Which sections of a file of parameters a node takes: as rclpy itself does.


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
