"""Which of several cameras is named where the one that was asked for is silent."""

from __future__ import annotations

from sensor_msgs.msg import CameraInfo, Image

from ros_helpers.camera import InputBench
from ros_helpers.waiting import wait_for
from tiekd_ros.nodes.camera.hints import why_no_image, why_no_info
from tiekd_ros.nodes.camera.topic import CameraTopic, Quality

QUALITY = Quality("auto", "auto", 5)


def test_the_camera_nearest_in_namespace_is_named_first(bench: InputBench) -> None:
    asked = f"{bench.namespace}/front/left/image"
    for camera in ("a", "front/left", "front"):
        bench.camera(Image, f"{camera}/image_rect")
        bench.camera(CameraInfo, f"{camera}/camera_info")
    node = bench.node("listener")
    image = CameraTopic(node, Image, asked, QUALITY, print)
    info = CameraTopic(node, CameraInfo, f"{asked}_info", QUALITY, print)
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
