"""What the doctor makes of facts: cameras, calibrations, nodes and depth, without ROS."""

from __future__ import annotations

from typing import Any

import pytest

from tiekd_ros.doctor.calibration import check_camera_info, focal_px
from tiekd_ros.doctor.camera import check_image
from tiekd_ros.doctor.examination import Complaint
from tiekd_ros.doctor.facts import CAMERA_INFO, COMPRESSED_IMAGE, IMAGE, RosFacts
from tiekd_ros.doctor.findings import ERROR, OK, WARN, Finding
from tiekd_ros.doctor.nodes import check_companion_node, check_depth, check_depth_node
from tiekd_ros.doctor.surroundings import check_ros, check_transports
from tiekd_ros.errors import InvalidSettingError

CAMERA, NODE = "/driver", "/tiekd/depth_node"
INFO = {
    "frame_id": "camera", "stamped": True, "age_s": 0.01, "width": 640, "height": 480,
    "distortion_model": "plumb_bob", "d": [0.0] * 5,
    "k": [500.0, 0.0, 320.0, 0.0, 500.0, 240.0, 0.0, 0.0, 1.0],
    "p": [500.0, 0.0, 320.0, 0.0, 0.0, 500.0, 240.0, 0.0, 0.0, 0.0, 1.0, 0.0],
    "binning": [0, 0], "roi": [0, 0, 0, 0],
}  # fmt: skip
VIEW = {
    "frame_id": "camera", "stamped": True, "age_s": 0.01, "width": 640, "height": 480,
    "encoding": "rgb8", "fault": "",
}  # fmt: skip
DEPTH = {**VIEW, "encoding": "32FC1", "known_share": 0.97, "median_m": 2.0}


def end(node: str, kind: str, reliability="reliable", durability="volatile") -> dict[str, str]:
    return {"node": node, "type": kind, "reliability": reliability, "durability": durability}


def topic(name: str, kind: str, by: str, to: str, last: dict[str, Any], **more: Any) -> Any:
    return {
        "name": name, "type": kind, "count": 90, "rate_hz": 30.0, "bytes": 921600, "last": last,
        "publishers": [end(by, kind)], "subscribers": [end(to, kind)], **more,
    }  # fmt: skip


def facts(**more: Any) -> dict[str, Any]:
    """Return the probe's JSON where all is well."""
    return {
        "rmw": "rmw_fastrtps_cpp",
        "domain": 7,
        "namespace": "/tiekd",
        "nodes": [CAMERA, NODE],
        "published": [
            {"name": "/camera/image_raw", "types": [IMAGE]},
            {"name": "/camera/camera_info", "types": [CAMERA_INFO]},
            {"name": "/tiekd/depth", "types": [IMAGE]},
        ],
        "heard": {"image": ["/camera/image_raw"], "camera_info": ["/camera/camera_info"]},
        "topics": {
            "image": topic("/camera/image_raw", IMAGE, CAMERA, NODE, VIEW),
            "camera_info": topic("/camera/camera_info", CAMERA_INFO, CAMERA, NODE, INFO),
            "depth": topic("/tiekd/depth", IMAGE, NODE, "/planner", DEPTH),
            "clock": {**topic("/clock", "", "", "", {}), "publishers": [], "subscribers": []},
        },
        "managed": {"depth_node": {"name": NODE, "state": "active", "parameters": {}}},
        "diagnostics": {NODE: {"level": 0, "message": "publishing depth", "values": {}}},
        **more,
    }


def ros(changes: dict[str, dict[str, Any]] | None = None, **more: Any) -> RosFacts:
    """Return facts with changes of topics by role; those of `last` are merged into it."""
    values = facts(**more)
    for role, change in (changes or {}).items():
        of = values["topics"][role]
        last = change.pop("last", {})
        of.update(change)
        of["last"] = None if last is None else {**of["last"], **last}
    return RosFacts.from_json(values)


def node(**parameters: Any) -> dict[str, Any]:
    return {"depth_node": {"name": NODE, "state": "active", "parameters": parameters}}


