"""The training process itself: what it says, what it leaves, and how it ends.

Each test runs `python -m tiekd_ros.rounds.worker`, as the companion and `tiekd distill`
do, on a small frame log of the synthetic world.
"""

from __future__ import annotations

import signal

import pytest

from helpers.children import PATIENCE_S
from helpers.frames import SIZE, fill_store, small_settings, views
from helpers.rounds import ENDLESS_RUN, events_of, start_worker, wait_for_event
from tiekd_ros.core.state import StateFolder
from tiekd_ros.student.registry import StudentRegistry
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime


def test_a_round_comes_to_a_verdict_and_stores_its_candidate(state):
    process = start_worker(state, small_settings())
    events = events_of(process)
    assert process.returncode == 0
    stages = [e["stage"] for e in events if e["event"] == "stage"]
    assert stages == ["loading", "training", "judging"]
    progress = [e for e in events if e["event"] == "progress"]
    assert (progress[0]["stage"], progress[0]["step"]) == ("training", 1)
    last = progress[-1]
    assert (last["stage"], last["step"], last["steps"]) == ("judging", 12, 12)
    assert {"steps", "loss", "kl", "ssim", "seconds"} <= set(progress[0])
    result = events[-1]
    assert result["event"] == "result"
    assert result["accepted"], result["reason"]
    assert result["baseline"] == "best constant"
    assert result["after"]["rmse"] < result["before"]["rmse"]
    assert (result["train_frames"], result["held_out_frames"], result["steps"]) == (12, 12, 25)
    assert len(result["train_ids"]) == 12

    registry = StudentRegistry(state.students)
    assert registry.versions() == [result["version"]] == ["000001"]
    assert registry.live() is None  # the process that started the round promotes
    student = registry.load("000001")
    card = student.card
    assert (card.round, card.status, card.parent) == (3, "accepted", None)
    assert card.reason == result["reason"]
    assert card.teacher == "exact 1"
    assert card.frames == {"train": 12, "held_out": 12}
    assert card.scores["after"] == result["after"]
    assert card.input_size == SIZE
    assert (card.bins.count, card.bins.max_depth_m) == (33, 10.0)
    assert card.training["steps"] == 25
    # 62.6 px for 96x72 at 75 degrees, scaled to 96x64
    assert card.focal_px == pytest.approx((62.56, 62.56 * 64 / 72), rel=1e-3)
    assert TorchRuntime(student).predict(views()[0].image).depth.shape == (72, 96)


def test_what_cannot_be_ends_with_one_error_line(tmp_path):
    few, damaged = (StateFolder(tmp_path / name).create() for name in ("few", "damaged"))
    fill_store(few.frames, views()[:4])
    damaged.frames.write_bytes(b"no database at all" * 100)
    for state, plan, message in (
        (few, "{}", "too few labelled frames: 3 for training (need 40), 1 held out"),
        (few, '{"x": {}}', "'x'"),
        (damaged, "{}", "frames.sqlite3"),
    ):
        process = start_worker(state, plan)
        events = events_of(process)
        assert process.returncode == 2
        assert events[-1]["event"] == "error"
        assert message in events[-1]["message"]
        assert StudentRegistry(state.students).versions() == []


def test_it_ends_with_its_parent_and_leaves_nothing(state):
    process = start_worker(state, small_settings(train=ENDLESS_RUN), "--with-parent")
    wait_for_event(process, "progress")
    process.stdin.close()
    assert process.wait(PATIENCE_S) == 3
    process.stdout.close()
    process.stderr.close()
    assert StudentRegistry(state.students).versions() == []


def test_a_worker_killed_in_mid_training_leaves_everything_whole(state):
    process = start_worker(state, small_settings(train=ENDLESS_RUN))
    wait_for_event(process, "progress")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=PATIENCE_S)
    registry = StudentRegistry(state.students)
    registry.clean()
    assert list(state.students.iterdir()) == []
    plan = small_settings(train={"iterations": 1}, gate={"first_margin": 0.05})
    process = start_worker(state, plan)
    result = events_of(process)[-1]
    assert process.returncode == 0  # refused is a verdict too
    assert not result["accepted"]
    assert registry.card("000001").status == "refused"
    assert registry.live() is None
