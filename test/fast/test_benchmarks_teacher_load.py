"""The load benchmark of the teacher: its account of frames tells the truth."""

from __future__ import annotations

import numpy as np
import teacher_load_models as models
from teacher_load import account_goal, soak_goal, throughput_goal
from teacher_load_robots import FrameLog

from tiekd_ros.core.images import shrink_map
from tiekd_ros.framelog import Label

LABELS = {"frames": 9, "lost": 0, "twice": 0, "foreign": 0, "rejected": 0}


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


def test_other_labels_second_ones_and_refusals_are_told_apart():
    def label(robot: int, frame: int) -> Label:
        depth = models.ramp(1.0, 9.0)
        models.write_mark(depth, models.stamp_of(robot, frame))
        return Label(depth, "teacher", "1")

    frames = FrameLog(robot=5, images=[b""], window=4)
    frames.stop_logging()
    frames.put_label(1, label(5, 1))
    frames.put_label(2, label(5, 1))  # frame 2 got the label of frame 1
    frames.put_label(3, label(4, 3))  # and frame 3 that of another robot
    assert not frames.is_done()
    frames.reject(4, "teacher_refused")
    assert frames.is_done()
    assert frames.account() == {
        "frames": 4, "labelled": 1, "lost": 2, "twice": 1, "foreign": 1,
        "rejected": {"teacher_refused": 1},
    }  # fmt: skip


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
