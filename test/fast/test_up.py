"""The command lines of `tiekd up`: what the user gave is passed on, and nothing else."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tiekd_ros.cli import nodes
from tiekd_ros.cli.__main__ import app
from tiekd_ros.core import supervisor
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.launch_options import COMPANION, LAUNCH_OPTIONS, LOCAL_TEACHER
from tiekd_ros.core.supervisor import Program, node_programs

LOCAL = {
    f"{name}:=" + {"": '""', False: "false"}.get(value, str(value))
    for name, value in LOCAL_TEACHER.items()
}


def parameters(program: Program) -> list[str]:
    """Return what stands after each -p."""
    command = list(program.command)
    return [command[i + 1] for i, word in enumerate(command) if word == "-p"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Program]:
    """Return the programs that `tiekd up` would have run."""
    programs: list[Program] = []
    monkeypatch.setattr(supervisor, "supervise", lambda given, say: programs.extend(given))
    monkeypatch.setattr(supervisor, "require_ros", lambda: None)
    return programs


def up(*arguments: str) -> str:
    """Run it; return what it printed."""
    result = CliRunner().invoke(app, ["up", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_every_launch_option_is_an_option_of_up_with_the_same_words():
    named = {"state_dir": "state"}
    options = inspect.signature(nodes.up).parameters
    wanted = {named.get(name, name): option for name, option in LAUNCH_OPTIONS.items()}
    assert options.keys() == wanted.keys() - {"respawn"}  # `up` always starts a node again
    for name, parameter in options.items():
        assert parameter.annotation.__metadata__[0].help == wanted[name].description


def test_up_starts_the_nodes_that_the_launch_file_starts(tmp_path):
    given = {"state_dir": "/s", "teacher": "w:1", "use_sim_time": "true", "device": "cpu"}
    programs = node_programs(given)
    assert [p.name for p in programs] == ["depth_node", "companion_node"]
    for program in programs:
        command = list(program.command)
        assert command[:4] == [sys.executable, "-m", "tiekd_ros.nodes.programs", program.name]
        for argument in ("__ns:=/tiekd", 'state_dir:="/s"', "use_sim_time:=true"):
            assert argument in command
    assert 'teacher.url:="w:1"' in programs[1].command
    assert 'device:="cpu"' in programs[0].command
    (depth,) = node_programs({"companion": "false"}, logs=tmp_path)
    assert depth.log == tmp_path / "depth_node.log"
    _, companion, camera = node_programs({"teacher": "none", "camera": "synthetic"})
    assert 'teacher.url:=""' in companion.command
    assert 'source:="synthetic"' in camera.command
    assert "image_raw:=/camera/image_raw" in camera.command


def test_what_is_not_given_is_left_to_the_file_of_parameters(started, tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("/**:\n  ros__parameters:\n    device: cpu\n")
    up("--params-file", str(file), "--camera", "synthetic")
    depth, companion, camera = started
    assert parameters(depth) == parameters(companion) == []
    assert parameters(camera) == ['source:="synthetic"']
    for program in started:
        command = list(program.command)
        assert command[command.index("--params-file") + 1] == str(file)


def test_what_is_given_wins_over_the_file_even_if_it_is_the_default(started, tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("{}")
    state = tmp_path / "state"
    up(
        "--params-file", str(file), "--state", str(state), "--device", "auto",
        "--teacher", "127.0.0.1:8001", "--no-use-sim-time",
    )  # fmt: skip
    depth, companion = started
    shared = {f'state_dir:="{state}"', "use_sim_time:=false"}
    assert set(parameters(depth)) == {*shared, 'device:="auto"'}
    assert set(parameters(companion)) == {*shared, 'teacher.url:="127.0.0.1:8001"'}
    words = list(depth.command)
    assert words.index("--params-file") < words.index("-p")  # the later one wins in rcl
    assert Path(state).is_dir()


def test_options_of_both_nodes_go_to_both_also_where_they_are_one_program(started):
    up("--rectify", "--image-transport", "compressed", "--camera", "synthetic")
    depth, companion, camera = started
    for program in (depth, companion):
        assert parameters(program) == ['image_transport:="compressed"', "rectify:=true"]
    assert parameters(camera) == ['source:="synthetic"']
    started.clear()
    up("--composed", "--no-rectify", "--device", "cpu", "--teacher", "w:1")
    (both,) = started
    assert "tiekd_nodes" in both.command
    assert set(parameters(both)) == {"rectify:=false", 'device:="cpu"', 'teacher.url:="w:1"'}
    started.clear()
    up("--composed", "--no-companion")
    assert [program.name for program in started] == ["depth_node"]


def test_the_file_of_parameters_is_checked_before_anything_starts(started, tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("device: cpu")
    with pytest.raises(TiekdError, match="ros__parameters is missing below 'device'"):
        up("--params-file", str(file))
    assert started == []
    values = "{ros__parameters: {}}"
    file.write_text(f"depth_node: {values}\n/tiekd/depth_node: {values}\n/**/camera_node: {values}")
    output = up("--params-file", str(file))
    (warning,) = [line for line in output.splitlines() if line.startswith("warning: ")]
    assert f"{file}: no node that is started takes the section 'depth_node'" in warning


def test_a_teacher_runs_beside_the_nodes_on_a_port_that_the_companion_knows(tmp_path):
    teacher = "onnx:a:b.onnx"
    programs = node_programs({"teacher": teacher}, logs=tmp_path)
    assert [p.name for p in programs] == ["teacher", "depth_node", "companion_node"]
    command = list(programs[0].command)
    assert command[:5] == [sys.executable, "-m", "tiekd_ros.cli", "teacher", "serve"]
    assert command[command.index("--backend") + 1] == teacher
    assert "--give-way" in command
    assert "--host" not in command  # so that only this machine reaches it
    port = command[command.index("--port") + 1]
    assert f'teacher.url:="127.0.0.1:{port}"' in programs[2].command
    assert programs[0].log == tmp_path / "teacher.log"
    assert [p.required for p in programs] == [False, True, True]


def test_parameters_of_another_teacher_do_not_lock_out_the_one_that_runs_here(tmp_path):
    own = {COMPANION: {"teacher.timeout_s": 9.0}}
    token = str(tmp_path / "token")
    given = {"teacher": "synthetic:0", "teacher_ca": token, "teacher_token_file": token}
    here = node_programs(given, own)[2]
    assert set(parameters(here)) >= LOCAL
    assert "teacher.timeout_s:=9.0" in parameters(here)
    assert token not in " ".join(parameters(here))
    there = node_programs({"teacher": "w:8001", "teacher_token_file": token})[1]
    assert parameters(there) == ['teacher.url:="w:8001"', f'teacher.token_file:="{token}"']


def test_a_teacher_elsewhere_gets_a_token_and_shows_a_certificate(started, tmp_path):
    ca, token = tmp_path / "ca.pem", tmp_path / "token"
    for file in (ca, token):
        file.touch()
    up("--teacher", "w:8001", "--teacher-ca", str(ca), "--teacher-token-file", str(token))
    assert set(parameters(started[1])) == {
        'teacher.url:="w:8001"',
        f'teacher.ca:="{ca}"',
        "teacher.tls:=true",
        f'teacher.token_file:="{token}"',
    }
    assert parameters(started[0]) == []


def test_a_value_that_cannot_be_meant_is_named_before_anything_starts(started):
    given = {"teacher-ca": "lost.pem", "teacher-token-file": "lost.pem", "log-level": "loud"}
    for option, value in given.items():
        result = CliRunner().invoke(app, ["up", f"--{option}", value])
        assert result.exit_code == 2
        assert value in result.output.replace("\n", "").replace("│", "").replace(" ", "")
    assert started == []


def test_no_teacher_runs_here_for_an_address_or_without_a_companion():
    for teacher in ("none", "", "w:8001", "10.0.0.7:8001", "onnx", "[::1]:8001"):
        assert "teacher" not in [p.name for p in node_programs({"teacher": teacher})]
    (depth,) = node_programs({"teacher": "synthetic:0", "companion": "false"})
    assert depth.name == "depth_node"
