"""Rules about the camera's topics: publishers, messages, calibration, and topics that are meant."""

from __future__ import annotations

from helpers.ros_facts import (
    CAMERA,
    INFO,
    NODE,
    UNPUBLISHED,
    depth_node,
    endpoint,
    ros_facts,
    worst,
)
from tiekd_ros.diagnosis.camera import (
    check_camera_info,
    check_image,
    missing_image_remedy,
    missing_info_remedy,
)
from tiekd_ros.diagnosis.facts import CAMERA_INFO, COMPRESSED_IMAGE, ERROR, IMAGE, OK, WARN


def test_a_camera_as_it_should_be():
    ros = ros_facts()
    assert "(Image, reliable, volatile): 30.0 Hz, 640x480" in worst(check_image(ros, "")).what
    latched = [endpoint(CAMERA, CAMERA_INFO, durability="transient_local")]
    ros = ros_facts({"camera_info": {"publishers": latched}})
    finding = worst(check_camera_info(ros, ""))
    assert finding.level == OK
    text = "(CameraInfo, reliable, transient_local): 30.0 Hz, 640x480, fx 500.0, fy 500.0 px"
    assert text in finding.what


def test_a_calibration_that_cannot_be_right():
    k = INFO["k"]
    large = {"width": 1280, "height": 960}
    for change, level, text in (
        ({"k": [0.0] * 9}, WARN, "uncalibrated"),
        ({"k": [None, *k[1:]]}, WARN, "uncalibrated"),
        ({"width": 0}, WARN, "says 0 x 480 pixels"),
        ({"k": [500.0, 0.0, 700.0, *k[3:]]}, WARN, "cannot belong to images of 640x480"),
        ({"k": [20.0, *k[1:]]}, WARN, "cannot belong to images of 640x480"),
        ({"k": [9e4, *k[1:]]}, WARN, "cannot belong to images of 640x480"),
        ({**large, "k": [1e3, 0.0, 640.0, 0.0, 1e3, 480.0, *k[6:]]}, WARN, "K and P are scaled"),
        ({"width": 640, "height": 640}, ERROR, "another shape"),
        ({"d": [0.1, 0.0, 0.0, 0.0, 0.0]}, WARN, "not rectified: the lens moves their border"),
        ({"d": [1e-6, 0.0, 0.0, 0.0, 0.0]}, OK, "fx 500.0"),
        ({"d": [0.1], "distortion_model": "lens"}, WARN, "distortion model 'lens' is not known"),
        ({"binning": [2, 2], **large}, OK, "1280x960"),
        ({"roi": [100, 50, 640, 480], **large}, OK, "1280x960"),
    ):
        finding = worst(check_camera_info(ros_facts({"camera_info": {"last": change}}), ""))
        assert (finding.level, text in finding.what) == (level, True), finding


def test_distortion_is_no_fault_of_rectified_images():
    distorted = {"camera_info": {"last": {"d": [0.1] * 5}}}
    assert worst(check_camera_info(ros_facts(distorted), "")).level == WARN
    rectifying = depth_node(rectify=True)
    ros = ros_facts(distorted, own_nodes=rectifying)
    assert worst(check_camera_info(ros, "")).level == OK
    rectified = {"image": {"name": "/camera/image_rect"}}
    assert worst(check_camera_info(ros_facts({**distorted, **rectified}), "")).level == OK
    finding = worst(check_camera_info(ros_facts(rectified, own_nodes=rectifying), ""))
    assert "/camera/image_rect is rectified already" in finding.what


def test_a_missing_calibration_is_an_error_where_it_is_needed():
    published = {"/camera/left/camera_info": [CAMERA_INFO]}
    for rectify, level in ((False, WARN), (True, ERROR)):
        for change, text in (
            (UNPUBLISHED, "no node publishes"),
            ({"last": None, "count": 0}, "nothing arrives"),
        ):
            node = depth_node(rectify=rectify)
            ros = ros_facts({"camera_info": change}, own_nodes=node, published=published)
            finding = worst(check_camera_info(ros, ""))
            assert finding.level == level
            assert text in finding.what
    ros = ros_facts({"camera_info": UNPUBLISHED}, published=published)
    assert "camera_info_topic:=/camera/left/camera_info" in worst(check_camera_info(ros, "")).remedy


def test_the_topic_nearest_in_namespace_is_named_first_and_then_the_likest():
    cameras = ("/a", "/front/left", "/front")
    published = {f"{camera}/image_rect": [IMAGE] for camera in cameras}
    published |= {f"{camera}/camera_info": [CAMERA_INFO] for camera in cameras}
    remedy = missing_image_remedy("/front/left/image", IMAGE, published, own=())
    assert remedy.startswith(
        "there are /front/left/image_rect, /front/image_rect, /a/image_rect: "
        "remap image:=/front/left/image_rect (launch files: image_topic:="
    )
    remedy = missing_info_remedy("/front/left/image/compressed", published, own=())
    assert remedy.startswith("there are /front/left/camera_info, /front/camera_info, ")
    published = {name: [IMAGE] for name in ("/c/thermal", "/c/image_rect")}
    remedy = missing_image_remedy("/c/image_raw", IMAGE, published, own=())
    assert remedy.startswith("there are /c/image_rect, /c/thermal: ")


