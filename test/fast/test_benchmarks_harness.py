"""The harness of the benchmarks: order of timing, spreads, goals, runs, a results file in JSON."""

import argparse
import json
import math
import os
import sys
from functools import partial
from pathlib import Path

import harness
import numpy as np
import pytest
from harness import Goal, MeanStd, Remote, Report, Spread, best_cells, markdown, mean_std, spread

from tiekd_ros.core.errors import TiekdError


@pytest.fixture
def report(tmp_path) -> Report:
    options = argparse.Namespace(quick=True, json=tmp_path / "new" / "thing.json")
    return Report("thing", options)


def test_repeats_and_seeds_in_short():
    assert spread([float(v) for v in range(101)]) == (50.0, 10.0, 90.0, 101)
    assert spread([3.0, math.nan]) == (3.0, 3.0, 3.0, 1)
    assert str(spread([math.nan])) == "- (---)"
    assert str(mean_std([0.1, 0.2, 0.3])) == "0.200 ± 0.100"
    assert str(mean_std([0.25])) == "0.250"


def test_candidates_take_turns_and_the_warm_up_is_not_counted():
    calls = []
    both = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    times = harness.interleaved(both, repeats=2, warm_up=1)
    assert calls == ["a", "b"] * 3
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}


def test_a_goal_is_judged_by_its_limit():
    for goal, wanted, measured, verdict in (
        (Goal.at_most("p50", 1.0, 1.0, "ms"), "<= 1 ms", "1.00 ms", "met"),
        (Goal.at_most("p50", 1.01, 1.0, "ms"), "<= 1 ms", "1.01 ms", "MISSED"),
        (Goal.at_most("p50", math.nan, 1.0, "ms"), "<= 1 ms", "-", "not measured"),
        (Goal.at_most("apart", 7e-15, 1e-5, ""), "<= 1e-05", "7e-15", "met"),
        (Goal.at_least("faster", 60.0, 60.0), ">= 60 x", "60.0 x", "met"),
        (Goal.at_least("faster", 59.9, 60.0), ">= 60 x", "59.9 x", "MISSED"),
        (Goal.at_least("faster", None, 60.0), ">= 60 x", "-", "not measured"),
        (Goal("trigger to live", "low", "41 s", None), "low", "41 s", "reported"),
    ):
        assert (goal.wanted, goal.measured, goal.verdict) == (wanted, measured, verdict)


def test_results_are_written_with_names_and_without_nan(report, capsys):
    rows = [{"case": "a", "ms": Spread(2.0, 1.2, 2.8, 3), "[m]": None}, {"case": "b", "ms": 1.0}]
    values = {"ms": spread([1.0, 2.0, 3.0]), "gap": math.nan, "counts": np.arange(2)}
    report.table("first", "A table", rows, data=[values], bold={(0, "case")})
    report.goals += [Goal.at_least("as fast", 2.5, 2.0), Goal.at_most("on a GPU", None, 1, "ms")]
    assert report.finish() == 0
    report.goals.append(Goal.at_most("half the memory", 0.8, 0.5, ""))
    assert report.finish() == harness.MISSED == 1

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    results = json.loads(report.path.read_text(), parse_constant=refuse)
    assert list(results) == ["machine", "command", "quick", "tables", "goals"]
    assert results["quick"] is True
    assert results["machine"]["cores"] >= 1
    (row,) = results["tables"]["first"]
    assert row == {
        "ms": {"median": 2.0, "low": 1.2, "high": 2.8, "n": 3},
        "gap": None,
        "counts": [0, 1],
    }
    assert [goal["met"] for goal in results["goals"]] == [True, None, False]
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("2.00 (1.20-2.80)", "MISSED", "not measured", "[m]"))
    assert list(report.path.parent.iterdir()) == [report.path]


def test_an_interrupted_experiment_goes_on_where_it_was(report):
    made = []

    def run(arm: str) -> dict[str, float]:
        made.append(arm)
        if arm == "broken":
            raise RuntimeError("interrupted")
        return {"score": 0.5}

    def runs(*arms: str) -> list[dict[str, object]]:
        keys = [{"arm": (arm, 1), "seed": 0} for arm in arms]
        again = Report("thing", argparse.Namespace(quick=True, json=report.path))
        return again.experiment([(k, partial(run, k["arm"][0])) for k in keys])

    with pytest.raises(RuntimeError):
        runs("a", "broken")
    both = runs("a", "b")
    assert made == ["a", "broken", "b"]
    assert [(r["arm"], r["score"]) for r in both] == [(["a", 1], 0.5), (["b", 1], 0.5)]
    assert len(json.loads(report.path.read_text())["runs"]) == 2
    unnamed = Report("thing", argparse.Namespace(quick=True, json=None))
    unnamed.path = report.path
    unnamed.experiment([({"arm": "a"}, partial(run, "a"))])
    assert made[3:] == ["a"]


def test_an_object_in_a_process_of_its_own_answers_and_closes(tmp_path):
    with Remote(open, tmp_path / "text", "w") as file:
        file.send("write", "some")
        assert file.answer() == 4
    assert (tmp_path / "text").read_text() == "some"
    assert file.process.exitcode == 0
    with Remote(os.getenv, "BENCH_TEST", BENCH_TEST="here") as text:
        assert text.call("upper") == "HERE"
        for _ in range(2):
            with pytest.raises(TiekdError, match="getenv ended with 1"):
                text.call("no such method")
    assert "BENCH_TEST" not in os.environ


def test_the_best_of_a_column_is_marked():
    rows = [
        {"loss": "a", "rmse": MeanStd(0.2, 0.0, 1), "a1": MeanStd(0.9, 0.0, 1)},
        {"loss": "b", "rmse": MeanStd(0.1, 0.0, 1), "a1": MeanStd(0.8, 0.0, 1)},
    ]
    best = best_cells(rows, {"rmse": min, "a1": max})
    assert best == {(1, "rmse"), (0, "a1")}
    assert "| b | **0.100** | 0.800 |" in markdown("scores", rows, best)


def test_options_of_every_script_and_its_exit_codes(capsys):
    options = harness.parser("Measure a thing.\n\nHow the table is read.")
    assert options.parse_args(["--quick", "--json", "there"]).json == Path("there")
    with pytest.raises(SystemExit, match="0"):
        options.parse_args(["--help"])
    assert "How the table is read." in capsys.readouterr().out

    def breaks() -> int:
        raise RuntimeError("no such thing")

    for main, code in ((lambda: 0, 0), (lambda: harness.MISSED, 1), (breaks, harness.BROKE)):
        with pytest.raises(SystemExit) as stop:
            harness.run(main)
        assert stop.value.code == code


def test_memory_and_processor_time_of_this_process():
    assert harness.memory_mib("VmHWM") >= harness.memory_mib("VmRSS") > 10
    assert harness.cpu_seconds(os.getpid()) > 0
    assert harness.peak_mib(lambda: np.ones(2**22)) == pytest.approx(32, abs=4)
    assert harness.machine()["python"] == sys.version.split()[0]
