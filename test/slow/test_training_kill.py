"""`tiekd train` killed while readers run and batch norms learn: it ends with the same weights."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from helpers.children import start_python, wait_until
from helpers.training import train_arguments, write_rgbd
from tiekd_ros.cli.main import app
from tiekd_ros.student.checkpoint import load_student

CAREFUL = {"snapshot_every": 1}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the programs started here have it: results are compared
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_rgbd(tmp_path_factory.mktemp("data") / "rgbd")


def run(data: Path, output: Path, *more: str, **groups) -> dict:
    """Run the command in this process and return what it says in JSON."""
    arguments = train_arguments(data, output, *more, "--json", **groups)
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def weights(output: Path, student: str = "student_last") -> dict[str, torch.Tensor]:
    return load_student(output / student).network.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def losses(output: Path) -> list[float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def test_batch_statistics_averaged_norms_and_a_reader_survive_a_kill_as_well(data, tmp_path):
    groups = {"train": {"batch_norm": "batch"}, "housekeeping": CAREFUL}
    whole, output = tmp_path / "whole", tmp_path / "out"
    run(data, whole, "--workers", "1", **groups)
    child = start_python(
        "-m", "tiekd_ros.cli", *train_arguments(data, output, "--workers", "1", **groups)
    )
    wait_until(lambda: (output / "snapshots" / "00000002").exists())
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (output / "snapshots" / "00000005").exists(), "too late to be a test"
    run(data, output, "--resume", "--workers", "1", **groups)
    learnt = weights(whole)
    assert same(weights(output), learnt)
    assert same(weights(output, "student"), weights(whole, "student"))
    assert losses(output) == losses(whole)
    assert learnt["backbone.conv1.bn.running_mean"].abs().max() > 0  # not those it began with
