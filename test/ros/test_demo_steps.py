"""The demo's steps beside a companion that starts rounds by itself: whose round is followed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.demo import run as demo
from tiekd_ros.demo.results import LEAST_FRAMES
from tiekd_ros.demo.score import Scoreboard, StreamScore


def status(number: int, trigger: str, **more: str) -> dict[str, str]:
    kind = "training" if trigger == "called" else "calibration"
    zeros = dict.fromkeys(("train_frames", "held_out_frames", "train_seconds", "step"), "0")
    return {
        **zeros, "round": str(number), "trigger": trigger, "kind": kind, "state": "promoted",
        "stage": "done", "version": f"{number:06d}", "reason": "good", "baseline": "", **more,
    }  # fmt: skip


class Observer:
    """An observer that sees one status after another, and gets one answer after another."""

    def __init__(self, statuses: list[dict[str, str]], answers: list[tuple[bool, str]]) -> None:
        self._statuses, self._answers = iter(statuses), iter(answers)
        self.ended_rounds = {int(s["round"]): s for s in statuses if s["stage"] == "done"}
        self.first_depth_s = {s["version"]: 1e12 for s in statuses}

    @property
    def status(self) -> dict[str, str]:
        return next(self._statuses)

    def call_distill(self) -> tuple[bool, str]:
        return next(self._answers)


def demo_run(statuses: list[dict[str, str]], *answers: tuple[bool, str]) -> Any:
    programs = SimpleNamespace(check=lambda: None, log_of=lambda name: name)
    display = SimpleNamespace(
        step=lambda title: None, update=lambda share, remark: None, done=lambda remark: None
    )
    observer, board = Observer(statuses, list(answers)), Scoreboard()
    return demo.DemoRun(12, SimpleNamespace(), programs, display, board, observer)


def test_it_calls_again_while_something_short_runs_and_follows_the_round_that_was_called():
    base = status(1, "first labels: 12")
    under_way = status(2, "called", stage="training", steps="9", state="running")
    busy = (False, "busy: round 1 is calibrating (step 1 of 12); call again when it is over")
    run = demo_run(
        [base, base, under_way, status(2, "called"), status(2, "called"), status(3, "called")],
        busy, busy, (True, "round 2 started"), (True, "round 3 started"),
    )  # fmt: skip
    demo._round(run, 1)
    demo._round(run, 2)
    assert [entry.version for entry in run.rounds] == ["000002", "000003"]
    assert run.last_number == 3
    with pytest.raises(TiekdError, match="too few labelled frames"):
        demo._round(demo_run([], (False, "too few labelled frames: 3")), 1)


@pytest.mark.parametrize("frames", [LEAST_FRAMES - 1, LEAST_FRAMES])
def test_a_calibrated_base_is_shown_where_it_was_measured(frames, monkeypatch):
    run = demo_run([status(1, "first labels: 12"), status(2, "called")])
    monkeypatch.setattr(run.board, "of", lambda version: StreamScore(frames=frames))
    shown = [entry.version for entry in demo._calibrated(run)]
    assert shown == (["000001"] if frames >= LEAST_FRAMES else [])
