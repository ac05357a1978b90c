"""`tiekd doctor` before situations that are really broken, and after its remedies were applied.

Real nodes and cameras; the doctor's own look at ROS is a process of its own, as always.
"""

from __future__ import annotations

import gc
import json
import os
import re
import shlex
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from helpers.children import run_python
from helpers.students import small_student
from ros_helpers.drivers import BEST_EFFORT, Driver, Rclpy, camera
from ros_helpers.messages import camera_info, image_message
from ros_helpers.peer import running
from ros_helpers.processes import Processes
from tiekd_ros.core.state import StateFolder
from tiekd_ros.diagnosis.examination import Complaint, Examination, examine
from tiekd_ros.diagnosis.facts import ERROR, OK, Finding
from tiekd_ros.nodes.depth.node import DepthNode
from tiekd_ros.nodes.probe.graph import programs_by_domain
from tiekd_ros.student import StudentRegistry


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
    def ask(say: Callable[[str], None] = lambda text: None, **complaint: Any) -> Examination:
        return examine(Complaint(namespace, seconds=1.0, **complaint), say)

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


@contextmanager
def depth_node(program: Rclpy, state: StateFolder, **more: Any) -> Iterator[None]:
    with running(DepthNode, program, state_dir=str(state.root), device="cpu", **more):
        yield
    gc.collect()  # rclpy keeps a destroyed lifecycle node in the graph until then


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
def test_robots_that_give_all_names_of_their_own_are_healthy(live, ask, namespace, processes):
    with camera(namespace):
        for side in ("front", "rear"):
            names = (
                f"__node:={side}_depth",
                f"depth:={namespace}/{side}/range",
                "confidence:=sure",
            )
            node = processes.node("depth_node", *names, state_dir=str(live.root), device="cpu")
            node.await_output("is live")
        found_by_itself, asked = ask(), ask(depth_topic=f"{namespace}/rear/range")
    for result, side in ((found_by_itself, "front"), (asked, "rear")):
        assert not errors(result)
        topic = f"{namespace}/{side}/range"
        assert f"{topic} (Image, reliable, volatile): " in only(result, "depth", OK).what
        assert f"{namespace}/{side}_depth is active" in only(result, "depth_node", OK).what
        assert str(live.root) in only(result, "state", OK).what
        assert result.depth_topic == topic


def test_nobody_is_waited_for_where_nothing_runs(namespace):
    code = (
        "from tiekd_ros.nodes import probe\n"
        "probe._DISCOVERY_S = probe._WORD_S = probe._PATIENCE_S = probe._LONGEST_S = 1e4\n"
        f"raise SystemExit(probe.main(['--namespace', {namespace!r}, '--seconds', '0.5']))"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert (facts["managed"], facts["heard"]["image"], facts["made"]) == ({}, [], [])


@pytest.mark.slow
def test_a_program_too_busy_to_be_seen_is_waited_for(live, ask, namespace, processes: Processes):
    node = processes.node("depth_node", state_dir=str(live.root), device="cpu")
    with camera(namespace):
        node.await_output("is live")
        os.kill(node.pid, signal.SIGSTOP)
        waited_for = []

        def say(what: str) -> None:
            waited_for.append(what)
            if "more of this machine's programs" in what:
                os.kill(node.pid, signal.SIGCONT)

        result = ask(say)
    assert any("more of this machine's programs" in what for what in waited_for), waited_for
    assert not errors(result)
    assert result.depth_flows


@pytest.mark.slow
def test_a_program_that_is_never_seen_makes_nothing_certain(live, ask, namespace):
    with camera(namespace), mute_program():
        result = ask(state=str(live.root), image_topic=f"{namespace}/nowhere")
    finding = only(result, "ros", ERROR)
    assert "a program with ROS of this domain that could not be seen" in finding.what
    assert f"{namespace}/depth_node was not seen within" in only(result, "depth_node", ERROR).what
    assert "nobody was seen to publish" in only(result, "image", ERROR).what


@contextmanager
def mute_program() -> Iterator[None]:
    """Hold the ports of a program with ROS of this domain, and say nothing on them."""
    first = 7400 + 250 * int(os.environ["ROS_DOMAIN_ID"]) + 10 + 2 * 60
    with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket(type=socket.SOCK_DGRAM) as two:
        one.bind(("127.0.0.1", first))
        two.bind(("127.0.0.1", first + 1))
        yield


def test_programs_of_another_domain_are_named(ask, namespace, monkeypatch):
    own = int(os.environ["ROS_DOMAIN_ID"])
    used = {own, *programs_by_domain()}
    with camera(namespace):
        monkeypatch.setenv("ROS_DOMAIN_ID", str(next(n for n in range(1, 101) if n not in used)))
        result = ask()
    for check in ("depth_node", "image"):
        finding = only(result, check, ERROR)
        assert re.search(rf"\bdomains? .*\b{own}\b", finding.remedy), finding


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
    code = "import sys; sys.modules['rclpy'] = None; from tiekd_ros.cli.main import main; main()"
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
