"""The ablation's script: a short run gives rows, tables and a file; another run repeats nothing."""

import json
from pathlib import Path

from helpers.children import Finished, run_benchmark

SHORT = ("--seeds", "1", "--iterations", "2", "--only", "tiekd", "--jobs", "1")
FEW = ("--scenes", "1", "1", "1")


def run_in(folder: Path, *arguments: str) -> Finished:
    return run_benchmark("ablation.py", *SHORT, *FEW, *arguments, cwd=folder)


def test_a_short_run_makes_a_table_and_is_not_repeated(tmp_path):
    files = ("--json", "runs.json", "--markdown", "table.md")
    done = run_in(tmp_path, *files)
    assert done.returncode == 0, done.stderr
    results = (tmp_path / "runs.json").read_bytes()
    runs = json.loads(results)["runs"]
    assert sorted(run["arm"]["name"] for run in runs) == ["both", "both, log bins"]
    assert all(0 < run["test"]["abs_rel"] < 2 for run in runs)
    table = (tmp_path / "table.md").read_text()
    assert "| TIE-KD, tiekd | both | " in table
    (tmp_path / "table.md").unlink()
    again = run_in(tmp_path, *files)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "runs.json").read_bytes() == results
    assert (tmp_path / "table.md").read_text() == table


def test_a_folder_that_is_not_there_is_refused_at_once(tmp_path):
    refused = run_in(tmp_path, "--frames", "nowhere")
    assert refused.returncode == 2
    assert "there is no folder nowhere" in refused.stderr
