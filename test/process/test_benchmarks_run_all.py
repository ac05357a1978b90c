"""All benchmarks after each other: one that breaks is reported, and the rest still runs."""

import json
import textwrap
from pathlib import Path

import pytest
import run_all
import torch

GOOD = """
    import json, pathlib, sys
    results = pathlib.Path(sys.argv[sys.argv.index("--json") + 1])
    results.parent.mkdir(exist_ok=True)
    goal = {"name": "as fast", "wanted": ">= 2 x", "measured": "1 x", "met": False, "note": ""}
    results.write_text(json.dumps({"quick": "--quick" in sys.argv, "goals": [goal]}))
    sys.exit(1)
"""
LEAVES_A_CHILD = """
    import pathlib, subprocess, sys
    here = pathlib.Path(__file__).parent
    child = subprocess.Popen([sys.executable, here / "child.py"], stdout=subprocess.PIPE)
    child.stdout.readline()
    raise SystemExit(2)
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
BROKEN = "import sys; sys.exit(2)"
SILENT = ""


def run(folder: Path, *arguments: str, **scripts: str) -> tuple[int, list[dict[str, object]]]:
    """Run made-up scripts; return the exit code and the goals of the results file."""
    for name, text in scripts.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    options = ["--scripts", str(folder), "--output", str(folder / "results"), "--device", "cpu"]
    code = run_all.main([*options, *arguments])
    return code, json.loads((folder / "results" / "run_all.json").read_text())["goals"]


def test_a_missed_goal_is_a_result_and_exit_code_1(tmp_path, capsys):
    code, (goal,) = run(tmp_path, "--quick", "--only", "loss", loss=GOOD)
    assert code == 1
    assert json.loads((tmp_path / "results" / "loss.json").read_text())["quick"] is True
    assert (goal["name"], goal["met"]) == ("loss: as fast", False)
    assert "MISSED" in capsys.readouterr().out


def test_after_a_script_that_breaks_the_next_one_runs(tmp_path, capsys):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "student.json").write_text('{"goals": []}')  # of an earlier run
    names = ("--only", "student", "node", "loss")
    code, goals = run(tmp_path, *names, student=BROKEN, node=SILENT, loss=GOOD)
    assert code == 2
    broken, silent, missed = goals
    assert (broken["name"], broken["met"]) == ("student: all", None)
    assert "exit code 2" in broken["note"]
    assert "no results" in silent["note"]
    assert missed["name"] == "loss: as fast"
    assert "BROKE: student, node" in capsys.readouterr().out


def test_what_a_script_leaves_behind_gets_time_to_end(tmp_path):
    assert run(tmp_path, "--only", "loss", loss=LEAVES_A_CHILD, child=CHILD)[0] == 2
    assert (tmp_path / "closed").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_its_benchmarks_say_so_and_end_well(tmp_path, capsys):
    assert run_all.main(["--device", "cuda", "--output", str(tmp_path)]) == 0
    assert "no CUDA device" in capsys.readouterr().out
    results = json.loads((tmp_path / "run_all.json").read_text())
    assert [goal["met"] for goal in results["goals"]] == [None] * 3
    with pytest.raises(SystemExit, match="2"):
        run_all.main(["--only", "speed"])
