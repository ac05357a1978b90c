"""Several devices: two gloo processes train as one process with the same global batch does."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from helpers.children import PATIENCE_S, child_environment, run_python, start_python, wait_until
from helpers.devices import add_up, fail_in_second, some_loss
from helpers.training import COUNT, train, train_arguments, train_lines
from tiekd_ros.core.errors import InvalidSettingError, TiekdError
from tiekd_ros.student.checkpoint import load_student
from tiekd_ros.training.data import BatchPlan
from tiekd_ros.training.processes import run_on_devices

TOLERANCE = 1e-4  # relative, of losses: sums of float32 in another order
NAMES = ("loss", "kl", "ssim", "gradient_norm")


@pytest.fixture(scope="module")
def data(rgbd, tmp_path_factory) -> Path:
    """An RGB-D folder where much of the depth is unknown, in each image another share."""
    folder = shutil.copytree(rgbd, tmp_path_factory.mktemp("data") / "rgbd")
    for number, path in enumerate(sorted((folder / "depth").iterdir())):
        depth = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        depth[: number * 7] = 0  # the last ones have next to nothing
        assert cv2.imwrite(str(path), depth)
    return folder


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory) -> Path:
    """The folder of a run in one process."""
    output = tmp_path_factory.mktemp("run") / "alone"
    train(*train_arguments(data, output))
    return output


@pytest.fixture
def _helpers_found(monkeypatch):
    """Let the processes that are started from here find `helpers`."""
    monkeypatch.setenv("PYTHONPATH", child_environment()["PYTHONPATH"])


def curves(output: Path) -> np.ndarray:
    """Return what was logged of each training step, (steps, values)."""
    return np.array([[line[name] for name in NAMES] for line in train_lines(output)])


def scores(output: Path) -> dict[str, float]:
    return load_student(output / "student_last").card.scores["validation"]


def test_two_processes_stopped_and_continued_have_the_loss_curve_of_one(data, alone, tmp_path):
    output = tmp_path / "two"
    arguments = train_arguments(data, output, "--devices", "2")
    child = start_python("-m", "tiekd_ros.cli", *arguments)
    wait_until(lambda: (output / "metrics.jsonl").exists() and len(curves(output)))
    child.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 128 + signal.SIGTERM, err
    steps = [int(p.name) for p in (output / "snapshots").iterdir()]
    assert f"stopped after iteration {max(steps)} of 5" in out
    assert "continue with --resume" in out
    assert "death signal" not in err  # torchrun's own messages
    assert "Traceback" not in err

    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    again = train_arguments(data, output, "--resume")
    done = run_python(*torchrun, "-m", "tiekd_ros.cli", *again)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained: iteration 5 of 5") == 1

    one, two = curves(alone), curves(output)
    assert one.shape == (5, 4)
    np.testing.assert_allclose(two, one, rtol=TOLERANCE)
    assert scores(output) == pytest.approx(scores(alone), rel=1e-3)


def test_what_any_process_passes_over_is_listed(rgbd, tmp_path):
    data = shutil.copytree(rgbd, tmp_path / "rgbd")
    seen = BatchPlan(COUNT - 1, 4, 0, processes=2)
    first, second = ({k for part in seen.parts(0, 2, rank) for _, k in part} for rank in (0, 1))
    bad = f"{min(second - first):04d}"  # only the second process meets it
    assert cv2.imwrite(str(data / "depth" / f"{bad}.png"), np.zeros((72, 96), np.uint8))
    arguments = train_arguments(data, tmp_path / "out", "--devices", "2", "--iterations", "2")
    done = run_python("-m", "tiekd_ros.cli", *arguments, "--skip-bad", "--json")
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["bad_items"]) == [bad]


@pytest.mark.usefixtures("_helpers_found")
def test_an_error_in_one_process_ends_all_and_is_told_once(capfd):
    with pytest.raises(TiekdError, match=r"^0002\.png is no PNG$"):
        run_on_devices(2, "cpu", fail_in_second, None)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.usefixtures("_helpers_found")
def test_shared_means_have_the_gradient_of_the_whole_batch():
    parts = [[1.0, 2.0, 3.0], [4.0, float("nan"), float("nan")]]
    shared = run_on_devices(2, "cpu", add_up, parts)
    x = torch.tensor(parts, requires_grad=True)
    some_loss(x).backward()  # alone, both parts are the whole batch
    assert shared["count"] == 4
    torch.testing.assert_close(torch.tensor(shared["gradients"]), x.grad)


def test_more_devices_than_torchrun_started_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(InvalidSettingError, match="torchrun started 4 processes, but --devices"):
        run_on_devices(2, "cpu", add_up, [])
