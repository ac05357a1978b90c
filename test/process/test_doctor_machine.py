"""What the doctor finds on this machine: device, state folder, students, teacher."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from helpers.children import run_python
from helpers.frames import filled_state
from helpers.students import small_student
from helpers.teachers import RELATIVE, StubBackend, free_port, serving
from tiekd_ros.core.state import StateFolder
from tiekd_ros.diagnosis.facts import ERROR, OK, WARN, Finding
from tiekd_ros.diagnosis.machine import check_device, check_state
from tiekd_ros.diagnosis.students import check_student
from tiekd_ros.diagnosis.teacher import check_teacher
from tiekd_ros.rounds.plan import RoundSettings
from tiekd_ros.student import REFUSED, StudentRegistry

ENOUGH = RoundSettings(min_frames=4, min_held_out=2)


def one(findings) -> Finding:
    """Return the only finding; it has a remedy unless all is well."""
    (finding,) = findings
    assert bool(finding.remedy) == (finding.level != OK), finding
    return finding


@pytest.fixture
def state(tmp_path) -> StateFolder:
    return StateFolder(tmp_path / "state").create()


def student_of(state: StateFolder, running: str = "", focal=None) -> Finding:
    return one(check_student(state, "/tiekd", running, focal, ENOUGH))


# The device.


def test_the_device_that_is_there():
    finding = one(check_device("cpu", "torch", "torch on cpu"))
    assert finding.level == OK
    assert "depth_node uses torch on cpu" in finding.what


def test_a_device_that_is_not_there():
    finding = one(check_device("cuda:99", "auto", ""))
    assert finding.level == ERROR
    assert "cuda:99" in finding.what


# The state folder.


def test_a_state_folder_that_is_as_it_should_be(state):
    with state.claimed("companion"):
        finding = one(check_state(state, nodes_run=True))
    assert finding.level == OK
    assert f"held by companion (process {os.getpid()})" in finding.what
    assert "held" not in one(check_state(state, nodes_run=True)).what


def test_a_state_folder_that_is_no_folder_until_another_is_given(tmp_path):
    (tmp_path / "file").write_text("")
    finding = one(check_state(StateFolder(tmp_path / "file" / "state"), nodes_run=False))
    assert finding.level == ERROR
    assert "is no folder" in finding.what
    assert "--state" in finding.remedy
    other = StateFolder(tmp_path / "other")
    assert one(check_state(other, nodes_run=False)).level == OK
    assert not other.root.exists()  # looking makes nothing


def test_a_state_folder_that_cannot_be_written_to():
    finding = one(check_state(StateFolder(Path("/proc/self/tiekd")), nodes_run=False))
    assert finding.level == ERROR
    assert "not writable" in finding.what


def test_a_state_folder_that_only_others_may_write_to(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("becomes another user, which only root can")
    root = tmp_path / "state"
    root.mkdir(mode=0o755)
    code = f"""
import os
from pathlib import Path
from tiekd_ros.diagnosis.machine import check_state
from tiekd_ros.core.state import StateFolder
for part in {[str(p) for p in (root, *root.parents)]!r}:
    os.chmod(part, os.stat(part).st_mode | 0o055) if part.startswith("/tmp/") else None
