"""What a run writes lasts: curves and students are whole whenever a process is killed."""

from __future__ import annotations

import json
import os

import pytest

from helpers.students import small_student
from helpers.training import train, train_arguments
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.method.stepping import TrainingError
from tiekd_ros.student import checkpoint
from tiekd_ros.student.checkpoint import load_student
from tiekd_ros.training import run_folder
from tiekd_ros.training.loop import METRICS, Curves
from tiekd_ros.training.run_folder import RunFolder, RunFolderError


def write_curves(folder, steps: int) -> str:
    lines = [json.dumps({"step": n, "kind": "train", "loss": 1 / n}) for n in range(1, steps + 1)]
    text = "".join(f"{line}\n" for line in lines)
    (folder / METRICS).write_text(text)
    return text


def test_continued_curves_end_at_the_snapshot_and_are_not_lost_where_that_is_cut_short(
    tmp_path, monkeypatch
):
    text = write_curves(tmp_path, 5)

    def cut_short(path, data):
        path.write_bytes(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(checkpoint, "write_durably", cut_short)
        with pytest.raises(TrainingError, match="No space left on device"):
            Curves(tmp_path, 4)
    assert (tmp_path / METRICS).read_text() == text
    assert [p.name for p in tmp_path.iterdir()] == [METRICS]
    Curves(tmp_path, 3).close()
    assert (tmp_path / METRICS).read_text() == "".join(text.splitlines(keepends=True)[:3])
    assert {p.name for p in tmp_path.iterdir()} == {METRICS, "tensorboard"}


def test_a_process_that_the_training_forked_does_not_hold_its_folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    (ending, end), (running, started) = os.pipe(), os.pipe()
    with folder.opened({}, resume=True):
        child = os.fork()
        if child == 0:  # a reader that outlives a killed training
            os.write(started, b"x")
            os.read(ending, 1)
            os._exit(0)
        os.read(running, 1)
        with pytest.raises(RunFolderError, match="another training is running"):
            folder.opened({}, resume=True).__enter__()
    try:
        with folder.opened({}, resume=True):
            pass
    finally:
        os.write(end, b"x")
        os.waitpid(child, 0)
        for pipe in (ending, end, running, started):
            os.close(pipe)


def test_settings_of_a_training_that_wrote_nothing_else_do_not_count(tmp_path):
    folder = RunFolder(tmp_path)
    with folder.opened({"seed": 0}, resume=False):
        (tmp_path / "snapshots" / ".writing-7").mkdir(parents=True)
        write_curves(tmp_path, 2)
    for seed, resume in ((1, False), (2, True)):
        with folder.opened({"seed": seed}, resume=resume):
            assert json.loads((tmp_path / "run.json").read_text()) == {"seed": seed}


@pytest.mark.parametrize("written", ["snapshots/00000002", "students/00000002"])
def test_a_run_begins_with_its_first_snapshot_or_student(tmp_path, written):
    folder = RunFolder(tmp_path)
    with folder.opened({"seed": 0}, resume=False):
        (tmp_path / written).mkdir(parents=True)
    with pytest.raises(RunFolderError, match="holds a run already"):
        folder.opened({"seed": 1}, resume=False).__enter__()
    with pytest.raises(RunFolderError, match="seed was 0, now 1"):
        folder.opened({"seed": 1}, resume=True).__enter__()


def test_settings_of_another_program_are_not_replaced(tmp_path):
    for text in ('{"laps": 3}', "[]", "Tuesday: 5 km"):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(RunFolderError, match="holds a run already"):
            RunFolder(tmp_path).opened({"seed": 1}, resume=False).__enter__()
        assert (tmp_path / "run.json").read_text() == text


@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_a_corrected_command_trains_where_the_wrong_one_was_refused(rgbd, tmp_path, more):
    output = tmp_path / "out"
    with pytest.raises(TiekdError, match="too few for one batch of 11"):
        train(*train_arguments(rgbd, output, "--batch-size", "11"))
    train(*train_arguments(rgbd, output, "--iterations", "1", *more))
    assert json.loads((output / "run.json").read_text())["train"]["batch_size"] == 4
    assert (output / "student").is_dir()


def test_the_disk_has_a_students_name_before_it_has_the_link_to_it(tmp_path, monkeypatch):
    seen = []

    def note(folder):
        target = tmp_path / "students" / "00000007"
        seen.append((folder.name, target.exists(), (tmp_path / "student").is_symlink()))

    monkeypatch.setattr(run_folder, "sync_folder", note)
    RunFolder(tmp_path).export(small_student(), 7, best=True)
    assert ("students", True, False) in seen
    assert seen[-1] == (tmp_path.name, True, True)
    assert load_student(tmp_path / "student").card.weights_sha256
