"""The code that decides whether goals are met: just within each limit, and just beyond."""

from __future__ import annotations

import math

import loss
import pytest
import student
from harness import Spread
from student import DEPTH_ANYTHING, EAGER, ONNXRUNTIME, OURS, PUBLISHED, TORCH, Case

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.student.runtimes.base import Prediction, StageTimes


def spread(ms: float) -> Spread:
    return Spread(ms, ms, ms, 1)


def rows(**ms: float) -> list[dict[str, object]]:
    """Return a table's rows, ours at 20 ms in torch and 10 ms in onnxruntime unless told."""
    found = {"torch": 20.0, "onnx": 10.0, "published": 1200.0, "anything": 300.0, **ms}
    named = [
        (OURS, TORCH, found["torch"]),
        (OURS, ONNXRUNTIME, found["onnx"]),
        (OURS, EAGER, 40.0),
        (PUBLISHED, TORCH, found["published"]),
        (DEPTH_ANYTHING, TORCH, found["anything"]),
    ]
    return [
        {"network": network, "runtime": runtime, "ms": spread(ms), "net": None, "% of peak": 50.0}
        for network, runtime, ms in named
    ]


def test_limits_of_the_student():
    for index, ms, is_met in (
        (0, {"published": 1200.0}, True),  # 60 x torch
        (0, {"published": 1199.0}, False),
        (2, {"anything": 300.0}, True),  # 15 x torch
        (2, {"anything": 299.0}, False),
        (4, {"onnx": 10.0}, True),  # half of torch
        (4, {"onnx": 10.1}, False),
        (5, {"torch": 60.0, "onnx": 30.0}, True),
        (5, {"torch": 60.0, "onnx": 30.1}, False),
    ):
        goals = student.judge(rows(**ms), 2)
        assert len(goals) == 6
        assert goals[index].met is is_met


def test_without_a_row_or_with_other_threads_there_is_no_verdict():
    assert [goal.met for goal in student.judge([], 2)] == [None] * 6
    goals = student.judge(rows(), 1)
    assert [goal.met for goal in goals] == [True, None, True, None, True, None]
    assert [goal.measured for goal in goals if goal.met is None] == ["-"] * 3


def test_ratios_are_taken_at_the_same_size_and_runtime(monkeypatch):
    monkeypatch.setattr(Case, "cost", lambda case: (1.0, 1.0))
    whole = {
        Case(OURS, TORCH, 480, 640): 8.0,
        Case(OURS, ONNXRUNTIME, 480, 640): 4.0,
        Case(OURS, TORCH, 224, 320): 2.0,
        Case(OURS, EAGER, 224, 320): 3.0,
        Case(PUBLISHED, TORCH, 480, 640): 80.0,
        Case(PUBLISHED, TORCH, 224, 320): 40.0,
        Case(PUBLISHED, ONNXRUNTIME, 480, 640): 60.0,
        Case(PUBLISHED, ONNXRUNTIME, 224, 320): 30.0,
        Case(DEPTH_ANYTHING, TORCH, 518, 686): 120.0,  # at its own size: ours at the image's
    }
    times = {case: student.Times([ms], []) for case, ms in whole.items()}
    found = [row["x ours"] for row in student.make_rows(times, {}, math.nan)]
    assert found == [1.0, 1.0, 1.0, 1.5, 10.0, 20.0, 15.0, None, 15.0]


def test_frames_of_the_warm_up_count_neither_for_the_whole_nor_for_the_network():
    times = StageTimes(0.0, 1.0, 0.0)
    case = Case(OURS, TORCH)
    found = student.time_cases({case: lambda _: Prediction(None, None, times)}, quick=True)[case]
    assert len(found.whole) == len(found.network) == 30


