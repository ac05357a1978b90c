"""Rules about the nodes, their clock and their depth."""

from __future__ import annotations

from helpers.ros_facts import NODE, SILENT, UNPUBLISHED, depth_node, endpoint, ros_facts, worst
from tiekd_ros.diagnosis import keys
from tiekd_ros.diagnosis.camera import check_image
from tiekd_ros.diagnosis.facts import ERROR, IMAGE, OK, WARN
from tiekd_ros.diagnosis.nodes import (
    check_clock,
    check_companion_node,
    check_depth,
    check_depth_node,
)

NO_DEPTH = {"depth": SILENT}


def test_depth_as_it_should_be():
    assert worst(check_depth_node(ros_facts())).level == OK
    assert worst(check_depth(ros_facts(), 0)).what == (
        "/tiekd/depth (Image, reliable, volatile): 30.0 Hz, 640x480 32FC1, "
        "97% of the pixels valid, median 2.00 m"
    )


def test_a_node_that_is_not_active():
    for state, message, remedy in (
        ("", "", "it may be loading; try --seconds 20"),
        ("inactive", "", "ros2 lifecycle set /tiekd/depth_node activate"),
        ("unconfigured", "cannot configure: no disk", "fix that"),
        ("finalized", "", "start it again"),
    ):
        reports = {NODE: {"level": 2, "message": message, "values": {}}}
        ros = ros_facts(NO_DEPTH, own_nodes=depth_node(state), reports=reports)
        finding = worst(check_depth_node(ros))
        assert finding.level == ERROR
        assert message in finding.what
        assert remedy in finding.remedy
    assert worst(check_depth_node(ros_facts(own_nodes=depth_node("")))).level == WARN


def test_a_node_that_does_not_run_is_an_error_where_no_depth_comes():
    finding = worst(check_depth_node(ros_facts(NO_DEPTH, own_nodes={}, nodes=[])))
    assert (finding.level, finding.what) == (ERROR, "/tiekd/depth_node does not run")
    finding = worst(check_depth_node(ros_facts(own_nodes={}, nodes=[])))
    assert finding.level == WARN
    assert finding.what.endswith(f"does not run; /tiekd/depth comes from {NODE}")


def test_a_node_in_another_namespace_or_domain_is_named():
    for name in ("/front/depth_node", "/front/eyes"):
        reports = {name: {"level": 0, "message": "", "values": {keys.KIND: "depth_node"}}}
        ros = ros_facts(NO_DEPTH, own_nodes={}, nodes=[name], reports=reports)
        assert "tiekd doctor --namespace /front" in worst(check_depth_node(ros)).remedy
    ros = ros_facts(NO_DEPTH, nodes=[], own_nodes={}, other_domains={5: 2, 0: 1})
    remedy = worst(check_depth_node(ros)).remedy
    assert "in domains 0, 5, and this is domain 7: ROS_DOMAIN_ID=0 tiekd doctor" in remedy


def test_absence_is_not_certain_while_programs_are_undiscovered():
    ros = ros_facts(
        {**NO_DEPTH, "image": UNPUBLISHED},
        nodes=[], own_nodes={}, inputs={}, undiscovered=2, duration_s=15.4,
    )  # fmt: skip
    assert worst(check_depth_node(ros)).what == f"{NODE} was not discovered within 15 s"
    finding = worst(check_image(ros, ""))
    assert finding.what == "no publisher of /camera/image_raw was discovered within 15 s"


def test_time_that_stands_still():
    for simulated, publishers, level in (
        (True, [], WARN),
        (True, [endpoint("/bag", "")], OK),
        (False, [endpoint("/bag", "")], WARN),
        (False, [], OK),
    ):
        own = depth_node(use_sim_time=simulated)
        ros = ros_facts({"clock": {"publishers": publishers}}, own_nodes=own)
        assert worst(check_clock(ros)).level == level


def test_a_nodes_own_report_is_passed_on():
    reports = {NODE: {"level": 2, "message": "takes 900 MB; see what grows", "values": {}}}
    assert "takes 900 MB" in worst(check_depth_node(ros_facts(reports=reports))).what


def test_two_nodes_of_one_name():
    finding = worst(check_depth_node(ros_facts(nodes=[NODE, NODE])))
    assert finding.what == f"2 nodes are called {NODE}"


def test_nodes_with_different_state_folders():
    parameters = {"state_dir": "/b", "rectify": False}
    companion = {"name": "/tiekd/companion_node", "state": "active", "parameters": parameters}
    own = {**depth_node(state_dir="/a", rectify=False), "companion_node": companion}
    finding = worst(check_companion_node(ros_facts(own_nodes=own), has_student=True))
    assert "'/b' here and '/a' in depth_node" in finding.what


def test_a_companion_is_missed_while_there_is_no_student():
    for has_student, level in ((True, OK), (False, WARN)):
        found = check_companion_node(ros_facts(), has_student=has_student)
        assert worst(found).level == level


def test_depth_without_distances_names_the_parameter_that_takes_them_away():
    changes = {"depth": {"last": {"valid_share": 0.0}}}
    finding = worst(check_depth(ros_facts(changes, own_nodes=depth_node(min_confidence=0.99)), 0))
    assert finding.level == ERROR
    assert "min_confidence 0.99" in finding.what
    assert finding.remedy == "loosen min_confidence"


def test_a_subscriber_that_requests_more_than_depth_offers_is_named():
    subscriber = endpoint("/rviz", IMAGE, durability="transient_local")
    finding = worst(check_depth(ros_facts({"depth": {"subscribers": [subscriber]}}), 0))
    assert finding.level == WARN
    assert "/rviz requests more (durability)" in finding.what


def test_silence_is_an_error_and_the_cause_stands_above():
    assert "above" in worst(check_depth(ros_facts(NO_DEPTH), 1)).remedy
    assert "log" in worst(check_depth(ros_facts(NO_DEPTH), 0)).remedy
