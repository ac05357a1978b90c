"""What a run writes lasts: curves and students are whole whenever a process is killed."""

from __future__ import annotations

import json
import os

import pytest

from helpers.students import small_student
from tiekd_ros.distillation.stepping import TrainingError
from tiekd_ros.distillation.training import run_folder
from tiekd_ros.distillation.training.curves import METRICS, Curves
from tiekd_ros.distillation.training.run_folder import RunFolder, RunFolderError
from tiekd_ros.student import checkpoint, load_student


def write_curves(folder, steps: int) -> str:
    lines = [json.dumps({"step": n, "kind": "train", "loss": 1 / n}) for n in range(1, steps + 1)]
    text = "".join(f"{line}\n" for line in lines)
    (folder / METRICS).write_text(text)
    return text


def test_continued_curves_end_at_the_snapshot(tmp_path):
    text = write_curves(tmp_path, 5)
    Curves(tmp_path, 3).close()
    assert (tmp_path / METRICS).read_text() == "".join(text.splitlines(keepends=True)[:3])
    assert {p.name for p in tmp_path.iterdir()} == {METRICS, "tensorboard"}


def test_curves_are_not_lost_where_rewriting_them_is_cut_short(tmp_path, monkeypatch):
    text = write_curves(tmp_path, 5)

    def cut_short(path, data):
        path.write_bytes(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_durably", cut_short)
    with pytest.raises(TrainingError, match="No space left on device"):
        Curves(tmp_path, 4)
    assert (tmp_path / METRICS).read_text() == text
    assert [p.name for p in tmp_path.iterdir()] == [METRICS]


def test_a_process_that_the_training_forked_does_not_hold_its_folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    (asks, told), (hears, says) = os.pipe(), os.pipe()
    with folder.opened({}, resume=True):
        child = os.fork()
        if child == 0:  # a reader that outlives a killed training
            os.write(says, b"x")
            os.read(asks, 1)
            os._exit(0)
        os.read(hears, 1)  # it runs
        with pytest.raises(RunFolderError, match="another training is running"):
            folder.opened({}, resume=True).__enter__()
    try:
        with folder.opened({}, resume=True):
            pass
    finally:
        os.write(told, b"x")
        os.waitpid(child, 0)
        for end in (asks, told, hears, says):
            os.close(end)


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