def test_the_nodes_own_images_are_no_cameras_whatever_they_are_called():
    front = "/front/depth_node"
    for names, more in (
        (["/a/thermal", "/tiekd/depth", "/tiekd/confidence"], {}),
        (["/a/thermal", "/camera/depth"], {"outputs": ["/camera/depth"]}),
        (["/a/thermal", "/front/confidence"], {"nodes": [CAMERA, front], "own_nodes": {}}),
    ):
        published = {name: [IMAGE] for name in names} | {"/front/camera_info": [CAMERA_INFO]}
        ros = ros_facts(
            {"image": UNPUBLISHED, "camera_info": UNPUBLISHED}, published=published, **more
        )
        assert worst(check_image(ros, "")).remedy.startswith("there is /a/thermal: ")
    assert "/front/camera_info" not in worst(check_camera_info(ros, "")).remedy


def test_without_any_image_the_domains_are_named():
    ros = ros_facts({"image": UNPUBLISHED}, published={}, other_domains={5: 2})
    remedy = worst(check_image(ros, "")).remedy
    assert "(here 7; this machine has programs with ROS in domain 5)" in remedy


def test_the_other_transport_beside_the_topic_is_named():
    published = {"/camera/image_raw/compressed": [COMPRESSED_IMAGE]}
    ros = ros_facts({"image": UNPUBLISHED}, published=published)
    assert "set image_transport to compressed" in worst(check_image(ros, "")).remedy
    remedy = missing_image_remedy("/c/x/compressed", COMPRESSED_IMAGE, {"/c/x": [IMAGE]}, own=())
    assert remedy == "there is /c/x: set image_transport to raw"


def test_images_that_cannot_be_used():
    for change, level, text in (
        ({"count": 0, "last": None}, ERROR, "nothing arrives"),
        ({"last": {"fault": "encoding 'xyz' is not supported"}}, ERROR, "'xyz'"),
        ({"last": {"stamped": False}}, WARN, "no stamps"),
        ({"last": {"age_s": 3600.0}}, WARN, "3600 s behind"),
        ({"last": {"age_s": -60.0}}, WARN, "60 s ahead"),
    ):
        finding = worst(check_image(ros_facts({"image": change}), ""))
        assert (finding.level, text in finding.what) == (level, True), finding


def test_a_publisher_that_is_not_received_is_an_error_only_where_no_other_is():
    requested = {"reliability": "reliable", "durability": "transient_local"}
    good = endpoint(CAMERA, IMAGE, **requested)
    for policy, offer in (("reliability", "best_effort"), ("durability", "volatile")):
        weak = endpoint("/other", IMAGE, **{**requested, policy: offer})
        subscribers = [endpoint(NODE, IMAGE, **requested)]
        for publishers, level in (([good, weak], WARN), ([weak], ERROR)):
            ros = ros_facts({"image": {"publishers": publishers, "subscribers": subscribers}})
            finding = next(check_image(ros, ""))
            assert finding.level == level
            assert f"/other publishes {ros.topics['image'].name}, but is not received" in (
                finding.what
            )
            assert f"offers {offer}, {requested[policy]} is requested" in finding.what
            assert f"set input_{policy} to auto" in finding.remedy


def test_a_topic_that_the_node_does_not_subscribe_to():
    ros = ros_facts(inputs={"image": ["/elsewhere"]})
    finding = worst(check_image(ros, "/camera/image_raw"))
    assert finding.level == ERROR
    assert finding.what == "depth_node subscribes to /elsewhere, not to /camera/image_raw"


def test_publishers_of_another_type_or_more_than_one():
    other = "std_msgs/msg/String"
    wrong, right = endpoint("/x", other), endpoint(CAMERA, IMAGE)
    for publishers, level in (([wrong], ERROR), ([wrong, right], WARN)):
        finding = worst(check_image(ros_facts({"image": {"publishers": publishers}}), ""))
        assert finding.level == level
        assert f"as {other}, not as {IMAGE}" in finding.what
    compressed = [endpoint("/x", COMPRESSED_IMAGE)]
    ros = ros_facts({"image": {"publishers": compressed}})
    assert worst(check_image(ros, "")).remedy == (
        "set image_transport to compressed and remap image/compressed:=/camera/image_raw"
    )
    ros = ros_facts({"image": {"publishers": [endpoint("/a", IMAGE), endpoint("/b", IMAGE)]}})
    finding = worst(check_image(ros, ""))
    assert finding.level == WARN
    assert "2 publishers of /camera/image_raw (/a, /b)" in finding.what


def test_a_topic_that_is_only_guessed_is_no_error():
    unpublished = {"image": UNPUBLISHED, "camera_info": UNPUBLISHED}
    for state in ("inactive", ""):
        ros = ros_facts(unpublished, inputs={}, own_nodes=depth_node(state))
        for finding in (worst(check_image(ros, "")), worst(check_camera_info(ros, ""))):
            assert finding.level == WARN
            assert "which topic is meant is not known" in finding.what
        assert worst(check_image(ros, "/camera/image_raw")).level == ERROR
    assert worst(check_image(ros_facts(unpublished, inputs={}), "")).level == ERROR
