"""`tiekd train` as a program: it learns, survives kills, and refuses what cannot work."""

from __future__ import annotations

import fcntl
import shutil
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from helpers.children import PATIENCE_S, start_python, wait_until
from helpers.students import small_student
from helpers.training import (
    COUNT,
    losses,
    same,
    train,
    train_arguments,
    train_killed_and_continued,
    weights,
    write_rgbd,
)
from tiekd_ros.cli.__main__ import app
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.images import encode_depth_png
from tiekd_ros.core.state import StateFolder
from tiekd_ros.framelog import FrameStore
from tiekd_ros.student.checkpoint import StudentStatus, load_student, save_student
from tiekd_ros.student.registry import StudentRegistry

STEPS = 5
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def finished(rgbd, tmp_path_factory) -> Path:
    """The folder of a run that nothing disturbed."""
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("run") / "out"
    run(rgbd, output, housekeeping={"picture_every": 2})
    return output


def run(data: Path, output: Path, *more: str, **groups) -> dict:
    return train(*train_arguments(data, output, *more, **groups))


def refusal(data: Path, output: Path, *more: str, **groups) -> str:
    """Return the message with which the command refuses."""
    with pytest.raises(TiekdError) as caught:
        run(data, output, *more, **groups)
    return str(caught.value)


def test_a_run_leaves_students_curves_and_pictures(finished):
    student = load_student(finished / "student")
    assert student.card.status == StudentStatus.CANDIDATE
    assert student.card.frames == {"train": COUNT - 1, "held_out": 1}
    assert student.card.training["objective"] == "tiekd"
    assert student.card.scores["validation"]["abs_rel"] > 0
    assert student.card.focal_px is not None
    events = EventAccumulator(str(finished / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3, 4, 5]
    assert [e.step for e in events.Scalars("validation/abs_rel")] == [2, 4, 5]
    assert {"train/kl", "train/ssim", "train/learning_rate", "train/gradient_norm"} <= set(
        events.Tags()["scalars"]
    )
    assert len(events.Images("image, teacher, student")) == 3
    assert len(losses(finished)) == STEPS


def test_a_run_that_is_killed_and_continued_ends_with_the_same_weights(rgbd, finished, tmp_path):
    output = tmp_path / "out"
    train_killed_and_continued(rgbd, output)
    assert same(weights(output), weights(finished))
    assert same(weights(output, "student"), weights(finished, "student"))
    assert losses(output) == losses(finished)


def test_ctrl_c_writes_a_snapshot_and_says_how_to_go_on(rgbd, finished, tmp_path):
    output = tmp_path / "out"
    child = start_python("-m", "tiekd_ros.cli", *train_arguments(rgbd, output))
    wait_until(lambda: (output / "metrics.jsonl").exists() and losses(output))
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 128 + signal.SIGINT, err
    assert "stopped after iteration" in out
    assert "continue with --resume" in out
    assert "Traceback" not in err
    run(rgbd, output, "--resume")
    assert same(weights(output), weights(finished))


def test_a_finished_run_can_be_continued_and_registered_once(rgbd, finished, tmp_path):
    registry = StudentRegistry(StateFolder(tmp_path / "state").create().students)
    registry.add(small_student(seed=9))
    before = weights(finished)
    for _ in range(2):  # as after a kill right behind the registering
        outcome = run(
            rgbd, finished, "--resume", "--register", "--state", str(tmp_path / "state"),
            housekeeping={"picture_every": 2},
        )  # fmt: skip
        assert outcome["version"] == "000002"
        (registry.root / "000001" / "card.json").write_text("{")  # another one is damaged
    assert (registry.versions(), registry.live()) == (["000001", "000002"], None)
    assert same(registry.load("000002").network.state_dict(), weights(finished, "student"))
    assert same(before, weights(finished))


def test_holes_in_measured_depth_are_refused_and_those_of_a_teacher_told(rgbd, tmp_path):
    holed = shutil.copytree(rgbd, tmp_path / "holed")
    (holed / "teacher").mkdir()
    for path in sorted((holed / "depth").iterdir()):
        metres = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.float32) / 1000
        if path.stem == "0000":
            metres[:20] = np.nan
            assert cv2.imwrite(str(path), (np.nan_to_num(metres) * 1000).astype(np.uint16))
        (holed / "teacher" / path.name).write_bytes(encode_depth_png(metres))
    mse = ["--objective", "mse", "--iterations", "1"]
    message = refusal(holed, tmp_path / "out", *mse, "--labels", "truth")
    assert "'mse' takes unknown depth for 0 m, and 1 of 10 depth maps looked at" in message
    assert "take --labels teacher" in message
    outcome = run(holed, tmp_path / "out", *mse)
    assert "'mse' takes unknown depth for 0 m, and 1 of 10" in outcome["warning"]


