"""The command lines of `tiekd up`: what the user gave is passed on, and nothing else."""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tiekd_ros.cli.main import app
from tiekd_ros.cli.nodes import UpOptions, is_backend, node_programs
from tiekd_ros.core import supervisor
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.supervisor import Program
from tiekd_ros.teacher.backends import BACKENDS

LAUNCHED = Path(__file__).resolve().parents[2] / "launch" / "processes.py"


def parameters(program: Program) -> list[str]:
    """Return what stands after each -p."""
    command = list(program.command)
    return [command[i + 1] for i, word in enumerate(command) if word == "-p"]


def launch_value(name: str) -> Any:
    """Return what the launch files' module, which needs `launch` to be imported, assigns."""
    module = ast.parse(LAUNCHED.read_text())
    (value,) = [
        node.value
        for node in module.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    ]
    return ast.literal_eval(value)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Program]:
    """Return the programs that `tiekd up` would have run."""
    programs: list[Program] = []

    def pretend(given: Sequence[Program], say: object) -> None:
        programs.extend(given)

    monkeypatch.setattr(supervisor, "supervise", pretend)
    monkeypatch.setattr("tiekd_ros.core.supervisor.require_ros", lambda: None)
    return programs


def up(*arguments: str) -> str:
    """Run it; return what it said."""
    result = CliRunner().invoke(app, ["up", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_up_starts_the_nodes_that_the_launch_file_starts():
    programs = node_programs(
        UpOptions(state_dir="/s", teacher="w:1", use_sim_time=True, device="cpu")
    )
    assert [p.name for p in programs] == ["depth_node", "companion_node"]
    for program in programs:
        command = list(program.command)
        assert command[:4] == [sys.executable, "-m", "tiekd_ros.nodes.programs", program.name]
        for argument in ("__ns:=/tiekd", 'state_dir:="/s"', "use_sim_time:=true"):
            assert argument in command
    assert 'teacher.url:="w:1"' in programs[1].command
    assert 'device:="cpu"' in programs[0].command


def test_up_without_teacher_companion_or_with_a_camera(tmp_path):
    (depth,) = node_programs(UpOptions(companion=False), tmp_path)
    assert depth.log == tmp_path / "depth_node.log"
    _, companion, camera = node_programs(UpOptions(teacher="none", camera="synthetic"))
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
    shared = [f'state_dir:="{state}"', "use_sim_time:=false"]
    assert parameters(depth) == [*shared, 'device:="auto"']
    assert parameters(companion) == [*shared, 'teacher.url:="127.0.0.1:8001"']
    words = list(depth.command)
    assert words.index("--params-file") < words.index("-p")  # the later one wins in rcl
    assert Path(state).is_dir()


def test_how_the_images_come_is_said_to_both_nodes(started):
    up("--rectify", "--image-transport", "compressed", "--camera", "synthetic")
    depth, companion, camera = started
    for program in (depth, companion):
        assert parameters(program) == ['image_transport:="compressed"', "rectify:=true"]
    assert parameters(camera) == ['source:="synthetic"']


def test_composed_both_nodes_are_one_program_with_the_parameters_of_both(started):
    up("--composed", "--no-rectify", "--device", "cpu", "--teacher", "w:1")
    (both,) = started
    assert "tiekd_nodes" in both.command
    assert parameters(both) == ["rectify:=false", 'device:="cpu"', 'teacher.url:="w:1"']


def test_composed_without_the_companion_is_the_depth_node_alone(started):
    up("--composed", "--no-companion")
    assert [program.name for program in started] == ["depth_node"]


SECTIONS = """
depth_node: {ros__parameters: {device: cpu}}
/tiekd/depth_node: {ros__parameters: {device: cpu}}
/**/camera_node: {ros__parameters: {rate_hz: 3.0}}
"""


@pytest.mark.usefixtures("started")
def test_a_section_that_no_node_takes_is_told_with_what_would_do(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text(SECTIONS)
    output = up("--params-file", str(file))
    (said,) = [line for line in output.splitlines() if line.startswith("warning: ")]
    assert f"{file}: no node that is started takes the section 'depth_node'" in said
    assert "'/tiekd/depth_node', '/**/depth_node', or '/**'" in said


def test_a_file_that_has_no_parameters_starts_nothing(started, tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("device: cpu")
    with pytest.raises(TiekdError, match="ros__parameters is missing below 'device'"):
        up("--params-file", str(file))
    assert started == []


@pytest.mark.parametrize("teacher", ["huggingface:/models/large", "onnx:a:b.onnx", "synthetic:0"])
def test_a_teacher_runs_beside_the_nodes_on_a_port_that_the_companion_knows(teacher, tmp_path):
    programs = node_programs(UpOptions(teacher=teacher), tmp_path)
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


LOCAL = {
    "labels.starting_s": "120.0",
    "teacher.tls": "false",
    **{
        f"teacher.{name}": '""'
        for name in ("ca", "cert", "key", "server_name", "pin", "token_file")
    },
}


def test_a_file_of_parameters_for_another_teacher_does_not_lock_out_the_one_that_runs_here():
    own = {"teacher.timeout_s": 9.0}
    here = node_programs(UpOptions(teacher="synthetic:0", companion_parameters=own))[2]
    assert {f"{name}:={value}" for name, value in LOCAL.items()} <= set(parameters(here))
    assert "teacher.timeout_s:=9.0" in parameters(here)
    there = node_programs(UpOptions(teacher="w:8001"))[1]
    assert parameters(there) == ['teacher.url:="w:8001"']


def test_the_launch_file_sets_the_same_parameters_for_it():
    found = {
        name: {"": '""', False: "false"}.get(value, str(value))
        for name, value in launch_value("LOCAL_TEACHER").items()
    }
    assert found == LOCAL


def test_a_teacher_elsewhere_gets_a_token_and_shows_a_certificate(started, tmp_path):
    ca, token = tmp_path / "ca.pem", tmp_path / "token"
    for file in (ca, token):
        file.touch()
    up("--teacher", "w:8001", "--teacher-ca", str(ca), "--teacher-token-file", str(token))
    assert parameters(started[1]) == [
        'teacher.url:="w:8001"',
        f'teacher.ca:="{ca}"',
        "teacher.tls:=true",
        f'teacher.token_file:="{token}"',
    ]
    assert parameters(started[0]) == []


def test_a_token_needs_no_certificate_and_a_teacher_that_runs_here_neither(tmp_path):
    token = tmp_path / "token"
    there = node_programs(UpOptions(teacher="w:8001", teacher_token_file=token))[1]
    assert parameters(there) == ['teacher.url:="w:8001"', f'teacher.token_file:="{token}"']
    here = UpOptions(teacher="synthetic:0", teacher_ca=token, teacher_token_file=token)
    assert {f"{name}:={value}" for name, value in LOCAL.items()} <= set(
        parameters(node_programs(here)[2])
    )
    assert str(token) not in " ".join(parameters(node_programs(here)[2]))


@pytest.mark.parametrize("option", ["--teacher-ca", "--teacher-token-file"])
def test_a_file_that_is_not_there_is_named_before_anything_starts(started, tmp_path, option):
    result = CliRunner().invoke(app, ["up", option, str(tmp_path / "lost.pem")])
    assert result.exit_code == 2
    assert "lost.pem" in result.output.replace("\n", "").replace("│", "").replace(" ", "")
    assert started == []


def test_nobody_runs_a_teacher_for_nobody():
    (depth,) = node_programs(UpOptions(teacher="synthetic:0", companion=False))
    assert depth.name == "depth_node"


@pytest.mark.parametrize("teacher", ["none", "", "w:8001", "10.0.0.7:8001", "onnx", "[::1]:8001"])
def test_an_address_is_no_backend(teacher):
    assert not is_backend(teacher)
    assert "teacher" not in [p.name for p in node_programs(UpOptions(teacher=teacher))]


def test_the_launch_file_knows_the_same_backends():
    assert launch_value("BACKENDS") == BACKENDS