os.setuid(65534)
print(list(check_state(StateFolder(Path({str(root)!r})), nodes_run=True)))
"""
    done = run_python("-c", code)
    assert "not writable (Permission denied)" in done.stdout, done.stdout + done.stderr
    assert "chown or chmod" in done.stdout


def test_a_state_folder_that_is_missing_while_nodes_run(tmp_path):
    assert one(check_state(StateFolder(tmp_path / "none"), nodes_run=True)).level == WARN


def test_a_damaged_frame_log(state):
    state.frames.write_bytes(b"no database at all" * 100)
    finding = one(check_state(state, nodes_run=True))
    assert finding.level == WARN
    assert str(state.frames) in finding.what


# The student.


def test_no_student_and_no_frames(state):
    finding = student_of(state)
    assert finding.level == ERROR
    assert "0 of 4 frames" in finding.remedy


def test_no_student_but_enough_labelled_frames(tmp_path):
    state = filled_state(tmp_path / "filled")
    finding = student_of(state)
    assert "ros2 service call /tiekd/distill std_srvs/srv/Trigger" in finding.remedy
    assert f"tiekd distill --state {state.root}" in finding.remedy


def test_frames_that_wait_for_the_teacher(tmp_path):
    state = filled_state(tmp_path / "filled")
    connection = sqlite3.connect(state.frames)
    connection.execute("UPDATE frames SET state = 'logged'")
    connection.execute("DELETE FROM labels")
    connection.commit()
    connection.close()
    assert "wait for the teacher" in student_of(state).remedy


def test_a_student_that_was_refused_says_why(state):
    StudentRegistry(state.students).add(small_student(status=REFUSED, reason="it was worse"))
    finding = student_of(state)
    assert "000001 is refused: it was worse" in finding.what
    assert "promote" not in finding.remedy


def test_a_live_student_with_its_age(state):
    promote(state)
    assert "000001 is live" in student_of(state, "000001").what
    assert "0.0 days old" in student_of(state).what


def test_a_damaged_student(state):
    promote(state)
    weights = state.students / "000001" / "student.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    finding = student_of(state)
    assert finding.level == ERROR
    assert "000001" in finding.what


@pytest.mark.parametrize(
    ("running", "level", "text"),
    [
        ("none", ERROR, "depth_node runs none"),
        ("000009", WARN, "which is not in"),
    ],
)
def test_a_node_that_runs_another_student(state, running, level, text):
    promote(state)
    finding = student_of(state, running)
    assert (finding.level, text in finding.what) == (level, True), finding


def test_a_student_for_another_lens(state):
    promote(state, focal_px=(60.0, 60.0))
    width = 640  # its input is 96 px wide
    assert student_of(state, focal=(60.0 * width / 96, width)).level == OK
    finding = student_of(state, focal=(120.0 * width / 96, width))
    assert finding.level == WARN
    assert "60 px, this camera's is 120 px" in finding.what


def promote(state: StateFolder, **card) -> None:
    registry = StudentRegistry(state.students)
    registry.promote(registry.add(small_student(**card)).version)


# The teacher.


def test_a_teacher_that_is_out_of_reach_until_it_is_started():
    port = free_port()
    address = f"127.0.0.1:{port}"
    finding = one(check_teacher({}, address, "", has_student=True))
    assert finding.level == WARN
    assert "tiekd teacher serve" in finding.remedy
    assert one(check_teacher({}, address, "", has_student=False)).level == ERROR
    with serving(StubBackend(), port=port):
        finding = one(check_teacher({}, address, "", has_student=False))
    assert finding.level == OK
    assert finding.what == f"stub 7 at {address} (plain), metric"


def test_the_companions_own_address_is_asked():
    with serving(StubBackend()) as address:
        parameters = {"teacher.url": address, "teacher.timeout_s": 9.0, "rectify": False}
        assert one(check_teacher(parameters, "", "up", has_student=True)).level == OK


def test_a_teacher_that_is_not_metric():
    with serving(StubBackend(identity=RELATIVE)) as address:
        finding = one(check_teacher({}, address, "", has_student=False))
    assert finding.level == ERROR
    assert "does not say that its depth is in metres" in finding.what


@pytest.mark.parametrize(
    ("parameters", "address", "text"),
    [
        (None, "", "not asked"),
        ({"teacher.url": ""}, "", "no teacher is configured"),
        ({}, "http://teacher", "url must be host:port"),
        ({"teacher.url": "t:1", "teacher.token_file": "/none"}, "", "/none"),
    ],
)
def test_a_teacher_that_cannot_be_asked(parameters, address, text):
    finding = one(check_teacher(parameters, address, "", has_student=True))
    assert text in finding.what, finding
