"""The harness of the benchmarks: order of timing, spreads, goals, runs, a results file in JSON."""

import argparse
import json
import math
import sys
from pathlib import Path

import harness
import numpy as np
import pytest
from harness import Goal, MeanStd, Report, Spread, best_cells, markdown, mean_std, spread


@pytest.fixture
def report(tmp_path) -> Report:
    options = argparse.Namespace(quick=True, json=tmp_path / "new" / "thing.json")
    return Report("thing", options)


def test_spread_is_median_and_outer_tenths_of_what_is_finite():
    assert spread([float(v) for v in range(101)]) == (50.0, 10.0, 90.0, 101)
    assert spread([3.0, math.nan]) == (3.0, 3.0, 3.0, 1)
    assert str(spread([math.nan])) == "- (---)"


def test_mean_and_deviation_over_seeds():
    assert str(mean_std([0.1, 0.2, 0.3])) == "0.200 ± 0.100"
    assert str(mean_std([0.25])) == "0.250"


def test_candidates_take_turns_and_the_warm_up_is_not_counted():
    calls = []
    both = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    times = harness.interleaved(both, repeats=2, warm_up=1)
    assert calls == ["a", "b"] * 3
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}


@pytest.mark.parametrize(
    ("goal", "wanted", "measured", "verdict"),
    [
        (Goal.at_most("p50", 1.0, 1.0, "ms"), "<= 1 ms", "1.00 ms", "met"),
        (Goal.at_most("p50", 1.01, 1.0, "ms"), "<= 1 ms", "1.01 ms", "MISSED"),
        (Goal.at_most("p50", math.nan, 1.0, "ms"), "<= 1 ms", "-", "not measured"),
        (Goal.at_most("apart", 7e-15, 1e-5, ""), "<= 1e-05", "7e-15", "met"),
        (Goal.at_least("faster", 60.0, 60.0), ">= 60 x", "60.0 x", "met"),
        (Goal.at_least("faster", 59.9, 60.0), ">= 60 x", "59.9 x", "MISSED"),
        (Goal.at_least("faster", None, 60.0), ">= 60 x", "-", "not measured"),
        (Goal("trigger to live", "low", "41 s", None), "low", "41 s", "reported"),
    ],
)
def test_a_goal_is_judged_by_its_limit(goal, wanted, measured, verdict):
    assert (goal.wanted, goal.measured, goal.verdict) == (wanted, measured, verdict)


def test_results_are_written_with_names_and_without_nan(report, capsys):
    rows = [{"case": "a", "ms": Spread(2.0, 1.2, 2.8, 3), "MiB": None}, {"case": "b", "ms": 1.0}]
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
    assert all(word in shown for word in ("2.00 (1.20-2.80)", "MISSED", "not measured", "thing"))
    assert list(report.path.parent.iterdir()) == [report.path]


def test_an_interrupted_experiment_goes_on_where_it_was(report):
    key = {"arm": ("a", 1), "seed": 0}
    assert not report.has_run(key)
    report.add_run({**key, "score": 0.5})
    again = Report("thing", argparse.Namespace(quick=True, json=report.path))
    assert not again.has_run(key)
    again.resume()
    assert again.has_run(key)
    assert not again.has_run({**key, "seed": 1})


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


@pytest.mark.parametrize(
    ("busy", "own", "others"), [(15.0, 5.0, 1.0), (15.0, 15.0, 0.0), (15.0, 15.1, 0.0)]
)
def test_own_work_is_not_taken_for_that_of_others(busy, own, others):
    """Seconds: 10 of the wall clock, `busy` of all cores, `own` of this process."""
    times = iter([(100.0, 2000.0, 7.0), (110.0, 2000.0 + busy, 7.0 + own)])

    class Neighbours(harness.Neighbours):
        @staticmethod
        def _now():
            return next(times)

    assert Neighbours().cores() == pytest.approx(others)


def test_memory_and_processor_time_of_this_process():
    assert harness.memory_mib("VmHWM") >= harness.memory_mib("VmRSS") > 10
    assert harness.cpu_seconds(int(Path("/proc/self").resolve().name)) > 0
    assert harness.machine()["python"] == sys.version.split()[0]
