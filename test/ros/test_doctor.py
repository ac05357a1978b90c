"""`tiekd doctor` before situations that are really broken, and after its remedies were applied.

Real nodes and cameras; the doctor's own look at ROS is a process of its own, as always.
"""

from __future__ import annotations

import json
import re
import shlex
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import rclpy
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String

from helpers.children import run_python
from helpers.students import small_student
from helpers.teachers import free_port
from ros_helpers.messages import camera_info, image_message
from ros_helpers.peer import ACTIVE, INACTIVE, UNCONFIGURED, Peer, running
from ros_helpers.processes import Processes
from tiekd_ros.doctor.examination import Complaint, Examination, examine
from tiekd_ros.doctor.findings import ERROR, OK, WARN, Finding
from tiekd_ros.nodes.companion_node import CompanionNode
from tiekd_ros.nodes.depth_node import DepthNode
from tiekd_ros.state import StateFolder
from tiekd_ros.student import StudentRegistry

RELIABLE, BEST_EFFORT = ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT
PERIOD_S = 0.05


class Rclpy:
    """A participant of its own, as every program is one: `running` takes it for a peer."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.context = rclpy.Context()

    def __enter__(self) -> Rclpy:
        rclpy.init(context=self.context, args=[], signal_handler_options=SignalHandlerOptions.NO)
        return self

    def __exit__(self, *error: object) -> None:
        self.context.try_shutdown()


class Driver(Rclpy):
    """A program that publishes messages over and over: topics, and how to make each message."""

    def __init__(
        self,
        namespace: str,
        messages: dict[str, Callable[[], Any]],
        reliability: ReliabilityPolicy = RELIABLE,
        name: str = "driver",
    ) -> None:
        super().__init__(namespace)
        self._messages, self._reliability, self._name = messages, reliability, name
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._publish, name="driver")

    def __enter__(self) -> Driver:
        super().__enter__()
        self._node = Node(
            self._name, namespace=self.namespace, context=self.context, use_global_arguments=False
        )
        quality = QoSProfile(depth=5, reliability=self._reliability)
        self._publishers = [
            (self._node.create_publisher(type(make()), topic, quality), make)
            for topic, make in self._messages.items()
        ]
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
        self._node.destroy_node()
        super().__exit__()

    def _publish(self) -> None:
        while not self._end.wait(PERIOD_S):
            stamp = self._node.get_clock().now().to_msg()
            for publisher, make in self._publishers:
                message = make()
                if hasattr(message, "header"):
                    message.header.stamp = stamp
                publisher.publish(message)


def camera(namespace: str, **more: Any) -> Driver:
    """Return a camera that is as it should be."""
    return Driver(namespace, {"image": image_message, "image_info": camera_info}, **more)


@pytest.fixture
def program(namespace: str) -> Iterator[Rclpy]:
    with Rclpy(namespace) as program:
        yield program


@pytest.fixture
def live(state: StateFolder) -> StateFolder:
    """A state folder with a live student."""
    registry = StudentRegistry(state.students)
    registry.promote(registry.add(small_student()).version)
    return state


@pytest.fixture
def ask(namespace: str) -> Callable[..., Examination]:
    def ask(**complaint: Any) -> Examination:
        return examine(Complaint(namespace, seconds=1.0, **complaint), lambda text: None)

    return ask


def found(result: Examination, check: str) -> list[Finding]:
    """Return what was found of one thing; every finding has a remedy unless all is well."""
    assert all(bool(each.remedy) == (each.level != OK) for each in result.findings)
    return [each for each in result.findings if each.check == check]


def errors(result: Examination) -> list[Finding]:
    return [each for each in result.findings if each.level == ERROR]


def only(result: Examination, check: str, level: str) -> Finding:
    """Return the one finding of a check, which has this level."""
    (finding,) = found(result, check)
    assert finding.level == level, finding
    return finding


def depth_node(program: Rclpy, state: StateFolder, **more: Any) -> AbstractContextManager[Any]:
    return running(DepthNode, program, state_dir=str(state.root), device="cpu", **more)


def test_where_depth_flows_it_finds_nothing_wrong(program, live, ask, namespace):
    with camera(namespace), depth_node(program, live):
        result = ask()
    assert not errors(result)
    assert result.depth_flows
    assert result.depth_hz > 0
    assert f"{namespace}/image" in only(result, "image", OK).what
    assert "96x72 rgb8" in only(result, "image", OK).what
    assert "fx 60.0" in only(result, "camera_info", OK).what
    assert "000001 is live" in only(result, "student", OK).what
    assert str(live.root) in only(result, "state", OK).what  # the running node's own
    assert "32FC1" in only(result, "depth", OK).what


@pytest.mark.slow
def test_a_camera_on_another_topic_is_named_and_its_remedy_holds(
    live, ask, namespace, processes: Processes
):
    messages = {"front/image": image_message, "front/camera_info": camera_info}
    at = f"image_info:={namespace}/front/camera_info"
    with Driver(namespace, messages):
        first = processes.node(
            "depth_node", f"image:={namespace}/nowhere", at, state_dir=str(live.root), device="cpu"
        )
        first.await_output("is live")
        result = ask()
        finding = only(result, "image", ERROR)
        assert f"nobody publishes {namespace}/nowhere" in finding.what
        assert not result.depth_flows
        assert only(result, "depth", ERROR).remedy == "mend what is marked above"
        topic = re.search(r"image_topic:=(\S+)", finding.remedy)
        assert topic, finding
        first.stop()
        processes.node(
            "depth_node", f"image:={topic[1]}", at, state_dir=str(live.root), device="cpu"
        ).await_output("is live")
        result = ask()
    assert not errors(result)
    assert result.depth_flows


def test_a_topic_that_the_node_does_not_listen_to_is_told(program, live, ask, namespace):
    with camera(namespace), depth_node(program, live):
        result = ask(image_topic=f"{namespace}/elsewhere")
    what = [each.what for each in found(result, "image")]
    assert what[0] == (f"depth_node listens to {namespace}/image, not to {namespace}/elsewhere")
    assert result.errors


@pytest.mark.slow
def test_a_best_effort_camera_is_not_heard_by_a_reliable_node(program, live, ask, namespace):
    with camera(namespace, reliability=BEST_EFFORT):
        with depth_node(program, live, input_reliability="reliable"):
            result = ask()
        finding = only(result, "image", ERROR)
        assert "best_effort" in finding.what
        assert "input_reliability: reliable" in finding.what
        assert not result.depth_flows
        remedy = re.search(r"input_reliability: (\w+)", finding.remedy)
        assert remedy, finding
        with depth_node(program, live, input_reliability=remedy[1]):
            result = ask()
    assert not errors(result)
    assert result.depth_flows


def test_a_topic_of_the_wrong_type_is_told(program, live, ask, namespace):
    messages = {"image": lambda: String(data="no image"), "image_info": camera_info}
    with Driver(namespace, messages), depth_node(program, live):
        result = ask()
    finding = only(result, "image", ERROR)
    assert "as std_msgs/msg/String, not as sensor_msgs/msg/Image" in finding.what


def test_compressed_images_for_a_node_that_takes_raw_ones(program, live, ask, namespace):
    messages = {"image/compressed": lambda: CompressedImage(format="jpeg")}
    with Driver(namespace, messages), depth_node(program, live):
        finding = only(ask(), "image", ERROR)
    assert "image_transport: compressed" in finding.remedy


def test_two_cameras_on_one_topic(program, live, ask, namespace):
    with camera(namespace), camera(namespace, name="second"), depth_node(program, live):
        result = ask()
    finding = next(each for each in found(result, "image") if each.level == WARN)
    assert f"{namespace}/driver, {namespace}/second" in finding.what


@pytest.mark.slow
def test_an_uncalibrated_camera_until_it_is_calibrated(program, live, ask, namespace):
    messages = {"image": image_message, "image_info": lambda: camera_info([0.0] * 9)}
    with depth_node(program, live):
        with Driver(namespace, messages):
            finding = only(ask(), "camera_info", WARN)
            assert "uncalibrated" in finding.what
            assert "camera_calibration" in finding.remedy
        with camera(namespace):
            only(ask(), "camera_info", OK)


def test_a_camera_info_of_another_shape_is_an_error(program, live, ask, namespace):
    messages = {"image": image_message, "image_info": lambda: camera_info(width=96, height=96)}
    with Driver(namespace, messages), depth_node(program, live):
        result = ask()
    assert "96 x 96, images are 96 x 72" in only(result, "camera_info", ERROR).what
    assert result.depth_flows
    assert result.errors


@pytest.mark.slow
def test_a_node_that_was_killed(live, ask, namespace, processes: Processes):
    with camera(namespace):
        node = processes.node("depth_node", state_dir=str(live.root), device="cpu")
        node.await_output("is live")
        node.kill()
        result = ask(state=str(live.root))
    finding = only(result, "depth_node", ERROR)
    assert finding.what == f"{namespace}/depth_node does not run"


@pytest.mark.slow
def test_a_node_in_another_namespace_is_found(program, live, namespace):
    with depth_node(program, live):
        result = examine(Complaint("elsewhere", seconds=0.5), lambda text: None)
        finding = only(result, "depth_node", ERROR)
        asked = re.search(r"--namespace (\S+)", finding.remedy)
        assert asked, finding
        result = examine(Complaint(asked[1], seconds=0.5), lambda text: None)
    assert asked[1] == namespace
    only(result, "depth_node", WARN)  # no image arrives


@pytest.mark.slow
@pytest.mark.parametrize("reached", [UNCONFIGURED, INACTIVE])
def test_a_node_that_is_not_active_until_the_remedy_makes_it(
    live, ask, namespace, peer: Peer, reached
):
    transitions = {"configure": 1, "activate": 3}
    with camera(namespace), depth_node(peer, live, until=reached, autostart=False):
        finding = only(ask(), "depth_node", ERROR)
        assert f"is {reached}" in finding.what
        for step in re.findall(rf"ros2 lifecycle set {namespace}/depth_node (\w+)", finding.remedy):
            assert peer.change_state("depth_node", transitions[step])
        assert peer.state_of("depth_node") == ACTIVE
        result = ask()
    assert not errors(result)
    assert result.depth_flows


@pytest.mark.slow
def test_a_student_that_waits_to_be_promoted(program, state, ask, namespace):
    StudentRegistry(state.students).add(small_student())
    with camera(namespace):
        with depth_node(program, state):
            result = ask()
        finding = only(result, "student", ERROR)
        assert not result.depth_flows
        assert finding.remedy.startswith("tiekd students promote 000001")
        done = run_python("-m", "tiekd_ros.cli", *shlex.split(finding.remedy)[1:])
        assert done.returncode == 0, done.stderr
        with depth_node(program, state):
            result = ask()
    assert not errors(result)


def test_a_first_student_needs_frames_and_a_teacher(program, state, ask, namespace):
    nobody = f"127.0.0.1:{free_port()}"
    parameters = {"teacher__url": nobody, "distill__min_frames": 7}
    companion = running(CompanionNode, program, state_dir=str(state.root), **parameters)
    with camera(namespace), depth_node(program, state), companion:
        result = ask()
    finding = only(result, "student", ERROR)
    assert "0 of 7 frames" in finding.remedy
    assert f"{namespace}/distill" in finding.remedy
    assert nobody in only(result, "teacher", ERROR).what
    assert "companion (process" in only(result, "state", OK).what


def test_time_that_stands_still(program, live, ask, namespace):
    with camera(namespace), depth_node(program, live, use_sim_time=True):
        finding = only(ask(), "clock", WARN)
    assert "nobody publishes /clock" in finding.what


@pytest.mark.slow
def test_the_command_shows_one_screen_and_exits_by_what_it_found(
    program, live, namespace, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "120")
    command = ("-m", "tiekd_ros.cli", "doctor", "--namespace", namespace, "--seconds", "1")
    with camera(namespace), depth_node(program, live):
        done = run_python(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"depth on {namespace}/depth at " in done.stdout
        assert len(done.stdout.splitlines()) < 40
    done = run_python(*command, "--json", "--state", str(live.root))
    assert done.returncode == 1, done.stderr
    result = json.loads(done.stdout)
    assert result["depth_flows"] is False
    assert {"level", "check", "what", "remedy"} == set(result["findings"][0])
    levels = {each["check"]: each["level"] for each in result["findings"]}
    assert levels["depth_node"] == "error"
    assert levels["student"] == "ok"


def test_without_ros_it_says_so_and_looks_at_the_rest(live):
    code = "import sys; sys.modules['rclpy'] = None; from tiekd_ros.cli import main; main()"
    done = run_python("-c", code, "doctor", "--json", "--state", str(live.root))
    assert done.returncode == 1, done.stderr
    findings = {each["check"]: each for each in json.loads(done.stdout)["findings"]}
    assert "there is no ROS 2" in findings["ros"]["what"]
    assert "setup.bash" in findings["ros"]["remedy"]
    assert {findings[check]["level"] for check in ("device", "state", "student")} == {"ok"}
    assert "depth" not in findings


@pytest.mark.parametrize(
    ("variable", "value"),
    [("RMW_IMPLEMENTATION", "rmw_of_nobody"), ("ROS_DOMAIN_ID", "many")],
)
def test_a_ros_that_cannot_be_used_is_told(live, ask, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    result = ask(state=str(live.root))
    finding = only(result, "ros", ERROR)
    assert variable in finding.what or value in finding.what
    assert variable in finding.remedy
    only(result, "student", OK)