def test_limits_of_the_loss():
    for faster, leaner, apart, verdicts in (
        (3.0, 4.0, 1e-5, [True, True, True]),
        (2.99, 4.0, 1e-5, [False, True, True]),
        (3.0, 3.99, 1e-5, [True, False, True]),
        (3.0, 4.0, 1.1e-5, [True, True, False]),
    ):
        row = {"faster": faster, "less": leaner, "apart (float64)": apart}
        assert [goal.met for goal in loss.goals_of(loss.CASES[0], row)] == verdicts
    ms = {loss.STRAIGHTFORWARD: 90.0, loss.CHANNELS_FIRST: 60.0, loss.FUSED: 20.0}
    assert loss.times_faster({way: spread(value) for way, value in ms.items()}) == 3.0


def test_limits_of_the_node():
    pytest.importorskip("rclpy")
    import node
    from node_bench import Latency

    def latency(p95: float = 10.0, dropped: int = 0, gap: float = 100.0) -> Latency:
        return Latency(p95, p95, p95, 100, dropped, gap)

    for bare, delay, is_met in (  # two milliseconds, or a share
        (10.0, 12.0, True), (10.0, 12.1, False), (40.0, 46.0, True), (40.0, 46.1, False)
    ):  # fmt: skip
        ms = spread(bare)
        found = node.Idle("torch", latency(), spread(delay), spread(1.0), 11.0, ms, ms, {})
        assert node.overhead_goal("480x640", found).met is is_met
    for dropped, gap, verdicts in (
        (0, 200.0, [True, True]), (1, 200.0, [False, True]), (0, 200.1, [True, False])
    ):  # fmt: skip
        found = node.Swapping(10.0, latency(), latency(dropped=dropped, gap=gap), 100, 9.0)
        assert [goal.met for goal in node.swap_goals(found)] == verdicts
    cpu, cuda = "torch, cpu, 1 thread", "torch, cuda:0, CUDA graph, half precision"
    for runtime, before, after, p95, is_met in (
        (cpu, 8.0, 8.0, 10.0, True),  # 1.25 x
        (cpu, 8.0, 8.0, 10.1, False),
        (cpu, 8.0, 20.0, 10.1, False),  # one of the two was disturbed
        (cpu, 20.0, 8.0, 10.1, False),
        (cuda, 10.0, 10.0, 12.0, True),
        (cuda, 10.0, 10.0, 12.1, False),
    ):
        stretches = latency(before), latency(p95), latency(after)
        found = node.Training(runtime, *stretches, 30, 30, 9.0, 0.0, "promoted")
        assert node.training_goals(found)[0].met is is_met
    for steps, verdict, is_met in (
        (30, "promoted", True),
        (30, "refused", True),
        (29, "promoted", False),
        (30, "failed", False),
        (30, "not over in time", False),
    ):
        found = node.Training(cpu, *[latency()] * 3, steps, 30, 9.0, 0.0, verdict)
        assert node.training_goals(found)[1].met is is_met


def test_a_round_that_is_refused_or_breaks_is_counted_and_loses_no_other(monkeypatch, tmp_path):
    pytest.importorskip("rclpy")
    import distill

    times = distill.RoundTimes
    accepted = times("promoted", dict.fromkeys(distill.STAGES, 5.0), 30.0, 90.0, 0.1, 0.5)
    refused = times("refused: no better", abs_rel=0.2)
    came = iter([accepted, TiekdError("companion_node ended with code 1"), refused])

    def time_round(*_: object) -> distill.RoundTimes:
        found = next(came)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(distill, "time_round", time_round)
    (tmp_path / "labelled").mkdir()
    found = distill.time_rounds(tmp_path, 3)
    verdicts = [r.verdict.partition(":")[0] for r in found]
    assert verdicts == ["promoted", "broke", "refused"]
    steps = {name: {"step": spread(100.0)} for name in (distill.STRAIGHTFORWARD, distill.OURS)}
    goal = distill.live_goal(steps, found)
    assert (goal.measured, goal.met) == ("30 s", None)
    assert "1 promoted, 1 broke, 1 refused" in goal.note
    assert distill.live_goal(steps, [refused]).measured == "-"
    assert distill.round_rows(found)[0]["rounds"] == "1 promoted, 1 broke, 1 refused"
