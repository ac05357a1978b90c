"""One topic of the camera with several publishers, of which not all can be heard."""

from __future__ import annotations

from sensor_msgs.msg import Image

from ros_helpers.camera import BEST_EFFORT, RELIABLE, InputBench, quality
from ros_helpers.waiting import wait_for
from tiekd_ros.nodes.camera.topic import CameraTopic, Quality
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
