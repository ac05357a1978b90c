"""The canary of a promoted student: what speaks against it, and what is done then."""

from __future__ import annotations

import dataclasses
import sqlite3
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from helpers.canaries import (
    FRAMES,
    KNOWN,
    WATCHING,
    promote_bad,
    promote_good,
)
from helpers.frames import fill_store, more_views, small_plan
from helpers.rounds import worker_pids
from tiekd_ros.core.errors import InvalidSettingError, TiekdError
from tiekd_ros.method.comparison import PairedErrors
from tiekd_ros.method.metrics import DepthMetrics
from tiekd_ros.rounds.canary import CanarySettings, evaluate_canary, judge_canary
from tiekd_ros.rounds.plan import RoundPlan
from tiekd_ros.rounds.round_log import RoundLog, RoundRecord


def scored(error: float, count: int = 1) -> list[DepthMetrics]:
    """Return the metrics of frames whose AbsRel is a tenth of this, and RMSE this."""
    values = {field.name: 0.5 for field in dataclasses.fields(DepthMetrics)}
    return [DepthMetrics(**{**values, "rmse": error, "abs_rel": 0.1 * error})] * count


# What speaks against a student.


@pytest.mark.parametrize(
    ("watched", "worse"),
    [
        (scored(1.0, 10), False),
        (scored(0.5, 10), False),  # better
        (scored(1.04, 10), False),  # within the tolerance
        (scored(1.06, 10), True),
        (scored(1.3, 7) + scored(1.0, 3), True),
        (scored(1.3, 6) + scored(1.0, 4), False),  # worse in the mean, and on too few of them
        (scored(1.0, 9) + scored(50.0), False),  # one frame is no proof, however wrong
        (scored(1.01, 9) + scored(50.0), False),  # nor with others that are a trifle worse
        (scored(1.06, 7) + scored(0.5, 3), False),  # most are worse, others better by more
    ],
)
def test_a_student_is_worse_where_mean_and_most_frames_say_so(watched, worse):
    assert judge_canary(PairedErrors(watched, scored(1.0, 10)), CanarySettings()).worse is worse


def test_tolerance_and_support_are_settings():
    watched, before = scored(1.3, 7) + scored(1.0, 3), scored(1.0, 10)
    assert not judge_canary(PairedErrors(watched, before), CanarySettings(tolerance=0.25)).worse
    assert not judge_canary(PairedErrors(watched, before), CanarySettings(support=0.75)).worse
    less = scored(1.3, 6) + scored(1.0, 4)
    assert judge_canary(PairedErrors(less, before), CanarySettings(support=0.6)).worse


def test_the_verdict_says_its_numbers():
    found = judge_canary(PairedErrors(scored(1.2, 10), scored(1.0, 10)), CanarySettings())
    assert found.frames == 10
    assert "on 10 frames since its promotion" in found.reason
    assert "AbsRel 0.100 -> 0.120 (+20.0%), RMSE 1.000 -> 1.200 m (+20.0%)" in found.reason
    assert "more than 5.0% worse on 100% of them (65% would be needed)" in found.reason
    assert (found.before.rmse, found.after.rmse) == pytest.approx((1.0, 1.2))


def share_found_worse(factor: float, alike: int = 1) -> float:
    """Return how often a student is found worse whose errors are really these times as large.

    Both students' errors scatter by a tenth from frame to frame, each in its own way; `alike`
    frames in a row say the same.
    """
    rng, found, count = np.random.default_rng(0), 0, 300
    for _ in range(count):
        both = np.exp(rng.normal(0.0, 0.1, (2, 32 // alike))).repeat(alike, axis=1)
        watched, before = (
            [scored(float(error))[0] for error in one] for one in (both[0] * factor, both[1])
        )
        found += judge_canary(PairedErrors(watched, before), CanarySettings()).worse
    return found / count


def test_chance_is_not_taken_for_proof_and_proof_is_found():
    assert share_found_worse(1.0) <= 0.01
    assert share_found_worse(1.0, alike=4) <= 0.06
    assert share_found_worse(1.2) >= 0.97


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"frames": 3}, "frames must be between 4 and 10000, got 3"),
        ({"tolerance": -0.1}, "tolerance must be between 0 and 10, got -0.1"),
        ({"support": 0.4}, "support must be between 0.5 and 1, got 0.4"),
        ({"enabled": 1}, "enabled must be bool, got 1"),
        ({"frame": 8}, "unknown setting 'frame': known are enabled, frames, tolerance, support"),
    ],
)
def test_bad_settings_are_refused_by_name(values, message):
    with pytest.raises(InvalidSettingError, match=f"canary.*{message}"):
        RoundPlan.from_mapping({"canary": values})


