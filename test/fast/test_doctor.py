"""What the doctor makes of facts: surroundings, cameras and calibrations, without ROS."""

from __future__ import annotations

import pytest

from helpers.probed import CAMERA, INFO, NODE, end, node, ros, worst
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.diagnosis.camera import check_camera_info, check_image, focal_px
from tiekd_ros.diagnosis.environment import check_ros, check_transports
from tiekd_ros.diagnosis.examination import Complaint
from tiekd_ros.diagnosis.facts import CAMERA_INFO, COMPRESSED_IMAGE, ERROR, IMAGE, OK, WARN
from tiekd_ros.diagnosis.nodes import check_depth, check_depth_node


def test_all_is_well():
    it = ros()
    assert worst(check_image(it, "")).level == OK
    assert worst(check_camera_info(it, "")).level == OK
    assert worst(check_depth_node(it)).level == OK
    assert worst(check_depth(it, 0)).what == (
        "/tiekd/depth (Image, reliable, volatile): 30.0 Hz, 640x480 32FC1, "
        "97% of the pixels known, median 2.00 m"
    )
    latched = {"publishers": [end(CAMERA, CAMERA_INFO, "reliable", "transient_local")]}
    text = "(CameraInfo, reliable, transient_local): 30.0 Hz"
    assert text in worst(check_camera_info(ros({"camera_info": latched}), "")).what
    assert "(Image, reliable, volatile): 30.0 Hz, 640x480" in worst(check_image(it, "")).what
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


def test_the_nodes_own_images_are_no_cameras_whatever_they_are_called():
    published = [{"name": name, "types": [IMAGE]} for name in ("/camera/depth", "/a/thermal")]
    it = ros(
        {"image": {"publishers": [], "type": "", "count": 0}},
        published=published,
        made=["/camera/depth"],
    )
    assert worst(check_image(it, "")).remedy.startswith("there is /a/thermal: ")


def test_a_topic_that_the_node_does_not_listen_to():
    finding = worst(check_image(ros(heard={"image": ["/elsewhere"]}), "/camera/image_raw"))
    assert finding.level == ERROR
    assert finding.what == "depth_node listens to /elsewhere, not to /camera/image_raw"


def test_a_topic_of_the_wrong_type():
    wrong = "std_msgs/msg/String"
    finding = worst(check_image(ros({"image": {"publishers": [end(CAMERA, wrong)]}}), ""))
    assert finding.level == ERROR
    assert f"as {wrong}, not as {IMAGE}" in finding.what


def test_two_cameras_on_one_topic():
    both = [end("/a", IMAGE), end("/b", IMAGE)]
    finding = worst(check_image(ros({"image": {"publishers": both}}), ""))
    assert finding.level == WARN
    assert "(/a, /b)" in finding.what


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


@pytest.mark.parametrize("field", ["namespace", "image_topic", "camera_info_topic", "depth_topic"])
@pytest.mark.parametrize("name", ["no name", "a//b", "/2nd", "a/ü"])
def test_a_name_that_ros_cannot_have_is_refused(field, name):
    with pytest.raises(InvalidSettingError, match=name):
        Complaint(**{field: name})
    assert getattr(Complaint(**{field: "/robot1/front"}), field) == "/robot1/front"
