"""What is believed and what is not, where the wire has no say."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.teachers import METRIC, ramp
from tiekd_ros.teacher.errors import TeacherAnswerError
from tiekd_ros.teacher.protocol import (
    AnswerChecks,
    DepthAnswer,
    check_answer,
    read_answer,
    write_answer,
)


def check(depth, confidence=None, size=(64, 48), checks=None):
    check_answer(DepthAnswer(depth, confidence), *size, checks)


def test_depth_of_the_same_view_is_believed_and_what_no_view_has_is_not():
    for size in ((64, 48), (640, 480), (641, 480), (32, 24)):
        check(ramp(), size=size)
    noise = np.random.default_rng(0).normal(2.0, 0.005, (48, 64)).astype(np.float32)
    check(noise)  # a flat wall
    negative, sparse = ramp(), ramp()
    negative[3, 3] = -0.01
    sparse[:, 8:] = np.nan
    check(sparse)
    for depth, checks, words in (
        (ramp(48, 64), None, "48x64 for an image of 64x48"),
        (negative, None, r"-0\.01 m"),
        (sparse, AnswerChecks(min_known_share=0.5), r"12\.\d+% of the depth map is known"),
    ):
        with pytest.raises(TeacherAnswerError, match=words):
            check(depth, checks=checks)


def test_confidence_has_the_shape_of_its_depth_and_lies_between_0_and_1():
    check(ramp(), np.ones((48, 64), np.float32))
    with pytest.raises(TeacherAnswerError, match="agree"):
        check(ramp(), np.ones((24, 32), np.float32))
    with pytest.raises(TeacherAnswerError, match="between 0 and 1"):
        check(ramp(), np.full((48, 64), 1.5, np.float32))


def test_a_depth_of_zero_is_read_as_unknown_and_beyond_fp16_nothing_is_believed():
    depth = ramp()
    depth[5] = 0
    answer = read_answer(write_answer(DepthAnswer(depth), METRIC, "FP32"))
    assert np.isnan(answer.depth[5]).all()
    assert np.isnan(answer.depth).sum() == 65
    answer = read_answer(write_answer(DepthAnswer(ramp() * 1e5), METRIC, "FP16"))
    with pytest.raises(TeacherAnswerError, match="inf"):
        check_answer(answer, 64, 48)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.ClearField("outputs"), "no output `depth`"),
        (lambda m: setattr(m.outputs[0], "datatype", "FP64"), "FP64"),
        (lambda m: m.outputs[0].shape.append(1), "shape"),
        (lambda m: m.outputs[0].shape.__setitem__(0, -48), "shape"),
        (lambda m: m.raw_output_contents.__setitem__(0, bytes(7)), "carries 0 numbers"),
        (lambda m: m.raw_output_contents.__setitem__(0, bytes(8)), "carries 2 numbers"),
        (lambda m: m.ClearField("raw_output_contents"), "carries 0 numbers"),
    ],
)
def test_an_answer_that_breaks_the_protocol_is_not_believed(change, reason):
    message = write_answer(DepthAnswer(ramp()), METRIC, "FP32")
    change(message)
    with pytest.raises(TeacherAnswerError, match=reason):
        read_answer(message)
