"""`tiekd doctor`: its request, the facts about this machine, and its page."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from helpers.frames import filled_state
from helpers.ros_facts import SILENT, ros_facts, worst
from helpers.students import small_student
from helpers.teachers import RELATIVE, StubBackend, serving
from tiekd_ros.cli.__main__ import app
from tiekd_ros.cli.doctor import Examination, _show, diagnose
from tiekd_ros.cli.doctor_facts import (
    DoctorFacts,
    DoctorRequest,
    ask_teacher,
    collect_device,
    collect_machine,
    collect_state,
)
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.launch_options import free_port
from tiekd_ros.core.state import StateFolder
from tiekd_ros.diagnosis.facts import ERROR, UNREACHABLE, WARN, DeviceFacts, RosFacts, TeacherFacts
from tiekd_ros.diagnosis.machine import check_state
from tiekd_ros.student.registry import StudentRegistry

DEVICE = DeviceFacts("auto", "auto", "cpu (4 cores)", "2.13.0", onnxruntime_fault="")


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "state").create()


def facts_with(ros: RosFacts | None, tmp_path: Path) -> DoctorFacts:
    """Return facts of a machine without a student."""
    machine = collect_machine({}, DEVICE, shared_memory=tmp_path)
    state = collect_state(StateFolder(tmp_path / "none"))
    return DoctorFacts(machine, ros, "", state, None, (4, 2))


def test_a_name_that_ros_cannot_have_is_refused():
    for field in ("namespace", "image_topic", "camera_info_topic", "depth_topic"):
        for name in ("no name", "a//b", "/2nd", "a/ü"):
            with pytest.raises(InvalidSettingError, match=name):
                DoctorRequest(**{field: name})
        assert getattr(DoctorRequest(**{field: "/robot1/front"}), field) == "/robot1/front"


def test_a_missing_student_is_no_error_while_depth_comes(tmp_path):
    for ros, level in ((ros_facts(), WARN), (ros_facts({"depth": SILENT}), ERROR)):
        found = diagnose(DoctorRequest(), facts_with(ros, tmp_path))
        assert worst(each for each in found if each.check == "student").level == level


def test_the_checks_come_in_the_order_in_which_depth_comes_about_on_one_screen(tmp_path, capsys):
    found = diagnose(DoctorRequest(), facts_with(ros_facts(), tmp_path))
    order = [
        "ros", "transports", "image", "camera_info", "clock", "depth_node", "device", "state",
        "student", "companion_node", "teacher", "depth",
    ]  # fmt: skip
    assert list(dict.fromkeys(each.check for each in found)) == order
    result = Examination(tuple(found), ros_facts(), "/tiekd/depth")
    _show(result)
    page = capsys.readouterr().out
    assert len(page.splitlines()) < 40
    assert "depth on /tiekd/depth at 30.0 Hz" in page
    assert RosFacts.from_json(json.loads(json.dumps(result.as_dict()))["ros"]) == result.ros
    _show(Examination(tuple(found), ros_facts({"depth": SILENT}), "/tiekd/depth"))
    assert "no depth on /tiekd/depth: begin with the first ERROR" in capsys.readouterr().out


def test_without_ros_it_says_so_and_looks_at_the_rest(state, monkeypatch):
    promote(state)
    monkeypatch.setitem(sys.modules, "rclpy", None)
    done = CliRunner().invoke(app, ["doctor", "--json", "--state", str(state.root)])
    assert done.exit_code == 1
    result = json.loads(done.stdout)
    assert (result["depth_flows"], result["ros"]) == (False, {})
    findings = {each["check"]: each for each in result["findings"]}
    assert "there is no ROS 2" in findings["ros"]["what"]
    assert {findings[check]["level"] for check in ("device", "state", "student")} == {"ok"}
    assert "depth" not in findings


# The facts.


def test_the_device():
    device = collect_device("cpu", "torch")
    assert device.name.startswith("cpu (")
    assert (device.fault, device.onnxruntime_fault) == ("", None)
    assert collect_device("cpu", "auto").onnxruntime_fault == ""
    assert "cuda:99" in collect_device("cuda:99", "auto").fault


def test_the_programs_that_hold_a_state_folder(state):
    with state.claimed("companion"):
        assert collect_state(state).holders == (f"companion (process {os.getpid()})",)
    assert collect_state(state).holders == ()


def test_a_state_folder_that_is_not_there_or_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    assert not collect_state(StateFolder(tmp_path / "file" / "state")).is_folder
    other = StateFolder(tmp_path / "other")
    facts = collect_state(other)
    assert (facts.nearest, facts.is_folder, facts.write_fault) == (str(tmp_path), True, "")
    assert not other.root.exists()  # looking makes nothing
    assert collect_state(StateFolder(Path("/proc/self/tiekd"))).write_fault


def test_the_frames_and_a_frame_log_that_is_damaged(tmp_path):
    state = filled_state(tmp_path / "filled")
    frames = collect_state(state).frames
    assert frames["labelled"]["train"] >= 4
    state.frames.write_bytes(b"no database at all" * 100)
    finding = worst(check_state(collect_state(state), nodes_run=True))
    assert finding.level == WARN
    assert str(state.frames) in finding.what


def promote(state: StateFolder, **card: object) -> None:
    registry = StudentRegistry(state.students)
    registry.promote(registry.add(small_student(**card)).version)


def test_the_students_and_one_that_is_damaged(state):
    assert collect_state(state).student is None
    StudentRegistry(state.students).add(small_student())
    facts = collect_state(state)
    assert (facts.live, facts.versions, facts.student.version) == ("", ("000001",), "000001")
    StudentRegistry(state.students).promote("000001")
    facts = collect_state(state)
    assert facts.live == "000001"
    assert facts.student.input_size == (96, 64)
    assert 0 <= facts.student.age_days < 1
    weights = state.students / "000001" / "student.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    facts = collect_state(state)
    assert facts.live == "000001"
    assert "000001" in facts.student_fault


def test_the_teacher():
    assert ask_teacher(None, "") is None
    assert ask_teacher({"teacher.url": ""}, "") == TeacherFacts()
    assert "url must be host:port" in ask_teacher({}, "http://teacher").fault
    token = {"teacher.url": "t:1", "teacher.token_file": "/none"}
    assert "/none" in ask_teacher(token, "").fault
    port = free_port()
    facts = ask_teacher({}, f"127.0.0.1:{port}")
    assert (facts.cause, facts.identity) == (UNREACHABLE, "")
    with serving(StubBackend(), port=port):
        facts = ask_teacher({}, f"127.0.0.1:{port}")
        parameters = {"teacher.url": f"127.0.0.1:{port}", "teacher.timeout_s": 9.0, "rectify": 1}
        assert ask_teacher(parameters, "") == facts
    assert facts == TeacherFacts(f"127.0.0.1:{port}", tls=False, identity="stub 7")
    with serving(StubBackend(identity=RELATIVE)) as address:
        assert "does not say that its depth is in metres" in ask_teacher({}, address).fault
