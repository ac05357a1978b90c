"""The base student as a first student: fitted to a few labels, judged on others, and replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.frames import FROM_BASE, HEIGHT, WIDTH, fill_store, small_plan, views
from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.errors import RoundRefusedError
from tiekd_ros.core.state import StateFolder
from tiekd_ros.framelog import FrameLogSettings, FrameStore, Label, Observation
from tiekd_ros.rounds.calibration import run_calibration
from tiekd_ros.rounds.round import run_round
from tiekd_ros.student import base_student
from tiekd_ros.student.checkpoint import CheckpointError, StudentCard
from tiekd_ros.student.registry import StudentRegistry
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime
from tiekd_ros.worlds import IndoorWorld, WorldView

CAMERA = IndoorWorld.default_intrinsics(WIDTH, HEIGHT)
ABSORBED = 0.05  # of the errors: what a scale fitted to other frames may change
DEAD_ZONE = 0.16  # of depth: so much of a wrong focal length may stay


def plan(**groups: dict[str, Any]):
    return small_plan(
        student=FROM_BASE,
        gate={"first_margin": 0.8},
        train={"iterations": 1},
        **groups,
    )


def calibrate(state: StateFolder, **groups: dict[str, Any]) -> dict[str, Any]:
    """Run a calibration; return its result event."""
    events: list[dict[str, Any]] = []
    run_calibration(state, small_plan(**{**plan().as_dict(), **groups}), 1, events.append)
    stages = [event["stage"] for event in events if event["event"] == "stage"]
    assert stages == ["loading", "calibrating", "judging"]
    return events[-1]


def card_of(state: StateFolder, version: str = "000001") -> StudentCard:
    return StudentRegistry(state.students).card(version)


def state_with(
    root: Path, seen: Sequence[WorldView], camera: Intrinsics | None = CAMERA
) -> StateFolder:
    """Return a state folder whose frame log holds these views, 2 s apart, all labelled."""
    state = StateFolder(root).create()
    settings = FrameLogSettings(
        min_interval_s=0.0, min_sharpness=0.0, min_novelty=0.0, guard_share=0.0
    )
    with FrameStore(state.frames, settings) as store:
        for number, view in enumerate(seen):
            frame = store.add(Observation(view.image, number * 2 * 10**9, "camera", camera))
            store.put_label(frame.frame_id, Label(view.depth, "exact", "1"))
    return state


def test_a_base_that_fits_is_accepted_and_its_card_says_what_it_is(state):
    result = calibrate(state)
    assert result["accepted"], result["reason"]
    assert (result["baseline"], result["parent"]) == ("best constant", None)
    assert (result["train_frames"], result["held_out_frames"]) == (24, 24)
    assert result["train_ids"] == []
    card = card_of(state)
    assert (card.status, card.round, card.teacher) == ("accepted", 1, "exact 1")
    assert card.training["start"] == "calibrated base"
    assert card.training["focal_px_known"]
    number = f"{card.training['scale']:.2f}"
    assert card.reason.startswith(
        f"calibrated base: its depth times {number}, fitted to 24 frames; held"
    )
    registry = StudentRegistry(state.students)
    assert registry.live() is None  # the process that started the round promotes
    runtime = TorchRuntime(registry.load("000001"))
    errors = [np.abs(runtime.predict(v.image).depth - v.depth) / v.depth for v in views()]
    assert np.mean(errors) < (1 + ABSORBED) * result["after"]["abs_rel"]


def test_one_that_does_not_is_kept_refused(state):
    result = calibrate(state, gate={"first_margin": 0.05})
    assert not result["accepted"]
    assert "at most 0.05 is asked" in result["reason"]
    assert card_of(state).status == "refused"


def test_what_is_fitted_to_one_half_is_judged_on_the_other(tmp_path):
    """A place whose second half is three times as large: no half's scale fits the other's."""
    seen = [
        replace(view, depth=view.depth * (1 if number < 12 else 3))
        for number, view in enumerate(views())
    ]
    assert not calibrate(state_with(tmp_path, seen))["accepted"]


@pytest.mark.parametrize(
    ("factor", "says"), [(3.0, "times too far"), (1 / 3, "times too near")], ids=["long", "short"]
)
def test_a_wrong_focal_length_is_absorbed_and_said(factor, says, state, tmp_path):
    right = calibrate(state)
    camera = Intrinsics(factor * CAMERA.fx, factor * CAMERA.fy, CAMERA.cx, CAMERA.cy)
    wrong = calibrate(state_with(tmp_path, views(), camera))
    assert wrong["accepted"]
    assert wrong["after"]["abs_rel"] < right["after"]["abs_rel"] + DEAD_ZONE
    assert f"{says}: the camera's focal length (camera_info) may be wrong" in wrong["reason"]


def few_known(view: WorldView) -> WorldView:
    depth = np.full_like(view.depth, np.nan)
    depth[::5, ::4] = view.depth[::5, ::4]  # 5 % of the image
    return replace(view, depth=depth)


def upright(view: WorldView) -> WorldView:
    image, depth = (np.ascontiguousarray(np.rot90(a)) for a in (view.image, view.depth))
    return replace(view, image=image, depth=depth)


@pytest.mark.parametrize(
    ("seen", "camera"),
    [
        ([few_known(view) for view in views()], CAMERA),
        ([views()[3]] * 12, CAMERA),
        (views(), None),
        ([upright(view) for view in views()], CAMERA),
        (views()[:4], CAMERA),
    ],
    ids=["few known pixels", "one static view", "no focal length", "portrait", "four frames"],
)
def test_odd_frames_come_to_a_verdict(seen, camera, tmp_path):
    state = state_with(tmp_path, seen, camera)
    result = calibrate(state)
    card = card_of(state)
    assert card.reason == result["reason"]
    assert card.training["focal_px_known"] == (camera is not None)
    assert np.isfinite(list(result["after"].values())).all()


def test_what_cannot_be_calibrated_is_refused_with_its_reason(state, tmp_path, monkeypatch):
    few = state_with(tmp_path / "few", views()[:3])
    with pytest.raises(RoundRefusedError, match="known depth: 3, and a calibration needs 4"):
        calibrate(few)
    with pytest.raises(RoundRefusedError, match="no base student to calibrate"):
        calibrate(state, student={"start": "random"})
    registry = StudentRegistry(state.students)
    calibrate(state)
    registry.promote("000001")
    with pytest.raises(RoundRefusedError, match="student 000001 is live"):
        calibrate(state)
    monkeypatch.setattr(base_student, "files", lambda package: tmp_path)
    with pytest.raises(CheckpointError, match="install tiekd_ros again"):
        calibrate(state_with(tmp_path / "base missing", views()))
    assert registry.versions() == ["000001"]


def test_a_round_replaces_a_calibrated_base_and_starts_from_the_base_anew(tmp_path):
    state = StateFolder(tmp_path).create()
    fill_store(state.frames, views()[:8])
    calibrate(state)
    registry = StudentRegistry(state.students)
    registry.promote("000001")
    far = [replace(view, depth=view.depth + 8) for view in views()[8:]]  # beyond its range
    fill_store(state.frames, far, first=8)
    events: list[dict[str, Any]] = []
    run_round(state, plan(), 2, events.append)
    result, card = events[-1], card_of(state, "000002")
    assert (result["baseline"], result["parent"], card.parent) == ("incumbent", "000001", "000001")
    before = card_of(state).training
    assert card.training["start"] == "base"
    assert card.training["scale"] > 1.5 * before["scale"]  # of its own frames
    assert (card_of(state).bins.max_depth_m, card.bins.max_depth_m) == (10.0, 20.0)
