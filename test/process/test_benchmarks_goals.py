"""The code that decides whether goals are met: just within each limit, and just beyond."""

from __future__ import annotations

import importlib
import math
import sys
from types import ModuleType

import pytest

from helpers.children import TESTS

BENCHMARKS = TESTS.parent / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """Return what imports a script, whose neighbours find each other in their own folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = {path.stem for path in BENCHMARKS.glob("*.py")}
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def student(load) -> ModuleType:
    return load("student")


@pytest.fixture
def node(load) -> ModuleType:
    pytest.importorskip("rclpy")
    return load("node")


def spread(ms: float):
    return importlib.import_module("measuring").Spread(ms, ms, ms, 1)


def rows(student, **ms: float) -> list[object]:
    """Return a table's rows, ours at 20 ms in torch and 10 ms in onnxruntime unless told."""
    cases = importlib.import_module("student_cases")
    found = {"torch": 20.0, "onnx": 10.0, "published": 1200.0, "anything": 300.0, **ms}
    named = [
        (cases.OURS, cases.TORCH, found["torch"]),
        (cases.OURS, cases.ONNXRUNTIME, found["onnx"]),
        (cases.OURS, cases.EAGER, 40.0),
        (cases.PUBLISHED, cases.TORCH, found["published"]),
        (cases.DEPTH_ANYTHING, cases.TORCH, found["anything"]),
    ]
    return [
        student.Row(network, runtime, "480x640", 2, 1.9, 2.6, spread(ms), None, 0.5, None, None)
        for network, runtime, ms in named
    ]


@pytest.mark.parametrize(
    ("index", "ms", "is_met"),
    [
        (0, {"published": 1200.0}, True),  # 60 x torch
        (0, {"published": 1199.0}, False),
        (2, {"anything": 300.0}, True),  # 15 x torch
        (2, {"anything": 299.0}, False),
        (4, {"onnx": 10.0}, True),  # half of torch
        (4, {"onnx": 10.1}, False),
        (5, {"torch": 60.0, "onnx": 30.0}, True),
        (5, {"torch": 60.0, "onnx": 30.1}, False),
    ],
)
def test_limits_of_the_student(student, index, ms, is_met):
    goals = importlib.import_module("student_goals").judge(rows(student, **ms), 2)
    assert len(goals) == 6
    assert goals[index].met is is_met


def test_without_a_row_or_with_other_threads_there_is_no_verdict(student):
    judge = importlib.import_module("student_goals").judge
    assert [goal.met for goal in judge([], 2)] == [None] * 6
    goals = judge(rows(student), 1)
    assert [goal.met for goal in goals] == [True, None, True, None, True, None]
    assert [goal.measured for goal in goals if goal.met is None] == ["-"] * 3


def test_ratios_are_taken_at_the_same_size_and_runtime(student):
    cases = importlib.import_module("student_cases")
    whole = {
        cases.Case(cases.OURS, cases.TORCH, 480, 640): 8.0,
        cases.Case(cases.OURS, cases.ONNXRUNTIME, 480, 640): 4.0,
        cases.Case(cases.OURS, cases.TORCH, 224, 320): 2.0,
        cases.Case(cases.OURS, cases.EAGER, 224, 320): 3.0,
        cases.Case(cases.PUBLISHED, cases.TORCH, 480, 640): 80.0,
        cases.Case(cases.PUBLISHED, cases.TORCH, 224, 320): 40.0,
        cases.Case(cases.PUBLISHED, cases.ONNXRUNTIME, 480, 640): 60.0,
        cases.Case(cases.PUBLISHED, cases.ONNXRUNTIME, 224, 320): 30.0,
    }
    times = {case: student.Times([ms], []) for case, ms in whole.items()}
    found = [row.times_ours for row in student.make_rows(times, {}, math.nan)]
    assert found == [1.0, 1.0, 1.0, 1.5, 10.0, 20.0, 15.0, None]


def test_depth_anything_at_its_own_size_is_compared_with_ours_at_the_image(student, monkeypatch):
    cases = importlib.import_module("student_cases")
    monkeypatch.setattr(student, "count_cost", lambda case: cases.Cost(1.0, 1.0))
    whole = {
        cases.Case(cases.OURS, cases.TORCH, 480, 640): 8.0,
        cases.Case(cases.OURS, cases.TORCH, 224, 320): 2.0,
        cases.Case(cases.DEPTH_ANYTHING, cases.TORCH, 518, 686): 120.0,
    }
    times = {case: student.Times([ms], []) for case, ms in whole.items()}
    assert student.make_rows(times, {}, math.nan)[-1].times_ours == 15.0


def test_frames_of_the_warm_up_count_neither_for_the_whole_nor_for_the_network(student):
    prediction = importlib.import_module("tiekd_ros.student").Prediction
    times = importlib.import_module("tiekd_ros.student").StageTimes(0.0, 1.0, 0.0)
    case = importlib.import_module("student_cases").Case(student.OURS, student.TORCH)
    found = student.time_cases({case: lambda _: prediction(None, None, times)}, quick=True)[case]
    assert len(found.whole) == len(found.network) == 30


@pytest.mark.parametrize(("p50", "is_met"), [(1.0, True), (1.01, False), (math.nan, None)])
def test_limit_of_the_network_on_a_gpu(load, p50, is_met):
    assert load("gpu").judge_network(p50).met is is_met


