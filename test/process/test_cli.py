"""The `tiekd` command: helps, JSON for programs, one clear line for a mistake."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator

import click
import pytest
import typer
from typer.testing import CliRunner

from helpers.children import run_python
from helpers.frames import filled_state, small_settings
from helpers.students import small_student
from tiekd_ros import __version__
from tiekd_ros.cli.__main__ import app, main
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.state import StateFolder
from tiekd_ros.rounds.gate import Check
from tiekd_ros.student.checkpoint import StudentStatus
from tiekd_ros.student.registry import StudentRegistry


def verbs(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of a command and of all below it."""
    yield words
    for name, below in getattr(command, "commands", {}).items():
        yield from verbs(below, (*words, name))


def run(*arguments: str) -> str:
    """Run the command in this process and return what it printed."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def state(tmp_path) -> StateFolder:
    """A state folder with three students, the second of them refused."""
    state = StateFolder(tmp_path / "state").create()
    registry = StudentRegistry(state.students)
    check = Check("RMSE", 0.4, 0.5, -0.25, -0.02, False, (-0.3, -0.2))
    scores = {
        "after": {"rmse": 0.5, "abs_rel": 0.1},
        "checks": [dataclasses.asdict(check)],
        "confidence": {"mean": 0.6, "right": 0.65, "gap at 0.5": 0.04},
    }
    registry.add(small_student(0, frames={"train": 10}))
    card = {"status": StudentStatus.REFUSED, "reason": "worse", "scores": scores}
    registry.add(small_student(1, frames={"train": 11}, **card))
    registry.add(small_student(2, frames={"train": 12}))
    return state


def test_every_verb_explains_itself():
    found = list(verbs(typer.main.get_command(app)))
    assert len(found) > 20
    for verb in found:
        assert "Usage" in run(*verb, "--help")
    assert run("--version").strip() == f"tiekd_ros {__version__}"


def test_students_are_listed_shown_promoted_and_rolled_back(state):
    folder = ["--state", str(state.root)]
    assert not any(s["live"] for s in json.loads(run("students", "list", "--json", *folder)))
    assert "000001 is live" in run("students", "promote", "000001", *folder)
    assert "000003 is live" in run("students", "promote", "000003", *folder)
    listed = json.loads(run("students", "list", "--json", *folder))
    assert [(s["version"], s["status"], s["live"]) for s in listed] == [
        ("000001", "candidate", False),
        ("000002", "refused", False),
        ("000003", "candidate", True),
    ]
    table = run("students", "list", *folder)
    assert "000003" in table
    assert "live" in table
    card = json.loads(run("students", "show", "000002", "--json", *folder))
    assert (card["reason"], card["frames"]) == ("worse", {"train": 11})
    shown = run("students", "show", "000002", *folder)
    for text in (
        "refused: worse",
        "RMSE",
        "-25.0%",
        "-30% to -20%",
        "54 % of those that say 0.5",
    ):
        assert text in shown
    assert "no gate has judged it" in run("students", "show", "000001", *folder)
    assert "000001 is live" in run("students", "rollback", *folder)
    assert StudentRegistry(state.students).live() == "000001"
    assert "000002 is live" in run("students", "promote", "000002", "--force", *folder)


def test_a_folder_that_is_not_there_or_has_no_students_is_told_with_the_way_out(tmp_path):
    folder = ["--state", str(tmp_path)]
    assert "run a distillation round first" in run("students", "list", *folder)
    assert json.loads(run("students", "list", "--json", *folder)) == []
    none = "no student '000001'; versions: none yet"
    for verb, message in (
        (["show", "000001"], none),
        (["promote", "000001"], none),
        (["rollback"], "run a distillation round first"),
    ):
        with pytest.raises(TiekdError, match=message):
            run("students", *verb, *folder)
    for verb in (["list"], ["show", "000001"], ["promote", "1"], ["rollback"]):
        with pytest.raises(TiekdError, match=r"no state folder .*gone; give it with --state"):
            run("students", *verb, "--state", str(tmp_path / "gone"))


def test_a_round_runs_offline_and_the_log_counts_it(tmp_path):
    state = filled_state(tmp_path / "state")
    folder = ["--state", str(state.root)]
    before = json.loads(run("frames", "stats", "--json", *folder))
    assert (before["total"], before["new_labels"]) == (24, 12)
    assert before["frames"]["labelled"] == {"train": 12, "held_out": 12}
    settings = json.dumps(small_settings())
    record = json.loads(run("distill", "--json", "--settings", settings, *folder))
    assert record["state"] == "promoted", record["reason"]
    assert record["version"] == StudentRegistry(state.students).live() == "000001"
    assert json.loads(run("frames", "stats", "--json", *folder))["new_labels"] == 0
    assert "0 labels new" in " ".join(run("frames", "stats", *folder).split())


def test_a_round_that_fails_says_so_once(tmp_path):
    state = filled_state(tmp_path / "state")
    settings = json.dumps(small_settings(train={"device": "cuda:99"}))
    arguments = ["distill", "--settings", settings, "--state", str(state.root)]
    for number, more in ((1, []), (2, ["--json"])):
        done = run_python("-m", "tiekd_ros.cli", *arguments, *more)
        assert done.returncode == 1
        reason = f"round {number} failed: "
        assert done.stderr.startswith(f"error: {reason}"), done.stderr
        assert "cuda:99" in done.stderr
        assert reason not in done.stdout
        assert not more or json.loads(done.stdout)["state"] == "failed"


def test_a_mistake_ends_with_one_clear_line_and_code_1(state, capsys, monkeypatch):
    gone, json_wanted = f"{state.root}/gone", "settings must be JSON like"
    state.frames.touch()
    for arguments, message in (
        (["frames", "stats", "--state", gone], "there is no frame log"),
        (["distill", "--state", gone], "there is no frame log"),
        (["students", "promote", "000002", "--state", "{state}"], "refused by the gate (worse)"),
        (["teacher", "serve", "--backend", "oracle"], "oracle"),
        *(
            (["distill", "--state", "{state}", "--settings", settings], json_wanted)
            for settings in ("{", "[[]]", '{"train": 5}', "nonsense")
        ),
    ):
        words = [word.replace("{state}", str(state.root)) for word in arguments]
        monkeypatch.setattr(sys, "argv", ["tiekd", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 1
        said = capsys.readouterr()
        assert said.out == ""
        (line,) = said.err.splitlines()
        assert line.startswith("error: ")
        assert message in line
