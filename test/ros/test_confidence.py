"""How sure the student was, by the confidence images that came at about a frame's time."""

from __future__ import annotations

import numpy as np
import pytest
from sensor_msgs.msg import Image

from ros_helpers.messages import header
from tiekd_ros.nodes.common.conversions import ImageCanvas
from tiekd_ros.nodes.companion.frame_logger import ConfidenceListener

MS = 1_000_000
SECOND = 1000 * MS


def confidence(at_ns: int, *values: float) -> Image:
    stamped = header()
    stamped.stamp.sec, stamped.stamp.nanosec = divmod(at_ns, SECOND)
    return ImageCanvas().paint(np.array([values], np.float32), stamped)


@pytest.fixture
def listener() -> ConfidenceListener:
    return ConfidenceListener()


def test_it_is_the_mean_of_the_latest_image_for_frames_within_a_second(
    listener: ConfidenceListener,
) -> None:
    assert listener.at(5 * SECOND) is None
    listener.hear(confidence(5 * SECOND, 0.25))
    assert listener.at(4 * SECOND) == listener.at(6 * SECOND) == 0.25
    assert listener.at(6 * SECOND + 1) is None
    assert listener.at(4 * SECOND - 1) is None


def test_two_images_a_second_are_looked_at(listener: ConfidenceListener) -> None:
    listener.hear(confidence(5 * SECOND, 0.25))
    listener.hear(confidence(5 * SECOND + 400 * MS, 0.75))
    assert listener.at(5 * SECOND) == 0.25
    listener.hear(confidence(5 * SECOND + 500 * MS, 0.75))
    assert listener.at(5 * SECOND) == 0.75


def test_a_clock_that_went_back_brings_the_next_image(listener: ConfidenceListener) -> None:
    listener.hear(confidence(5 * SECOND, 0.25))
    listener.hear(confidence(2 * SECOND, 0.5))
    assert listener.at(2 * SECOND) == 0.5


def test_a_student_that_does_not_know_how_sure_it_is_is_no_number(
    listener: ConfidenceListener,
) -> None:
    listener.hear(confidence(5 * SECOND, 0.25))
    listener.hear(confidence(6 * SECOND, np.nan))
    assert listener.at(6 * SECOND) is None


def test_what_cannot_be_read_changes_nothing(listener: ConfidenceListener) -> None:
    listener.hear(confidence(5 * SECOND, 0.25))
    for change in ({"encoding": "rgb8"}, {"data": b""}, {"width": 0, "height": 0, "data": b""}):
        broken = confidence(6 * SECOND, 0.5)
        for name, value in change.items():
            setattr(broken, name, value)
        listener.hear(broken)
    assert listener.at(5 * SECOND) == 0.25
