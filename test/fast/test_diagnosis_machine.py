"""Rules about ROS itself, transports, device, state folder, student and teacher."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from helpers.ros_facts import SILENT, ros_facts, worst
from tiekd_ros.diagnosis.facts import (
    BUSY,
    DENIED,
    ERROR,
    OK,
    UNREACHABLE,
    WARN,
    DeviceFacts,
    Finding,
    MachineFacts,
    StateFacts,
    StudentFacts,
    TeacherFacts,
)
from tiekd_ros.diagnosis.machine import (
    check_device,
    check_ros,
    check_state,
    check_student,
    check_teacher,
    check_transports,
)

GB = 10**9
DEVICE = DeviceFacts("auto", "auto", "cpu (4 cores)", "2.13.0", onnxruntime_fault="")
MACHINE = MachineFacts({}, DEVICE, shared_memory_bytes=(8 * GB, 7 * GB))
STATE = StateFacts("/state", "/state", is_folder=True, free_bytes=50 * GB)
CARD = StudentFacts("000001", "accepted", False, "", "lite0", (96, 72), 10.0, None, 0.5)


def test_ros_that_is_not_there_or_does_not_discover():
    assert "setup.bash" in worst(check_ros(MACHINE, None, "")).remedy
    assert "ROS_DOMAIN_ID" in worst(check_ros(MACHINE, None, "ROS cannot be used: x")).remedy
    off = replace(MACHINE, environment={"ROS_AUTOMATIC_DISCOVERY_RANGE": "off"})
    finding = worst(check_ros(off, ros_facts(), ""))
    assert finding.level == ERROR
    assert "LOCALHOST" in finding.remedy
    sourced = replace(MACHINE, environment={"ROS_DISTRO": "jazzy"})
    finding = worst(check_ros(sourced, ros_facts(), ""))
    assert (finding.level, "Jazzy, rmw_fastrtps_cpp, domain 7" in finding.what) == (OK, True)
    wheels = replace(MACHINE, rclpy_wheel="9.1.2")
    assert "Kilted as wheels (rclpy 9.1.2)" in worst(check_ros(wheels, ros_facts(), "")).what


def test_programs_that_are_not_discovered():
    ros = ros_facts({"depth": SILENT}, own_nodes={}, undiscovered=2, duration_s=15.4)
    finding = worst(check_ros(MACHINE, ros, ""))
    assert finding.level == ERROR
    assert "2 programs with ROS of this domain" in finding.what
    assert "ROS_AUTOMATIC_DISCOVERY_RANGE" in finding.remedy
    assert worst(check_ros(MACHINE, ros_facts(undiscovered=1), "")).level == WARN


def test_images_that_get_lost_on_the_way_are_seen_by_their_camera_info():
    finding = worst(check_transports(MACHINE, ros_facts({"image": {"rate_hz": 9.0}})))
    assert finding.level == WARN
    assert "images (922 kB) come at 9.0 Hz, camera_info at 30.0 Hz" in finding.what
    assert "FASTDDS_BUILTIN_TRANSPORTS" in finding.remedy
    assert worst(check_transports(MACHINE, ros_facts())).level == OK


def test_shared_memory_that_is_missing_or_full():
    for sizes, remedy in ((None, "--ipc=host"), ((64_000_000, 1_000_000), "--shm-size")):
        finding = worst(check_transports(replace(MACHINE, shared_memory_bytes=sizes), None))
        assert finding.level == WARN
        assert remedy in finding.remedy


def test_the_device():
    finding = worst(check_device(DEVICE, "torch on cpu"))
    assert finding.level == OK
    assert "depth_node uses torch on cpu" in finding.what
    for changes, level, text in (
        ({"fault": "device 'cuda:9' is not there; set device to cpu"}, ERROR, "cuda:9"),
        ({"onnxruntime_fault": "no onnxruntime"}, OK, "no onnxruntime for it"),
        ({"onnxruntime_fault": "none here", "runtime": "onnxruntime"}, ERROR, "none here"),
        ({"gpu": "/dev/nvidia0"}, WARN, "torch is built without CUDA"),
        ({"gpu": "/dev/nvidia0", "torch_has_cuda": True}, WARN, "torch cannot use it"),
        ({"gpu": "/dev/nvidia0", "requested": "cpu"}, OK, "torch 2.13.0 on cpu (4 cores)"),
    ):
        finding = worst(check_device(replace(DEVICE, **changes), ""))
        assert (finding.level, text in finding.what) == (level, True), finding


def test_the_state_folder():
    frames = {"labelled": {"train": 3, "held_out": 1}, "logged": {"train": 2}}
    finding = worst(
        check_state(replace(STATE, frames=frames, holders=("companion (7)",)), nodes_run=True)
    )
    assert (
        finding.what == "/state: writable, 50 GB free, 6 frames, 4 labelled, held by companion (7)"
    )
    assert finding.level == OK
    missing = {"nearest": "/"}
    for changes, nodes_run, level, text in (
        ({"is_folder": False}, False, ERROR, "is no folder"),
        ({"write_fault": "Permission denied"}, False, ERROR, "not writable (Permission denied)"),
        ({"free_bytes": 10**8}, False, WARN, "only 100 MB are free"),
        (missing, True, WARN, "there is no /state here"),
        (missing, False, OK, "is not there yet"),
        ({"frames_fault": "frames.sqlite is no database; move it away"}, True, WARN, "no database"),
    ):
        finding = worst(check_state(replace(STATE, **changes), nodes_run=nodes_run))
        assert (finding.level, text in finding.what) == (level, True), finding


def student(running: str = "", focal_px: Any = None, **changes: Any) -> Finding:
    """Return the finding about the student of a state folder with these changes."""
    return worst(
        check_student(
            replace(STATE, **changes),
            namespace="/tiekd",
            running=running,
            focal_px=focal_px,
            frames_needed=(4, 2),
        )
    )


def test_no_student_is_live():
    assert student().level == ERROR
    assert "0 of 4 frames" in student().remedy
    enough = student(frames={"labelled": {"train": 4, "held_out": 2}}).remedy
    assert "ros2 service call /tiekd/distill std_srvs/srv/Trigger" in enough
    assert "tiekd distill --state /state" in enough
    assert "wait for the teacher" in student(frames={"logged": {"train": 9}}).remedy
    waiting = student(student=replace(CARD, status="candidate"), versions=("000001",))
    assert waiting.remedy == "tiekd students promote 000001 --state /state"
    refused = replace(CARD, status="refused", is_refused=True, reason="it was worse")
    refused = student(student=refused, versions=("000001",))
    assert "000001 is refused: it was worse" in refused.what
    assert "promote" not in refused.remedy
    damaged = student(live="000001", student_fault="000001 is damaged")
    assert (damaged.level, damaged.what) == (ERROR, "000001 is damaged")


def test_a_student_is_live():
    live = {"live": "000001", "versions": ("000001", "000002"), "student": CARD}
    finding = student("000001", **live)
    assert finding.level == OK
    assert finding.what == "000001 is live: lite0, 96x72, up to 10 m, 0.5 days old"
    for running, level, text in (
        ("none", ERROR, "depth_node runs none"),
        ("000009", WARN, "which is not in"),
        ("000002", WARN, "depth_node runs 000002, and 000001 is live"),
    ):
        finding = student(running, **live)
        assert (finding.level, text in finding.what) == (level, True), finding
    live["student"] = replace(CARD, focal_px=(60.0, 60.0))
    assert student(focal_px=(60.0 * 640 / 96, 640), **live).level == OK
    finding = student(focal_px=(120.0 * 640 / 96, 640), **live)
    assert finding.level == WARN
    assert "60 px, this camera's is 120 px" in finding.what


def test_the_teacher():
    for teacher, has_student, level, text in (
        (None, False, OK, "not asked"),
        (TeacherFacts(), True, WARN, "no teacher is configured"),
        (TeacherFacts("t:1", identity="stub 7"), False, OK, "stub 7 at t:1 (plain), metric"),
        (TeacherFacts("t:1", True, "stub 7"), False, OK, "stub 7 at t:1 (TLS), metric"),
        (TeacherFacts(fault="not metric; ask for another"), False, ERROR, "not metric"),
        (TeacherFacts(fault="not metric; ask for another"), True, WARN, "not metric"),
    ):
        finding = worst(check_teacher(teacher, "", has_student=has_student))
        assert (finding.level, text in finding.what) == (level, True), finding
    for cause, remedy in (
        (UNREACHABLE, "tiekd teacher serve"),
        (BUSY, "load"),
        (DENIED, "token"),
        ("", "teacher.*"),
    ):
        teacher = TeacherFacts(fault="it does not answer", cause=cause)
        assert remedy in worst(check_teacher(teacher, "", has_student=True)).remedy
    finding = worst(check_teacher(teacher, "ok", has_student=False))
    assert (finding.level, "the companion's link: ok" in finding.what) == (WARN, True)
