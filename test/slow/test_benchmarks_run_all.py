"""All benchmarks after each other: one that breaks is reported, and the rest still runs."""

import json
import textwrap
from pathlib import Path

import pytest
import torch

from helpers.children import Finished, run_benchmark

GOOD = """
    import json, pathlib, sys
    output = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
    output.mkdir(exist_ok=True)
    goal = {"name": "as fast", "wanted": ">= 2 x", "measured": "1 x", "met": False, "note": ""}
    text = json.dumps({"quick": "--quick" in sys.argv, "goals": [goal]})
    (output / (pathlib.Path(__file__).stem + ".json")).write_text(text)
"""
LEAVES_A_CHILD = """
    import pathlib, subprocess, sys
    here = pathlib.Path(__file__).parent
    child = subprocess.Popen([sys.executable, here / "child.py"], stdout=subprocess.PIPE)
    child.stdout.readline()
    raise SystemExit("broke, and left a child")
"""
CHILD = """
    import pathlib, signal, sys, time
    def end(*_):
        time.sleep(0.5)
        (pathlib.Path(__file__).parent / "closed").touch()
        sys.exit()
    signal.signal(signal.SIGTERM, end)
    print("ready", flush=True)
    time.sleep(60)
"""
BROKEN = "raise SystemExit('no such thing')"
SILENT = ""


def run(folder: Path, *arguments: str, **scripts: str) -> Finished:
    for name, text in scripts.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    options = ("--scripts", str(folder), "--output", str(folder / "results"))
    return run_benchmark("run_all.py", *options, *arguments)


def goals(folder: Path) -> list[dict[str, object]]:
    return json.loads((folder / "results" / "run_all.json").read_text())["goals"]


def test_help_teaches():
    done = run_benchmark("run_all.py", "--help")
    assert done.returncode == 0, done.stderr
    assert "--only" in done.stdout
    assert "15 minutes on 2 cores" in done.stdout


def test_a_missed_goal_is_a_result_and_no_error(tmp_path):
    done = run(tmp_path, "--quick", "--only", "loss", loss=GOOD)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "results" / "loss.json").read_text())["quick"] is True
    (goal,) = goals(tmp_path)
    assert (goal["name"], goal["met"]) == ("loss: as fast", False)
    assert "MISSED" in done.stdout


def test_after_a_script_that_breaks_the_next_one_runs(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "student.json").write_text('{"goals": []}')  # of an earlier run
    done = run(
        tmp_path, "--only", "student", "node", "loss", student=BROKEN, node=SILENT, loss=GOOD
    )
    assert done.returncode == 1
    broken, silent, missed = goals(tmp_path)
    assert (broken["name"], broken["met"]) == ("student: all", None)
    assert "exit code 1" in broken["note"]
    assert "no results" in silent["note"]
    assert missed["name"] == "loss: as fast"
    assert "BROKE: student, node" in done.stdout


def test_what_a_script_leaves_behind_gets_time_to_end(tmp_path):
    done = run(tmp_path, "--only", "loss", loss=LEAVES_A_CHILD, child=CHILD)
    assert done.returncode == 1
    assert (tmp_path / "closed").exists()


def test_an_unknown_script_is_refused(tmp_path):
    refused = run(tmp_path, "--only", "speed")
    assert refused.returncode == 2
    assert "invalid choice: 'speed'" in refused.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_its_benchmark_says_so_and_ends_well(tmp_path):
    done = run_benchmark("gpu.py", "--quick", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "no CUDA device" in done.stdout
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert [goal["met"] for goal in results["goals"]] == [None]
