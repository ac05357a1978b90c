"""What the doctor makes of facts about our nodes, their clock and their depth, without ROS."""

from __future__ import annotations

import pytest

from helpers.probed import NODE, end, node, ros, silent, worst
from tiekd_ros.diagnosis.examination import Complaint, _local
from tiekd_ros.diagnosis.facts import ERROR, IMAGE, OK, WARN
from tiekd_ros.diagnosis.nodes import (
    check_clock,
    check_companion_node,
    check_depth,
    check_depth_node,
)


@pytest.mark.parametrize(
    ("state", "message", "remedy"),
    [
        ("", "", "it may be loading; try --seconds 20"),
        ("inactive", "", "ros2 lifecycle set /tiekd/depth_node activate"),
        ("unconfigured", "cannot configure: no disk", "mend that"),
        ("finalized", "", "start it again"),
    ],
)
def test_a_node_that_does_not_work(state, message, remedy):
    managed = {"depth_node": {"name": NODE, "state": state, "parameters": {}}}
    said = {NODE: {"level": 2, "message": message, "values": {}}}
    finding = worst(check_depth_node(ros(silent(), managed=managed, diagnostics=said)))
    assert finding.level == ERROR
    assert message in finding.what
    assert remedy in finding.remedy


def test_a_node_that_does_not_work_while_depth_comes_is_no_error():
    mute = {"depth_node": {"name": NODE, "state": "", "parameters": {}}}
    assert worst(check_depth_node(ros(managed=mute))).level == WARN
    assert worst(check_depth_node(ros(silent(), managed=mute))).level == ERROR


def test_a_node_that_does_not_run_is_an_error_where_no_depth_comes():
    finding = worst(check_depth_node(ros(silent(), managed={}, nodes=[])))
    assert (finding.level, finding.what) == (ERROR, "/tiekd/depth_node does not run")
    finding = worst(check_depth_node(ros(managed={}, nodes=[])))
    assert finding.level == WARN
    assert finding.what.endswith(f"does not run; /tiekd/depth comes from {NODE}")


@pytest.mark.parametrize("name", ["/front/depth_node", "/front/eyes"])
def test_a_node_elsewhere_is_found_whatever_it_is_called(name):
    said = {name: {"level": 0, "message": "", "values": {"kind": "depth_node"}}}
    it = ros(silent(), managed={}, nodes=[name], diagnostics=said)
    assert "tiekd doctor --namespace /front" in worst(check_depth_node(it)).remedy


def test_a_student_elsewhere_is_no_error_while_depth_comes(tmp_path, monkeypatch):
    monkeypatch.setattr("tiekd_ros.diagnosis.examination.check_teacher", lambda *a, **k: [])
    complaint = Complaint(state=str(tmp_path))
    for changes, level in (({}, WARN), (silent(), ERROR)):
        found = _local(complaint, ros(changes), lambda text: None)
        assert worst(each for each in found if each.check == "student").level == level


@pytest.mark.parametrize(
    ("made", "topic"),
    [
        (["/tiekd/confidence", "/tiekd/depth", "/tiekd/depth/preview"], "/tiekd/depth"),
        (["/front/depth", "/tiekd/confidence", "/tiekd/depth/preview"], "/front/depth"),
        (["/front/range", "/tiekd/confidence", "/tiekd/depth/preview"], "/front/range"),
        (["/certain", "/front/depth_image", "/tiekd/depth/preview"], "/front/depth_image"),
        ([], "/tiekd/depth"),
    ],
)
def test_depth_is_found_among_the_nodes_images(made, topic):
    probe = pytest.importorskip(
        "tiekd_ros.nodes.probe.probe", reason="needs ROS 2", exc_type=ImportError
    )
    assert probe.depth_among(made, "/tiekd") == topic


def test_time_that_stands_still():
    assert worst(check_clock(ros(managed=node(use_sim_time=True)))).level == WARN
    assert worst(check_clock(ros())).level == OK


def test_what_a_node_says_is_passed_on():
    said = {NODE: {"level": 2, "message": "takes 900 MB; see what grows", "values": {}}}
    assert "takes 900 MB" in worst(check_depth_node(ros(diagnostics=said))).what


def test_two_nodes_of_one_name():
    finding = worst(check_depth_node(ros(nodes=[NODE, NODE])))
    assert finding.what == f"2 nodes are called {NODE}"


def test_nodes_with_different_state_folders():
    companion = {"name": "/tiekd/companion_node", "state": "active"}
    managed = {
        **node(state_dir="/a", rectify=False),
        "companion_node": {**companion, "parameters": {"state_dir": "/b", "rectify": False}},
    }
    finding = worst(check_companion_node(ros(managed=managed), has_student=True))
    assert "'/b' here and '/a' in depth_node" in finding.what


@pytest.mark.parametrize(("has_student", "level"), [(True, OK), (False, WARN)])
def test_a_companion_is_missed_while_there_is_no_student(has_student, level):
    assert worst(check_companion_node(ros(), has_student=has_student)).level == level


def test_depth_without_distances_names_the_parameter_that_takes_them_away():
    it = ros({"depth": {"last": {"known_share": 0.0}}}, managed=node(min_confidence=0.99))
    finding = worst(check_depth(it, 0))
    assert finding.level == ERROR
    assert "min_confidence 0.99" in finding.what
    assert finding.remedy == "loosen min_confidence"


def test_who_asks_for_more_than_depth_offers_is_named():
    ear = end("/rviz", IMAGE, durability="transient_local")
    finding = worst(check_depth(ros({"depth": {"subscribers": [ear]}}), 0))
    assert finding.level == WARN
    assert "/rviz asks for more (durability)" in finding.what


def test_silence_is_an_error_and_the_cause_stands_above():
    assert "above" in worst(check_depth(ros(silent()), 1)).remedy
    assert "log" in worst(check_depth(ros(silent()), 0)).remedy
