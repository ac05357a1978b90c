"""`tiekd train` as a program: it learns, survives kills, and refuses what cannot work."""

from __future__ import annotations

import json
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
from helpers.training import COUNT, train_arguments, write_rgbd
from tiekd_ros.cli.main import app
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.images import encode_depth_png
from tiekd_ros.core.state import StateFolder
from tiekd_ros.framelog import FrameStore
from tiekd_ros.student.checkpoint import StudentStatus, load_student, save_student
from tiekd_ros.student.registry import StudentRegistry

STEPS = 5
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


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """The folder of a run that nothing disturbed."""
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("run") / "out"
    run(data, output, housekeeping={"picture_every": 2})
    return output


def run(data: Path, output: Path, *more: str, **groups) -> dict:
    """Run the command in this process and return what it says in JSON."""
    arguments = train_arguments(data, output, *more, "--json", **groups)
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refusal(data: Path, output: Path, *more: str, **groups) -> str:
    """Return the message with which the command refuses."""
    with pytest.raises(TiekdError) as caught:
        run(data, output, *more, **groups)
    return str(caught.value)


def weights(output: Path, student: str = "student_last") -> dict[str, torch.Tensor]:
    return load_student(output / student).network.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def losses(output: Path) -> list[float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


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


def test_a_run_that_is_killed_and_continued_ends_with_the_same_weights(data, finished, tmp_path):
    output = tmp_path / "out"
    child = start_python(
        "-m", "tiekd_ros.cli", *train_arguments(data, output, housekeeping=CAREFUL)
    )
    wait_until(lambda: (output / "snapshots" / "00000002").exists())
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (output / "snapshots" / "00000005").exists(), "too late to be a test"
    (output / "metrics.jsonl").open("a").write('{"step": 3, "kind": "tr')  # half a line
    outcome = run(data, output, "--resume", housekeeping=CAREFUL)
    assert outcome["step"] == STEPS
    assert same(weights(output), weights(finished))
    assert same(weights(output, "student"), weights(finished, "student"))
    assert losses(output) == losses(finished)


def test_ctrl_c_writes_a_snapshot_and_says_how_to_go_on(data, finished, tmp_path):
    output = tmp_path / "out"
    child = start_python("-m", "tiekd_ros.cli", *train_arguments(data, output))
    wait_until(lambda: (output / "metrics.jsonl").exists() and losses(output))
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 128 + signal.SIGINT, err
    assert "stopped after iteration" in out
    assert "continue with --resume" in out
    assert "Traceback" not in err
    run(data, output, "--resume")
    assert same(weights(output), weights(finished))


def test_a_finished_run_can_be_continued_and_registered_once(data, finished, tmp_path):
    state = tmp_path / "state"
    before = weights(finished)
    for _ in range(2):
        outcome = run(
            data, finished, "--resume", "--register", "--state", str(state),
            housekeeping={"picture_every": 2},
        )  # fmt: skip
        assert outcome["version"] == "000001"
    registry = StudentRegistry(state / "students")
    assert registry.versions() == ["000001"]
    assert registry.live() is None
    assert same(registry.load("000001").network.state_dict(), weights(finished, "student"))
    assert same(before, weights(finished))


def test_a_run_killed_right_after_registering_registers_no_second_time(data, finished, tmp_path):
    registry = StudentRegistry(StateFolder(tmp_path / "state").create().students)
    registry.add(small_student(seed=9))
    version = registry.add(load_student(finished / "student")).version  # and then the kill
    (registry.root / "000001" / "card.json").write_text("{")  # another one is damaged
    outcome = run(data, finished, "--resume", "--register", "--state", str(tmp_path / "state"))
    assert (outcome["version"], version) == ("000002", "000002")
    assert registry.versions() == ["000001", "000002"]


def test_holes_in_measured_depth_are_refused_and_those_of_a_teacher_told(data, tmp_path):
    holed = shutil.copytree(data, tmp_path / "holed")
    path = sorted((holed / "depth").iterdir())[0]
    depth = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    depth[:20] = 0
    assert cv2.imwrite(str(path), depth)
    message = refusal(holed, tmp_path / "out", "--objective", "mse")
    assert "'mse' takes unknown depth for 0 m, and 1 of 10 depth maps looked at" in message
    assert "take --labels teacher" in message
    (holed / "depth").rename(holed / "teacher_mm")
    shutil.copytree(data / "depth", holed / "depth")
    (holed / "teacher").mkdir()
    for source in (holed / "teacher_mm").iterdir():
        metres = cv2.imread(str(source), cv2.IMREAD_UNCHANGED).astype(np.float32) / 1000
        metres[metres == 0] = np.nan
        (holed / "teacher" / source.name).write_bytes(encode_depth_png(metres))
    outcome = run(holed, tmp_path / "out", "--objective", "mse", "--iterations", "1")
    assert "'mse' takes unknown depth for 0 m, and 1 of 10" in outcome["warning"]


def test_other_settings_data_or_a_folder_in_use_are_refused(data, finished, tmp_path):
    assert "continue it with --resume" in refusal(data, finished)
    other = refusal(data, finished, "--resume", "--seed", "1", "--lr", "0.01")
    assert "train.learning_rate was 0.001, now 0.01" in other
    assert "train.seed was 0, now 1" in other
    fewer = write_rgbd(tmp_path / "fewer", count=COUNT - 1)
    assert "data.train was 10, now 9" in refusal(fewer, finished, "--resume")
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").touch()
    assert "is not empty (it holds thesis.tex)" in refusal(data, full)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--recipe", "best"], "unknown recipe 'best': known are tiekd, paper-kitti, paper-nyu"),
        (["--recipe", "paper-kitti"], "recipe paper-kitti is for kitti data"),
        (["--arch", "resnet99"], "student.architecture must be one of 'mobilenetv2-fast', "),
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
        (
            ["--settings", '{"trian": {}}'],
            "'trian': known are train, student, loss, augment, housekeeping",
        ),
        (["--settings", '{"train": {"momentum": 1}}'], "unknown setting 'momentum'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(data, tmp_path, more, says):
    assert says in refusal(data, tmp_path / "out", *more)
    assert not (tmp_path / "out" / "snapshots").exists()


def test_a_bad_file_ends_the_run_or_is_listed(tmp_path):
    data = write_rgbd(tmp_path / "rgbd")
    bad = data / "depth" / "0003.png"
    assert cv2.imwrite(str(bad), np.zeros((72, 96), np.uint8))
    message = refusal(data, tmp_path / "one")
    assert "0003.png" in message
    assert "--skip-bad" in message
    outcome = run(data, tmp_path / "two", "--skip-bad")
    assert list(outcome["bad_items"]) == ["0003"]
    assert outcome["step"] == STEPS


def test_all_that_is_passed_over_in_training_and_validation_is_counted_and_listed(tmp_path):
    data = write_rgbd(tmp_path / "rgbd")
    (data / "train.txt").write_text("\n".join(f"{k:04d}" for k in (*range(8), 77)))
    (data / "val.txt").write_text("0008\n0009\n0010\n")
    for name in ("0003", "0009"):
        assert cv2.imwrite(str(data / "depth" / f"{name}.png"), np.zeros((72, 96), np.uint8))
    for name in ("0005", "0010"):
        (data / "depth" / f"{name}.png").unlink()
    output = tmp_path / "out"
    splits = ["--split", "train.txt", "--val-split", "val.txt"]
    outcome = run(data, output, *splits, "--skip-bad")
    assert set(outcome["bad_items"]) == {"0003", "0005", "0009", "0010", "0077"}
    assert "no depth map" in outcome["bad_items"]["0010"]
    assert "16 bits" in outcome["bad_items"]["0009"]
    assert load_student(output / "student").card.frames == {"train": 7, "held_out": 2}
    again = run(data, output, *splits, "--skip-bad", "--resume")
    assert again["bad_items"] == outcome["bad_items"]
    spoken = CliRunner().invoke(
        app, train_arguments(data, output, *splits, "--skip-bad", "--resume")
    )
    assert "5 items passed over" in " ".join(spoken.output.split())


def test_steps_that_are_not_finite_are_skipped_and_five_in_a_row_end_the_run(data, tmp_path):
    endless = {"train": {"learning_rate": 1.0, "clip_norm": 1e6}}
    student = small_student()
    with torch.no_grad():
        student.network.head.bias[0] = 3e38  # finite, but not what is computed with it
        student.network.head.weight.fill_(1e30)
    (tmp_path / "start").mkdir()
    save_student(tmp_path / "start", student)
    output = tmp_path / "out"
    message = refusal(data, output, "--init", str(tmp_path / "start"), **endless)
    assert "not finite in 5 steps in a row (step 5)" in message


def test_training_goes_on_from_a_student_and_keeps_its_bins(data, tmp_path):
    (tmp_path / "start").mkdir()
    start = small_student(seed=3)
    save_student(tmp_path / "start", start)
    output = tmp_path / "out"
    run(data, output, "--init", str(tmp_path / "start"), "--iterations", "1", "--lr", "1e-6")
    card = load_student(output / "student").card
    assert card.bins == start.card.bins
    assert card.parent == str(tmp_path / "start")
    before, after = start.network.state_dict(), weights(output)
    assert torch.allclose(before["head.weight"], after["head.weight"], atol=1e-4)


def test_a_frame_log_trains_on_its_own_split(tmp_path):
    from helpers.frames import filled_state

    state = filled_state(tmp_path / "state")
    with FrameStore(state.frames, read_only=True) as store:
        train, held = (len(store.labelled_ids(split)) for split in ("train", "held_out"))
    output = tmp_path / "out"
    outcome = run(state.root, output, "--iterations", "1", "--workers", "1")
    assert load_student(output / "student").card.frames == {"train": train, "held_out": held}
    assert outcome["scores"]["abs_rel_T"] > 0


def test_a_second_training_in_the_same_folder_is_refused(data, tmp_path):
    import fcntl

    output = tmp_path / "out"
    output.mkdir()
    with (output / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another training is running" in refusal(data, output)