def test_other_settings_data_or_a_folder_in_use_are_refused(rgbd, finished, tmp_path):
    assert "continue it with --resume" in refusal(rgbd, finished)
    other = refusal(rgbd, finished, "--resume", "--seed", "1", "--lr", "0.01")
    assert "train.learning_rate was 0.001, now 0.01" in other
    assert "train.seed was 0, now 1" in other
    fewer = write_rgbd(tmp_path / "fewer", count=COUNT - 1)
    assert "data.train was 10, now 9" in refusal(fewer, finished, "--resume")
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").touch()
    assert "is not empty (it holds thesis.tex)" in refusal(rgbd, full)
    with (finished / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # refuses those that want it exclusively, as trainings do
        assert "another training is running" in refusal(rgbd, finished, "--resume")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--recipe", "best"], "unknown recipe 'best': known are tiekd, paper-kitti, paper-nyu"),
        (["--recipe", "paper-kitti"], "recipe paper-kitti is for kitti data"),
        (["--arch", "resnet99"], "student.architecture must be one of 'efficientnet-lite0', "),
        (["--arch", "resnet18-regression"], "a regression student does not have; take one of"),
        (["--arch", "resnet18", "--init", "base"], "no base student ships for 'resnet18'"),
        (["--init", "nowhere"], "--init nowhere: neither 'random' nor 'base'"),
        (["--input-size", "65x96"], "height must be a multiple of 32, got 65; 64 would do"),
        (["--input-size", "big"], "--input-size must be HEIGHTxWIDTH"),
        (["--batch-size", "11"], "10 samples are too few for one batch of 11"),
        (["--objective", "magic"], "objective must be one of"),
        (["--labels", "teacher"], "tiekd label"),
        (["--labels", "best"], "labels must be one of auto, teacher, truth, got 'best'"),
        (["--device", "gpu"], "device must be one of 'auto', 'cpu', 'cuda', got 'gpu'"),
        (["--settings", "{"], "settings must be JSON"),
        (["--settings", '{"trian": {}}'], "'trian': known are train, student, loss, augment, "),
        (["--settings", '{"train": {"momentum": 1}}'], "unknown setting 'momentum'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(rgbd, tmp_path, more, says):
    assert says in refusal(rgbd, tmp_path / "out", *more)
    assert not (tmp_path / "out" / "snapshots").exists()


def test_a_bad_file_ends_the_run_or_is_counted_and_listed(tmp_path):
    data, output = write_rgbd(tmp_path / "rgbd"), tmp_path / "out"
    (data / "train.txt").write_text("\n".join(f"{k:04d}" for k in (*range(8), 77)))
    (data / "val.txt").write_text("0008\n0009\n0010\n")
    for name in ("0003", "0009"):
        assert cv2.imwrite(str(data / "depth" / f"{name}.png"), np.zeros((72, 96), np.uint8))
    message = refusal(data, tmp_path / "one")
    assert "0003.png" in message
    assert "--skip-bad" in message
    for name in ("0005", "0010"):
        (data / "depth" / f"{name}.png").unlink()
    asked = ["--split", "train.txt", "--val-split", "val.txt", "--skip-bad"]
    outcome = run(data, output, *asked)
    assert outcome["step"] == STEPS
    assert set(outcome["bad_items"]) == {"0003", "0005", "0009", "0010", "0077"}
    assert "no depth map" in outcome["bad_items"]["0010"]
    assert "16 bits" in outcome["bad_items"]["0009"]
    assert load_student(output / "student").card.frames == {"train": 7, "held_out": 2}
    again = run(data, output, *asked, "--resume")
    assert again["bad_items"] == outcome["bad_items"]
    spoken = CliRunner().invoke(app, train_arguments(data, output, *asked, "--resume"))
    assert "5 items passed over" in " ".join(spoken.output.split())


def test_steps_that_are_not_finite_are_skipped_and_five_in_a_row_end_the_run(rgbd, tmp_path):
    endless = {"train": {"learning_rate": 1.0, "clip_norm": 1e6}}
    student = small_student()
    with torch.no_grad():
        student.network.head.bias[0] = 3e38  # finite, but not what is computed with it
        student.network.head.weight.fill_(1e30)
    (tmp_path / "start").mkdir()
    save_student(tmp_path / "start", student)
    message = refusal(rgbd, tmp_path / "out", "--init", str(tmp_path / "start"), **endless)
    assert "not finite in 5 steps in a row (step 5)" in message


def test_training_goes_on_from_a_student_and_keeps_its_bins(rgbd, tmp_path):
    (tmp_path / "start").mkdir()
    start = small_student(seed=3)
    save_student(tmp_path / "start", start)
    output = tmp_path / "out"
    run(rgbd, output, "--init", str(tmp_path / "start"), "--iterations", "1", "--lr", "1e-6")
    card = load_student(output / "student").card
    assert card.bins == start.card.bins
    assert card.parent == str(tmp_path / "start")
    before, after = start.network.state_dict(), weights(output)
    assert torch.allclose(before["head.weight"], after["head.weight"], atol=1e-4)


def test_a_frame_log_trains_on_its_own_split(labelled, tmp_path):
    with FrameStore(labelled.frames, read_only=True) as store:
        train, held = (len(store.labelled_ids(split)) for split in ("train", "held_out"))
    output = tmp_path / "out"
    outcome = run(labelled.root, output, "--iterations", "1", "--workers", "1")
    assert load_student(output / "student").card.frames == {"train": train, "held_out": held}
    assert outcome["scores"]["abs_rel_T"] > 0