def worst(findings: Any) -> Finding:
    """Return the gravest finding; every one has a remedy unless all is well."""
    found = list(findings)
    assert all(bool(each.remedy) == (each.level != OK) for each in found), found
    return max(found, key=lambda each: [OK, WARN, ERROR].index(each.level))


def test_all_is_well():
    it = ros()
    assert worst(check_image(it, "")).level == OK
    assert worst(check_camera_info(it, "")).level == OK
    assert worst(check_depth_node(it)).level == OK
    assert worst(check_depth(it, 0)).what == (
        "/tiekd/depth: 30.0 Hz, 640x480 32FC1, 97% of the pixels known, median 2.00 m"
    )
    assert focal_px(it) == (500.0, 640)


@pytest.mark.parametrize(
    ("change", "level", "text"),
    [
        ({"k": [0.0] * 9}, WARN, "uncalibrated"),
        ({"k": [None, *INFO["k"][1:]]}, WARN, "uncalibrated"),
        ({"width": 0}, WARN, "has no size"),
        ({"k": [500.0, 0.0, 700.0, *INFO["k"][3:]]}, WARN, "(700, 240) lies outside"),
        ({"k": [20.0, *INFO["k"][1:]]}, WARN, "173 degrees"),
        ({"k": [9e3, *INFO["k"][1:]]}, WARN, "4 degrees"),
        ({"width": 1280, "height": 960}, WARN, "K and P are scaled"),
        ({"width": 640, "height": 640}, ERROR, "another shape"),
        ({"d": [0.1, 0.0, 0.0, 0.0, 0.0]}, WARN, "not rectified"),
        ({"binning": [2, 2], "width": 1280, "height": 960}, OK, "1280x960"),
        ({"roi": [100, 50, 640, 480], "width": 1280, "height": 960}, OK, "1280x960"),
    ],
)
def test_a_calibration_that_cannot_be_right(change, level, text):
    finding = worst(check_camera_info(ros({"camera_info": {"last": change}}), ""))
    assert (finding.level, text in finding.what) == (level, True), finding


def test_distortion_is_no_fault_of_rectified_images():
    bent = {"camera_info": {"last": {"d": [0.1] * 5}}}
    assert worst(check_camera_info(ros(bent), "")).level == WARN
    assert worst(check_camera_info(ros(bent, managed=node(rectify=True)), "")).level == OK


@pytest.mark.parametrize(("rectify", "level"), [(False, WARN), (True, ERROR)])
def test_a_missing_calibration_is_an_error_where_it_is_needed(rectify, level):
    published = [{"name": "/camera/left/camera_info", "types": [CAMERA_INFO]}]
    missing = {"camera_info": {"publishers": [], "type": "", "last": None, "count": 0}}
    it = ros(missing, managed=node(rectify=rectify), published=published)
    finding = worst(check_camera_info(it, ""))
    assert finding.level == level
    assert "camera_info_topic:=/camera/left/camera_info" in finding.remedy


def test_the_nearest_names_come_first_and_our_own_never():
    names = ["/a/thermal", "/camera/image_rect", "/tiekd/depth", "/tiekd/confidence"]
    published = [{"name": name, "types": [IMAGE]} for name in names]
    it = ros({"image": {"publishers": [], "type": "", "count": 0}}, published=published)
    remedy = worst(check_image(it, "")).remedy
    assert remedy.startswith("there is /camera/image_rect, /a/thermal: ")
    assert "image_topic:=/camera/image_rect" in remedy


def test_where_no_image_is_in_sight_it_speaks_of_the_domain():
    it = ros({"image": {"publishers": [], "type": "", "count": 0}}, published=[])
    assert "ROS_DOMAIN_ID (here 7)" in worst(check_image(it, "")).remedy


def test_compressed_images_beside_the_topic():
    published = [{"name": "/camera/image_raw/compressed", "types": [COMPRESSED_IMAGE]}]
    it = ros({"image": {"publishers": [], "type": "", "count": 0}}, published=published)
    assert "image_transport: compressed" in worst(check_image(it, "")).remedy


