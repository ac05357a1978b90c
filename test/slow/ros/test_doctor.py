"""`tiekd doctor` before situations that are really broken, and after its remedies were applied.

Slow, since the doctor looks for seconds, and mostly twice.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from typer.testing import CliRunner

from helpers.students import small_student
from ros_helpers.doctor import depth_node, errors, examined, only
from ros_helpers.drivers import BEST_EFFORT, Driver, camera
from ros_helpers.messages import camera_info, image_message
from ros_helpers.processes import Processes
from tiekd_ros.cli.__main__ import app
from tiekd_ros.core.state import StateFolder
from tiekd_ros.diagnosis.facts import ERROR, OK
from tiekd_ros.student.registry import StudentRegistry


@pytest.fixture
def live(state: StateFolder, promoted: str) -> StateFolder:
    """A state folder with a live student."""
    return state


def test_robots_that_give_all_names_of_their_own_are_healthy(live, namespace, processes):
    with camera(namespace):
        for side in ("front", "rear"):
            names = (
                f"__node:={side}_depth",
                f"depth:={namespace}/{side}/range",
                "confidence:=sure",
            )
            node = processes.node("depth_node", *names, state_dir=str(live.root), device="cpu")
            node.await_output("is live")
        found_by_itself = examined(namespace)
        asked = examined(namespace, depth_topic=f"{namespace}/rear/range")
    for result, side in ((found_by_itself, "front"), (asked, "rear")):
        assert not errors(result)
        topic = f"{namespace}/{side}/range"
        assert f"{topic} (Image, reliable, volatile): " in only(result, "depth", OK).what
        assert f"{namespace}/{side}_depth is active" in only(result, "depth_node", OK).what
        assert str(live.root) in only(result, "state", OK).what
        assert result.depth_topic == topic


def test_a_program_too_busy_to_be_discovered_is_waited_for(live, namespace, processes: Processes):
    node = processes.node("depth_node", state_dir=str(live.root), device="cpu")
    with camera(namespace):
        node.await_output("is live")
        os.kill(node.pid, signal.SIGSTOP)
        waited_for = []

        def say(what: str) -> None:
            waited_for.append(what)
            if "more of this machine's programs" in what:
                os.kill(node.pid, signal.SIGCONT)

        result = examined(namespace, say)
    assert any("more of this machine's programs" in what for what in waited_for), waited_for
    assert not errors(result)
    assert result.depth_flows


def test_a_program_that_is_never_discovered_makes_nothing_certain(live, namespace):
    with camera(namespace), mute_program():
        nowhere = f"{namespace}/nowhere"
        result = examined(namespace, state=str(live.root), image_topic=nowhere)
    finding = only(result, "ros", ERROR)
    assert "a program with ROS of this domain that could not be discovered" in finding.what
    what = only(result, "depth_node", ERROR).what
    assert f"{namespace}/depth_node was not discovered within" in what
    assert f"no publisher of {nowhere} was discovered" in only(result, "image", ERROR).what


@contextmanager
def mute_program() -> Iterator[None]:
    """Hold the ports of a program with ROS of this domain, and say nothing on them."""
    first = 7400 + 250 * int(os.environ["ROS_DOMAIN_ID"]) + 10 + 2 * 60
    with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket(type=socket.SOCK_DGRAM) as two:
        one.bind(("127.0.0.1", first))
        two.bind(("127.0.0.1", first + 1))
        yield


def test_a_camera_on_another_topic_is_named_and_its_remedy_holds(
    live, namespace, processes: Processes
):
    messages = {"front/image": image_message, "front/camera_info": camera_info}
    at = f"image_info:={namespace}/front/camera_info"
    own = {"state_dir": str(live.root), "device": "cpu"}
    with Driver(namespace, messages):
        first = processes.node("depth_node", f"image:={namespace}/nowhere", at, **own)
        first.await_output("is live")
        result = examined(namespace)
        finding = only(result, "image", ERROR)
        assert f"no node publishes {namespace}/nowhere" in finding.what
        assert not result.depth_flows
        assert only(result, "depth", ERROR).remedy == "fix what is marked above"
        remapping = re.search(r"remap (image:=\S+)", finding.remedy)
        assert remapping, finding
        first.stop()
        processes.node("depth_node", remapping[1], at, **own).await_output("is live")
        result = examined(namespace)
    assert not errors(result)
    assert result.depth_flows


def test_a_best_effort_camera_is_not_received_by_a_reliable_node(live, namespace):
    with camera(namespace, reliability=BEST_EFFORT):
        with depth_node(namespace, live, input_reliability="reliable"):
            result = examined(namespace)
        finding = only(result, "image", ERROR)
        assert "offers best_effort, reliable is requested" in finding.what
        assert not result.depth_flows
        remedy = re.search(r"set input_reliability to (\w+)", finding.remedy)
        assert remedy, finding
        with depth_node(namespace, live, input_reliability=remedy[1]):
            result = examined(namespace)
    assert not errors(result)
    assert result.depth_flows


def test_a_student_that_waits_to_be_promoted(state, namespace):
    StudentRegistry(state.students).add(small_student())
    with camera(namespace):
        with depth_node(namespace, state):
            result = examined(namespace)
        finding = only(result, "student", ERROR)
        assert not result.depth_flows
        assert finding.remedy.startswith("tiekd students promote 000001")
        done = CliRunner().invoke(app, shlex.split(finding.remedy)[1:])
        assert done.exit_code == 0, done.output
        with depth_node(namespace, state):
            result = examined(namespace)
    assert not errors(result)
