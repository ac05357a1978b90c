"""The `tiekd` command: helps, JSON for programs, one clear line for a mistake."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from helpers.children import run_python
from helpers.frames import filled_state, small_settings
from helpers.students import small_student
from tiekd_ros import __version__
from tiekd_ros.cli.main import app
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.state import StateFolder
from tiekd_ros.student.checkpoint import StudentStatus
from tiekd_ros.student.registry import StudentRegistry

VERBS = [
    [], ["up"], ["demo"], ["distill"], ["teacher"], ["teacher", "serve"], ["students"],
    ["students", "list"], ["students", "show"], ["students", "promote"],
    ["students", "rollback"], ["students", "import"], ["frames"], ["frames", "stats"],
    ["frames", "import"], ["frames", "export"],
    ["label"], ["train"], ["evaluate"], ["doctor"],
]  # fmt: skip


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
    scores = {"after": {"rmse": 0.5, "abs_rel": 0.1}}
    registry.add(small_student(0, frames={"train": 10}))
    registry.add(
        small_student(
            1, frames={"train": 11}, status=StudentStatus.REFUSED, reason="worse", scores=scores
        )
    )
    registry.add(small_student(2, frames={"train": 12}))
    return state


def test_every_verb_explains_itself():
    without = ("teacher", "students", "frames", "serve", "demo", "up", "show", "label")
    for verb in VERBS:
        text = run(*verb, "--help")
        assert "Usage" in text
        assert "--help" in text
        if verb and verb[-1] not in without:
            assert "--state" in text
    text = run("--help")
    for name in ("up", "demo", "distill", "teacher", "students", "frames"):
        assert name in text


def test_the_version_is_printed():
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
    card = json.loads(run("students", "show", "000002", *folder))
    assert (card["reason"], card["frames"]) == ("worse", {"train": 11})
    assert "000001 is live" in run("students", "rollback", *folder)
    assert StudentRegistry(state.students).live() == "000001"
    assert "000002 is live" in run("students", "promote", "000002", "--force", *folder)


def test_a_folder_without_students_says_what_to_do(tmp_path):
    assert "run a distillation round first" in run("students", "list", "--state", str(tmp_path))
    assert json.loads(run("students", "list", "--json", "--state", str(tmp_path))) == []


@pytest.mark.parametrize("verb", [["list"], ["show", "000001"], ["promote", "1"], ["rollback"]])
def test_a_state_folder_that_is_not_there_is_named(tmp_path, verb):
    with pytest.raises(TiekdError, match=r"no state folder .*gone; give it with --state"):
        run("students", *verb, "--state", str(tmp_path / "gone"))


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        (["show", "000001"], "no student '000001'; versions: none yet"),
        (["promote", "000001"], "no student '000001'; versions: none yet"),
        (["rollback"], "run a distillation round first"),
    ],
)
def test_a_folder_without_students_has_none_to_show_or_change(tmp_path, verb, message):
    with pytest.raises(TiekdError, match=message):
        run("students", *verb, "--state", str(tmp_path))


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


@pytest.mark.parametrize("as_json", [False, True])
def test_a_round_that_fails_says_so_once(tmp_path, as_json):
    state = filled_state(tmp_path / "state")
    settings = json.dumps(small_settings(train={"device": "cuda:99"}))
    arguments = ["distill", "--settings", settings, "--state", str(state.root)]
    done = run_python("-m", "tiekd_ros.cli", *arguments, *(["--json"] if as_json else []))
    assert done.returncode == 1
    reason = "round 1 failed: "
    assert done.stderr.startswith(f"error: {reason}"), done.stderr
    assert "cuda:99" in done.stderr
    if as_json:
        assert json.loads(done.stdout)["state"] == "failed"
    else:
        assert reason not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frames", "stats", "--state", "{state}/gone"], "there is no frame log"),
        (["distill", "--state", "{state}/gone"], "there is no frame log"),
        (["students", "promote", "000002", "--state", "{state}"], "refused by the gate (worse)"),
        (["students", "rollback", "--state", "{state}/gone"], "there is no state folder"),
        (["teacher", "serve", "--backend", "oracle"], "oracle"),
    ],
    ids=["stats", "distill", "promote", "rollback", "serve"],
)
def test_a_mistake_ends_with_one_clear_line_and_code_1(state, arguments, message):
    done = run_python("-m", "tiekd_ros.cli", *(a.format(state=state.root) for a in arguments))
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize("settings", ["{", "[[]]", '{"train": 5}', "nonsense"])
def test_settings_that_are_no_json_object_are_refused_with_an_example(tmp_path, settings):
    from tiekd_ros.cli.students import distill_once
    from tiekd_ros.core.errors import InvalidSettingError

    state = StateFolder(tmp_path)
    state.frames.touch()
    with pytest.raises(InvalidSettingError, match="settings must be JSON like"):
        distill_once(state, settings, None)