@pytest.mark.parametrize(
    ("change", "level", "text"),
    [
        ({"count": 0, "last": None}, ERROR, "nothing arrives"),
        ({"last": {"fault": "encoding 'xyz' is not supported"}}, ERROR, "'xyz'"),
        ({"last": {"stamped": False}}, WARN, "no stamps"),
        ({"last": {"age_s": 3600.0}}, WARN, "3600 s behind"),
        ({"last": {"age_s": -60.0}}, WARN, "60 s ahead"),
    ],
)
def test_images_that_cannot_be_used(change, level, text):
    finding = worst(check_image(ros({"image": change}), ""))
    assert (finding.level, text in finding.what) == (level, True), finding


@pytest.mark.parametrize("policy", ["reliability", "durability"])
def test_one_of_two_publishers_that_is_not_heard_is_a_warning(policy):
    weak = {"reliability": "best_effort"} if policy == "reliability" else {}
    strong = {"durability": "transient_local"}
    publishers = [end(CAMERA, IMAGE, **strong), end("/other", IMAGE, **strong | weak)]
    if policy == "durability":
        publishers[1]["durability"] = "volatile"
    it = ros({"image": {"publishers": publishers, "subscribers": [end(NODE, IMAGE, **strong)]}})
    levels = {each.level for each in check_image(it, "")}
    assert levels == {WARN}
    assert f"input_{policy}: auto" in next(check_image(it, "")).remedy
    alone = ros(
        {"image": {"publishers": publishers[1:], "subscribers": [end(NODE, IMAGE, **strong)]}}
    )
    assert worst(check_image(alone, "")).level == ERROR


@pytest.mark.parametrize(
    ("state", "message", "remedy"),
    [
        ("", "", "start it again"),
        ("inactive", "", "ros2 lifecycle set /tiekd/depth_node activate"),
        ("unconfigured", "cannot configure: no disk", "mend that"),
        ("finalized", "", "start it again"),
    ],
)
def test_a_node_that_does_not_work(state, message, remedy):
    managed = {"depth_node": {"name": NODE, "state": state, "parameters": {}}}
    said = {NODE: {"level": 2, "message": message, "values": {}}}
    finding = worst(check_depth_node(ros(managed=managed, diagnostics=said)))
    assert finding.level == ERROR
    assert message in finding.what
    assert remedy in finding.remedy


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
    silent = {"depth": {"count": 0, "rate_hz": None, "last": None}}
    assert "above" in worst(check_depth(ros(silent), 1)).remedy
    assert "log" in worst(check_depth(ros(silent), 0)).remedy


def test_images_that_get_lost_on_the_way_are_seen_by_their_camera_info(tmp_path):
    it = ros({"image": {"rate_hz": 9.0}})
    finding = worst(check_transports({}, it, shared_memory=tmp_path))
    assert finding.level == WARN
    assert "images (922 kB) come at 9.0 Hz, camera_info at 30.0 Hz" in finding.what
    assert "FASTDDS_BUILTIN_TRANSPORTS" in finding.remedy
    assert worst(check_transports({}, ros(), shared_memory=tmp_path)).level == OK


def test_transports_without_shared_memory(tmp_path):
    finding = worst(check_transports({}, None, shared_memory=tmp_path / "none"))
    assert finding.level == WARN
    assert "--ipc=host" in finding.remedy


def test_ros_that_does_not_discover():
    finding = worst(check_ros({"ROS_AUTOMATIC_DISCOVERY_RANGE": "off"}, ros(), ""))
    assert finding.level == ERROR
    assert "LOCALHOST" in finding.remedy
    sourced = worst(check_ros({"ROS_DISTRO": "jazzy"}, ros(), ""))
    assert (sourced.level, "Jazzy, rmw_fastrtps_cpp, domain 7" in sourced.what) == (OK, True)


@pytest.mark.parametrize("field", ["namespace", "image_topic", "camera_info_topic"])
@pytest.mark.parametrize("name", ["no name", "a//b", "/2nd", "a/ü"])
def test_a_name_that_ros_cannot_have_is_refused(field, name):
    with pytest.raises(InvalidSettingError, match=name):
        Complaint(**{field: name})
    assert getattr(Complaint(**{field: "/robot1/front"}), field) == "/robot1/front"
