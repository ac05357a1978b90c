"""How sure the student was, by the confidence images that came at about a frame's time."""

from __future__ import annotations

import numpy as np
import pytest
from sensor_msgs.msg import Image

from ros_helpers.messages import header
from tiekd_ros.nodes.common.conversions import ImageCanvas
from tiekd_ros.nodes.companion.frame_logger import MeanConfidence

MS = 1_000_000
SECOND = 1000 * MS


def confidence(at_ns: int, *values: float) -> Image:
    stamped = header()
    stamped.stamp.sec, stamped.stamp.nanosec = divmod(at_ns, SECOND)
    return ImageCanvas().paint(np.array([values], np.float32), stamped)


@pytest.fixture
def mean() -> MeanConfidence:
    return MeanConfidence()


def test_it_is_the_mean_of_the_latest_image_for_frames_within_a_second(
    mean: MeanConfidence,
) -> None:
    assert mean.at(5 * SECOND) is None
    mean.add(confidence(5 * SECOND, 0.25))
    assert mean.at(4 * SECOND) == mean.at(6 * SECOND) == 0.25
    assert mean.at(6 * SECOND + 1) is None
    assert mean.at(4 * SECOND - 1) is None


def test_two_images_a_second_are_looked_at(mean: MeanConfidence) -> None:
    mean.add(confidence(5 * SECOND, 0.25))
    mean.add(confidence(5 * SECOND + 400 * MS, 0.75))
    assert mean.at(5 * SECOND) == 0.25
    mean.add(confidence(5 * SECOND + 500 * MS, 0.75))
    assert mean.at(5 * SECOND) == 0.75


def test_a_clock_that_went_back_brings_the_next_image(mean: MeanConfidence) -> None:
    mean.add(confidence(5 * SECOND, 0.25))
    mean.add(confidence(2 * SECOND, 0.5))
    assert mean.at(2 * SECOND) == 0.5


def test_a_student_that_does_not_know_how_sure_it_is_is_no_number(
    mean: MeanConfidence,
) -> None:
    mean.add(confidence(5 * SECOND, 0.25))
    mean.add(confidence(6 * SECOND, np.nan))
    assert mean.at(6 * SECOND) is None


def test_what_cannot_be_read_changes_nothing(mean: MeanConfidence) -> None:
    mean.add(confidence(5 * SECOND, 0.25))
    for change in ({"encoding": "rgb8"}, {"data": b""}, {"width": 0, "height": 0, "data": b""}):
        broken = confidence(6 * SECOND, 0.5)
        for name, value in change.items():
            setattr(broken, name, value)
        mean.add(broken)
    assert mean.at(5 * SECOND) == 0.25