# Judging, and what follows from it.


def test_a_student_that_is_clearly_worse_is_rolled_back_and_marked(state, watch_over):
    promote_bad(state)
    tower = watch_over()
    tower.look()
    assert tower.told() == ["judging", "rolled back"], tower.canary.trouble
    assert tower.registry.live() == "000001"
    result = tower.result()
    assert result.frames == FRAMES
    assert result.after["rmse"] > 1.05 * result.before["rmse"]
    assert "on 8 frames since its promotion" in result.reason
    card = tower.registry.card("000002")
    assert card.status == "rolled back"
    assert card.reason == (
        f"rolled back by the canary evaluation: {result.reason} (at the gate: better at the gate)"
    )
    tower.look()
    assert len(tower.seen) == 2  # it is over
    assert worker_pids(state) == []


def test_a_good_student_stays_and_is_judged_once(state, watch_over):
    promote_good(state)
    tower = watch_over()
    tower.look()
    assert tower.told() == ["judging", "kept"], tower.canary.trouble
    assert tower.registry.live() == "000002"
    assert tower.registry.card("000002").status == "accepted"
    assert tower.result().after["rmse"] < tower.result().before["rmse"]
    fill_store(state.frames, more_views(4, first=30), first=30)
    tower.look()
    assert len(tower.seen) == 2


def test_it_waits_for_frames_that_came_after_the_promotion(state, watch_over):
    promote_bad(state, after_id=24)
    tower = watch_over()
    for count in range(FRAMES):
        tower.look()
        assert tower.canary.labels_since == count
        assert tower.told() == []
        fill_store(state.frames, more_views(1, first=30 + count), first=30 + count)
    tower.look()
    assert tower.told() == ["judging", "rolled back"]


def test_it_judges_on_nothing_that_a_round_knew(state):
    promote_bad(state)
    events: list[dict[str, Any]] = []
    plan = small_plan(canary={"frames": 24 - KNOWN})
    evaluate_canary(state, plan.canary, 2, events.append)
    assert events[-1]["frames"] == 24 - KNOWN
    events.clear()
    evaluate_canary(state, CanarySettings(frames=24 - KNOWN + 1), 2, events.append)
    assert events == [{"event": "result", "frames": 24 - KNOWN}]


def test_it_rests_between_frames(state):
    promote_bad(state)
    rests: list[int] = []

    def rest() -> float:
        rests.append(1)
        return 0.0

    evaluate_canary(state, WATCHING.canary, 2, lambda event: None, rest)
    assert len(rests) == FRAMES


def test_without_a_watch_in_the_log_there_is_nothing_to_judge(state):
    RoundLog(state.rounds).save(RoundRecord(1, state="promoted", version="000001"))
    with pytest.raises(TiekdError, match="round 1 has no student to be evaluated"):
        evaluate_canary(state, WATCHING.canary, 1, lambda event: None)


def test_switched_off_it_does_nothing_and_goes_on_where_it_is_switched_on(
    state, watch_over, judged_worse
):
    promote_bad(state)
    tower = watch_over(small_plan(canary={"frames": FRAMES, "enabled": False}))
    tower.look()
    assert (tower.told(), tower.registry.live()) == ([], "000002")
    tower.canary.set_plan(WATCHING)
    tower.look()
    assert tower.registry.live() == "000001"


@pytest.mark.slow
def test_frames_that_cannot_be_compared_are_replaced_by_newer_ones(state, watch_over):
    promote_bad(state, after_id=24 - FRAMES)
    tower = watch_over()
    damaged = tower.store.labelled_ids(after_id=24 - FRAMES)[-3:]
    for frame_id in damaged[:2]:
        spoil(state, frame_id)
    unknown = np.full((72, 96), 99.0, np.float32)  # beyond the student's range
    tower.store.put_label(damaged[2], unknown, "exact", "1")
    tower.look()
    assert tower.told() == ["judging", "waiting"]
    assert tower.store.stats().rejected == {"undecodable": 2}
    assert (tower.canary.labels_since, tower.canary.labels_needed) == (FRAMES - 2, FRAMES + 1)
    for count in range(3):
        tower.look()
        assert len(tower.seen) == 2  # not each second anew
        fill_store(state.frames, more_views(1, first=30 + count), first=30 + count)
    tower.look()
    assert tower.told()[2:] == ["judging", "rolled back"]


def spoil(state, frame_id: int) -> None:
    with closing(sqlite3.connect(state.frames)) as connection, connection:
        connection.execute("UPDATE images SET jpeg = x'00' WHERE frame_id = ?", (frame_id,))
