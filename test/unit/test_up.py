"""The command lines of `tiekd up`: what the user gave is passed on, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tiekd_ros import supervisor
from tiekd_ros.cli import app
from tiekd_ros.supervisor import Program
from tiekd_ros.up import UpOptions, node_programs


def parameters(program: Program) -> list[str]:
    """Return what stands after each -p."""
    command = list(program.command)
    return [command[i + 1] for i, word in enumerate(command) if word == "-p"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Program]:
    """Return the programs that `tiekd up` would have run."""
    programs: list[Program] = []

    def pretend(given: Sequence[Program], say: object) -> None:
        programs.extend(given)

    monkeypatch.setattr(supervisor, "supervise", pretend)
    monkeypatch.setattr("tiekd_ros.ros_environment.require_ros", lambda: None)
    return programs


def up(*arguments: str) -> None:
    result = CliRunner().invoke(app, ["up", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def test_up_starts_the_nodes_that_the_launch_file_starts():
    programs = node_programs(
        UpOptions(state_dir="/s", teacher="w:1", use_sim_time=True, device="cpu")
    )
    assert [p.name for p in programs] == ["depth_node", "companion_node"]
    for program in programs:
        command = list(program.command)
        assert command[:3] == [sys.executable, "-m", f"tiekd_ros.nodes.{program.name}"]
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
