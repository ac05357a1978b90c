"""What the benchmark scripts share: order of timing, spreads, and a results file that is JSON."""

import argparse
import json
import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "measuring.py"


@pytest.fixture(scope="module")
def measuring():
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def test_spread_is_median_and_outer_tenths(measuring):
    found = measuring.spread([float(v) for v in range(101)])
    assert found == (50.0, 10.0, 90.0, 101)
    assert measuring.spread([3.0]) == (3.0, 3.0, 3.0, 1)


def test_candidates_take_turns_and_the_warm_up_is_not_counted(measuring):
    calls = []
    times = measuring.interleaved(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2, warm_up=1
    )
    assert calls == ["a", "b"] * 3
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}
    assert all(value >= 0 for values in times.values() for value in values)


def test_results_are_written_with_names_and_without_nan(measuring, tmp_path, capsys):
    options = argparse.Namespace(quick=True, output=tmp_path / "new" / "folder")
    goals = [
        measuring.Goal("twice as fast", ">= 2 x", "2.5 x", True),
        measuring.Goal("on a GPU", "<= 1 ms", "-", None, "no CUDA device"),
        measuring.Goal("half the memory", "<= 0.5", "0.8", False),
    ]
    spread = measuring.spread([1.0, 2.0, 3.0])
    values = {"ms": spread, "gap": math.nan, "counts": np.arange(2), "folder": Path("a/b")}
    measuring.finish("thing", options, {"first": [values]}, goals)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    text = (tmp_path / "new" / "folder" / "thing.json").read_text()
    results = json.loads(text, parse_constant=refuse)
    assert list(results) == ["machine", "command", "quick", "tables", "goals"]
    assert results["quick"] is True
    assert results["machine"]["cores"] >= 1
    (row,) = results["tables"]["first"]
    assert row["ms"] == {"median": 2.0, "low": 1.2, "high": 2.8, "n": 3}
    assert row["gap"] is None
    assert row["counts"] == [0, 1]
    assert row["folder"] == "a/b"
    assert [goal["met"] for goal in results["goals"]] == [True, None, False]
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("met", "MISSED", "not measured", "thing.json"))


def test_options_of_every_script(measuring, capsys):
    parser = measuring.arguments("Measure a thing.\n\nHow the table is read.")
    assert parser.parse_args([]).output == measuring.RESULTS
    assert parser.parse_args(["--quick", "--output", "there"]).output == Path("there")
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--help"])
    assert stop.value.code == 0
    assert "How the table is read." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("busy", "own", "others"), [(15.0, 5.0, 1.0), (15.0, 15.0, 0.0), (15.0, 15.1, 0.0)]
)
def test_own_work_is_not_taken_for_that_of_others(measuring, busy, own, others):
    """Seconds: 10 of the wall clock, `busy` of all cores, `own` of this process."""
    times = iter([(100.0, 2000.0, 7.0), (110.0, 2000.0 + busy, 7.0 + own)])

    class Neighbours(measuring.Neighbours):
        @staticmethod
        def _now():
            return next(times)

    assert Neighbours().cores() == pytest.approx(others)


def test_what_has_no_limit_is_reported_and_not_called_unmeasured(measuring, capsys):
    measuring.print_goals([measuring.Goal("trigger to live", "low", "41 s", None)])
    shown = capsys.readouterr().out
    assert "reported" in shown
    assert "not measured" not in shown
