"""A small RGB-D folder, and `tiekd train` as a program on it."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import torch
from typer.testing import CliRunner

from helpers import depth_data
from helpers.children import start_python, wait_until
from helpers.frames import HEIGHT, WIDTH, views
from helpers.students import FASTEST
from tiekd_ros.cli.__main__ import app
from tiekd_ros.student.checkpoint import load_student
from tiekd_ros.worlds import IndoorWorld

COUNT = 11
"""Images of the folder; the last one validates."""


def write_rgbd(folder: Path, count: int = COUNT) -> Path:
    """Write views of the synthetic world as an RGB-D folder, 96x72, millimetres."""
    images, depths = zip(*((view.image, view.depth) for view in views()[:count]), strict=True)
    return depth_data.write_rgbd(
        folder, images, depths, IndoorWorld.default_intrinsics(WIDTH, HEIGHT)
    )


def train_arguments(data: Path, output: Path, *more: str, **groups: dict[str, Any]) -> list[str]:
    """Return the arguments of a run of 5 steps of 4 images, in this process, on the CPU."""
    settings = {
        "train": {"batch_norm": "frozen", **groups.get("train", {})},
        "student": {"architecture": FASTEST, "bins": 17, "max_depth_m": 10.0},
        "housekeeping": {"log_every": 1, "picture_every": 0, **groups.get("housekeeping", {})},
        **{name: v for name, v in groups.items() if name not in ("train", "housekeeping")},
    }
    return [
        "train", "--data", str(data), "--output", str(output), "--input-size", "64x96",
        "--init", "random", "--batch-size", "4", "--iterations", "5", "--workers", "0",
        "--device", "cpu", "--settings", json.dumps(settings), *more,
    ]  # fmt: skip


def train(*arguments: str) -> dict[str, Any]:
    """Run `tiekd train` in this process and return what it says in JSON."""
    result = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def train_killed_and_continued(data: Path, output: Path, *more: str, **groups: Any) -> None:
    """Kill a run after its second snapshot of five, and continue it."""
    arguments = train_arguments(data, output, *more, housekeeping={"snapshot_every": 1}, **groups)
    child = start_python("-m", "tiekd_ros.cli", *arguments)
    wait_until(lambda: (output / "snapshots" / "00000002").exists())
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (output / "snapshots" / "00000005").exists(), "too late to be a test"
    (output / "metrics.jsonl").open("a").write('{"step": 3, "kind": "tr')  # half a line
    assert train(*arguments, "--resume")["step"] == 5


def weights(output: Path, student: str = "student_last") -> dict[str, torch.Tensor]:
    """Return the weights of a run's last student, or the best one (`student`)."""
    return load_student(output / student).network.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Say whether two state_dicts are equal."""
    return all(torch.equal(one[name], other[name]) for name in one)


def train_lines(output: Path) -> list[dict[str, float]]:
    """Return what a run logged of each of its steps."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "train"]


def losses(output: Path) -> list[float]:
    """Return the loss of each step of a run."""
    return [line["loss"] for line in train_lines(output)]