@pytest.mark.parametrize(
    ("faster", "leaner", "apart", "verdicts"),
    [
        (3.0, 4.0, 1e-5, [True, True, True]),
        (2.99, 4.0, 1e-5, [False, True, True]),
        (3.0, 3.99, 1e-5, [True, False, True]),
        (3.0, 4.0, 1.1e-5, [True, True, False]),
    ],
)
def test_limits_of_the_loss(load, faster, leaner, apart, verdicts):
    loss = load("loss")
    row = loss.Row("case", {}, {}, faster, leaner, loss.Apart(apart, 0.0, 0.0))
    assert [goal.met for goal in loss.goals_of(loss.CASES[0], row)] == verdicts
    assert [
        goal.met for goal in load("gpu_loss").goals_of(loss.CASES[0], faster, leaner, apart)
    ] == verdicts


def test_the_fused_loss_is_judged_by_the_faster_of_two_layouts(load):
    loss = load("loss")
    ms = {loss.STRAIGHTFORWARD: 90.0, loss.CHANNELS_FIRST: 60.0, loss.FUSED: 20.0}
    assert loss.times_faster({way: spread(value) for way, value in ms.items()}) == 3.0


def latency(p95: float = 10.0, dropped: int = 0, gap: float = 100.0):
    stream = importlib.import_module("node_stream")
    return stream.Latency(p95, p95, p95, 100, dropped, gap)


@pytest.mark.parametrize(
    ("bare", "delay", "is_met"),
    [(10.0, 12.0, True), (10.0, 12.1, False), (40.0, 46.0, True), (40.0, 46.1, False)],
)
def test_the_node_may_add_two_milliseconds_or_a_share(node, bare, delay, is_met):
    found = node.Idle(
        "torch", latency(), spread(delay), spread(1.0), 11.0, spread(bare), spread(bare), {}
    )
    assert node._overhead("480x640", found).met is is_met


@pytest.mark.parametrize(
    ("dropped", "gap", "verdicts"),
    [(0, 200.0, [True, True]), (1, 200.0, [False, True]), (0, 200.1, [True, False])],
)
def test_limits_while_swapping(node, dropped, gap, verdicts):
    found = node.Swapping(10.0, latency(), latency(dropped=dropped, gap=gap), 100, 9.0)
    assert [goal.met for goal in node._swaps(found)] == verdicts


@pytest.mark.parametrize(
    ("runtime", "before", "after", "p95", "is_met"),
    [
        ("torch, cpu, 1 thread", 8.0, 8.0, 10.0, True),  # 1.25 x
        ("torch, cpu, 1 thread", 8.0, 8.0, 10.1, False),
        ("torch, cpu, 1 thread", 8.0, 20.0, 10.1, False),  # one of the two was disturbed
        ("torch, cpu, 1 thread", 20.0, 8.0, 10.1, False),
        ("torch, cuda:0, CUDA graph, half precision", 10.0, 10.0, 12.0, True),
        ("torch, cuda:0, CUDA graph, half precision", 10.0, 10.0, 12.1, False),
    ],
)
def test_limit_while_training(node, runtime, before, after, p95, is_met):
    stretches = latency(before), latency(p95), latency(after)
    found = node.Training(runtime, *stretches, 30, 30, 9.0, 0.0, "accepted")
    assert node._training(found)[0].met is is_met


@pytest.mark.parametrize(
    ("steps", "verdict", "is_met"),
    [
        (30, "accepted", True),
        (30, "refused", True),
        (29, "accepted", False),
        (30, "failed", False),
        (30, "not over in time", False),
    ],
)
def test_training_ends_with_all_steps_and_a_verdict(node, steps, verdict, is_met):
    idle = latency()
    found = node.Training("torch, cpu, 1 thread", idle, idle, idle, steps, 30, 9.0, 0.0, verdict)
    assert node._training(found)[1].met is is_met


def test_a_round_that_is_refused_or_breaks_is_a_row_and_loses_no_other(load, monkeypatch, tmp_path):
    pytest.importorskip("rclpy")
    distill, errors = load("distill"), importlib.import_module("tiekd_ros.core.errors")
    times = distill.RoundTimes
    accepted = times("accepted", dict.fromkeys(distill.STAGES, 5.0), 30.0, 90.0, 0.1, 0.5)
    refused = times.broken("broke")._replace(verdict="refused: no better", abs_rel=0.2)
    came = iter([accepted, refused, errors.TiekdError("companion_node ended with code 1"), refused])

    def time_round(*_: object):
        found = next(came)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(distill, "time_round", time_round)
    (tmp_path / "labelled").mkdir()
    found = distill._time_arms(tmp_path, 2)
    assert [r.verdict.partition(":")[0] for r in found["as it is"]] == ["accepted", "broke"]
    assert [r.verdict for r in found["decoder first"]] == ["refused: no better"] * 2
    steps = {name: {"step": spread(100.0)} for name in (distill.STRAIGHTFORWARD, "as it is")}
    (goal,) = distill._goals(steps, found)
    assert (goal.measured, goal.met) == ("30 s", None)
    assert "1 accepted, 1 broke" in goal.note
    (goal,) = distill._goals(steps, {"as it is": [refused]})
    assert goal.measured == "-"
    distill._print_rounds("rounds", found)
