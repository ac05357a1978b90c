"""A topic with several publishers, of which not all match, and the cameras named instead."""

from __future__ import annotations

from sensor_msgs.msg import CameraInfo, Image

from ros_helpers.camera import BEST_EFFORT, RELIABLE, InputBench, quality
from ros_helpers.waiting import wait_for
from tiekd_ros.nodes.camera.topic import CameraTopic, Quality, why_no_image, why_no_info
from tiekd_ros.nodes.common.reporting import ERROR, WARN


def test_a_camera_that_is_not_heard_is_an_error_only_where_no_other_is(bench: InputBench) -> None:
    heard, _ = bench.camera(profile=quality(RELIABLE)), bench.camera(profile=quality(BEST_EFFORT))
    node = bench.node("listener")
    topic = CameraTopic(
        node, Image, f"{bench.namespace}/image", Quality("reliable", "auto", 5), print
    )

    def levels() -> list[bytes]:
        topic.check()
        unheard = "is not received: it offers best_effort, reliable is requested"
        return [level for level, text in topic.findings() if unheard in text]

    wait_for(lambda: levels() == [WARN], "a warning", explain=levels)
    bench.remove(heard)
    wait_for(lambda: levels() == [ERROR], "an error", explain=levels)


def test_the_camera_nearest_in_namespace_is_named_first(bench: InputBench) -> None:
    asked = f"{bench.namespace}/front/left/image"
    for camera in ("a", "front/left", "front"):
        bench.camera(Image, f"{camera}/image_rect")
        bench.camera(CameraInfo, f"{camera}/camera_info")
    node = bench.node("listener")
    image = CameraTopic(node, Image, asked, Quality("auto", "auto", 5), print)
    info = CameraTopic(node, CameraInfo, f"{asked}_info", Quality("auto", "auto", 5), print)
    nearest = [f"{bench.namespace}/{camera}" for camera in ("front/left", "front", "a")]
    images = ", ".join(f"{camera}/image_rect" for camera in nearest)
    wait_for(
        lambda: f"there are {images}" in why_no_image(node, image),
        images,
        explain=lambda: why_no_image(node, image),
    )
    assert f"remap image:={nearest[0]}/image_rect" in why_no_image(node, image)
    infos = ", ".join(f"{camera}/camera_info" for camera in nearest)
    wait_for(
        lambda: f"there are {infos}" in why_no_info(node, info, asked),
        infos,
        explain=lambda: why_no_info(node, info, asked),
    )
