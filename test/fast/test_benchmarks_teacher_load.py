"""The load benchmark of the teacher: its account of frames tells the truth."""

from __future__ import annotations

import numpy as np
import pytest
import teacher_load_models as models
from teacher_load import account_goal, soak_goal, throughput_goal
from teacher_load_robots import FrameLog

from tiekd_ros.core.images import shrink_map

LABELS = {"frames": 9, "lost": 0, "twice": 0, "foreign": 0, "rejected": 0}


@pytest.fixture
def frame_log() -> FrameLog:
    return FrameLog(robot=5, images=[b""], window=3)


def test_a_mark_survives_the_wire_and_a_smaller_label():
    for stamp in (
        models.stamp_of(0, 1),
        models.stamp_of(63, 5000),
        models.stamp_of(511, 2**18 - 1),
    ):
        depth = models.ramp(1.0, 9.0)
        models.write_mark(depth, stamp)
        received = depth.astype(np.float16).astype(np.float32)
        assert models.read_mark(received) == stamp
        assert models.read_mark(shrink_map(received, 160)) == stamp


def test_labels_of_another_frame_and_second_ones_are_noticed(frame_log):
    def label(robot: int, frame: int) -> np.ndarray:
        depth = models.ramp(1.0, 9.0)
        models.write_mark(depth, models.stamp_of(robot, frame))
        return depth

    frame_log.stop_logging()
    frame_log.put_label(1, label(5, 1), "teacher", "1")
    frame_log.put_label(2, label(5, 1), "teacher", "1")  # frame 2 got the label of frame 1
    assert not frame_log.is_done()
    frame_log.put_label(3, label(4, 3), "teacher", "1")  # and frame 3 that of another robot
    assert frame_log.is_done()
    account = frame_log.account()
    assert (account["frames"], account["labelled"]) == (3, 1)
    assert (account["lost"], account["twice"], account["foreign"]) == (2, 1, 1)


def test_a_refused_frame_is_not_lost(frame_log):
    frame_log.stop_logging()
    for frame in (1, 2, 3):
        frame_log.reject(frame, "teacher_refused")
    account = frame_log.account()
    assert (account["lost"], account["rejected"]) == (0, {"teacher_refused": 3})


def test_a_frame_without_its_own_label_misses_the_goal():
    assert account_goal("tiny: ", [LABELS]).met
    goal = account_goal("tiny: ", [LABELS, {**LABELS, "rejected": 2}])
    assert not goal.met
    assert goal.measured == "0, 0, 0, 2 of 18"


def test_a_soak_meets_its_goal_where_the_memory_stays_and_every_frame_is_accounted_for():
    good = {
        "labels": {**LABELS, "labelled": 9}, "MiB after warm-up": 175.0, "lowest": 0.9,
        "highest": 1.01, "samples outside": 6, "% of the widest 10 s": 2.0, "% drift": 1.0,
    }  # fmt: skip
    assert soak_goal(good, 30.0).met
    assert not soak_goal({**good, "% of the widest 10 s": 6.0}, 30.0).met
    for wrong in ("lost", "twice", "rejected"):
        assert not soak_goal({**good, "labels": {**LABELS, wrong: 1}}, 30.0).met


def test_throughput_is_judged_by_the_busy_servers_worst():
    loads = [{"robots": n, "rate/bare": r} for n, r in ((1, 0.2), (8, 1.25), (32, 0.5))]
    assert throughput_goal("tiny", loads[:2], "rate/bare").measured == "1.25 x"
    goal = throughput_goal("tiny", loads, "rate/bare")
    assert (goal.measured, goal.met) == ("0.50 x", False)
    without = [{"robots": 8, "rate/batched": None}]  # the teacher takes no batches
    assert throughput_goal("tiny", without, "rate/batched").measured == "-"
