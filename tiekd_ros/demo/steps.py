"""The steps of the demo, one after the other; none waits for ever."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.demo.results import RoundResult, Scoreboard, View, number_text
from tiekd_ros.demo.scene import Scene
from tiekd_ros.demo.stage import LEAST_HELD_OUT, LEAST_TRAIN, Show, Stage
from tiekd_ros.nodes.probe.observer import StreamObserver
from tiekd_ros.student import StudentRegistry

if TYPE_CHECKING:
    from tiekd_ros.nodes.probe.observer import Pair

SETTLE_S = 1.0
"""Nearer to a swap, a frame may be the other student's: the announcement takes its time."""

LEAST_S = 25.0
"""A short loop is measured several times over, as scoring takes only a few frames a second."""


def measured_seconds(turn_s: float) -> float:
    """Return how long a student is measured: whole turns, so that all students see the same."""
    return turn_s * max(1, math.ceil(LEAST_S / turn_s))


def measured_turn(since_swap_s: float, measured_s: float) -> int | None:
    """Return the turn, from 0, in which a frame counts; None where it is too near to the swap.

    Args:
        since_swap_s: from the student's announcement to the image.
        measured_s: length of a turn.
    """
    if since_swap_s < SETTLE_S:
        return None
    return int((since_swap_s - SETTLE_S) / measured_s)


class Scorer:
    """Compares pairs with the truth, a few a second; called from the observer's thread."""

    def __init__(self, scene: Scene, board: Scoreboard, students: StudentRegistry) -> None:
        self._scene = scene
        self._board = board
        self._students = students
        self._measured_s = measured_seconds(scene.turn_s)
        self._last = 0.0

    def __call__(self, pair: Pair) -> None:
        """Score a pair, unless the last one was only just scored."""
        now = time.monotonic()
        turn = measured_turn(pair.since_swap_s, self._measured_s)
        if turn is None or now - self._last < self._scene.score_every_s:
            return
        self._last = now
        truth = self._scene.truth(pair.image, pair.stamp_ns)
        if truth is not None and pair.version in self._students.versions():
            bins = self._students.card(pair.version).bins
            view = View(pair.stamp_ns, pair.image, pair.depth, truth)
            self._board.add(pair.version, view, bins.min_depth_m, bins.max_depth_m, turn)


_START_TIMEOUT_S = 60.0
_NO_NEWS_S = 15.0
_ROUND_STANDS_S = 120.0  # loading and judging say nothing meanwhile, but take far less
_LIVE_TIMEOUT_S = 30.0
_LAST_PAIRS_S = 1.0  # from a student's last image to its score


@dataclass
class Run:
    """What the steps of one demo share."""

    first_frames: int
    scene: Scene
    stage: Stage
    show: Show
    board: Scoreboard
    observer: StreamObserver
    rounds: list[RoundResult] = field(default_factory=list)


def perform(run: Run) -> None:
    """Play the demo.

    Raises:
        TiekdError: a program ended, or something that has to come does not.
    """
    run.show.step(f"starting: {run.scene.title}")
    _await_all(run)
    run.show.done("camera, depth node, companion and teacher are up")
    _log_frames(run, min(run.first_frames, max(12, round(0.6 * run.scene.frames))))
    _round(run, 1)
    _log_frames(run, run.scene.frames)
    _watch(run, "measuring the published depth")
    _round(run, 2)
    _watch(run, "measuring again")


def missing_programs(observer: StreamObserver) -> list[str]:
    """Return the programs that nothing has been heard of."""
    heard = {
        "camera_node": bool(observer.image_stamps),
        "depth_node": bool(observer.diagnostics("depth_node")),
        "companion_node": bool(observer.diagnostics("companion_node")),
    }
    return [name for name, is_heard in heard.items() if not is_heard]


def _await_all(run: Run) -> None:
    def complain() -> str:
        missing = missing_programs(run.observer)
        logs = ", ".join(str(run.stage.log_of(name)) for name in missing)
        return f"nothing is heard of {' and '.join(missing)}; see {logs}"

    _until(run, lambda: not missing_programs(run.observer), _START_TIMEOUT_S, complain)


def _log_frames(run: Run, wanted: int) -> None:
    """Wait for enough labelled frames, or until no new ones come."""
    run.show.step("logging and labelling frames")
    best, since = -1, time.monotonic()
    while True:
        train, held_out = _labelled(run.observer)
        have = train + held_out
        if have > best:
            best, since = have, time.monotonic()
        enough = have >= wanted and train >= LEAST_TRAIN and held_out >= LEAST_HELD_OUT
        if enough or (best > 0 and time.monotonic() - since > _NO_NEWS_S):
            break
        if best <= 0 and time.monotonic() - since > _START_TIMEOUT_S:
            why = run.observer.message("companion_node")
            raise TiekdError(f"no frame was labelled in {_START_TIMEOUT_S:.0f} s: {why}")
        run.show.update(have / wanted, f"{have} of {wanted} labelled")
        _pause(run)
    run.show.done(f"{best} frames labelled")


def _labelled(observer: StreamObserver) -> tuple[int, int]:
    values = observer.diagnostics("companion_node")
    train, held_out = (values.get(f"labelled {use}", "0") for use in ("for training", "held out"))
    return int(train), int(held_out)


def _round(run: Run, number: int) -> None:
    """Call /tiekd/distill as a client would and follow the round to its end."""
    run.show.step(f"round {number}: distilling")
    called = time.monotonic()
    started, message = run.observer.call_distill()
    if not started:
        raise TiekdError(f"the distill service refused: {message}")
    status = _follow_round(run, number)
    if status["state"] == "failed":
        raise TiekdError(f"round {number} failed: {status['reason']}")
    accepted = status["state"] == "accepted"
    live = None
    if accepted:
        version, first_depth = status["version"], run.observer.first_depth_s
        _until(
            run,
            lambda: version in first_depth,
            _LIVE_TIMEOUT_S,
            lambda: f"no depth comes from student {version}; see {run.stage.log_of('depth_node')}",
        )
        live = round(first_depth[version] - called, 2)
    run.rounds.append(RoundResult.from_status(status, live))
    run.show.done(("accepted: " if accepted else "refused: ") + status["reason"])


def _follow_round(run: Run, number: int) -> dict[str, str]:
    status: dict[str, str] = {}
    changed = time.monotonic()
    while status.get("stage") != "done" or int(status.get("round", "0")) < number:
        before, status = status, run.observer.status
        if status != before:
            changed = time.monotonic()
        stage = status.get("stage", "starting")
        if time.monotonic() - changed > _ROUND_STANDS_S:
            raise TiekdError(
                f"round {number} has been {stage} for {_ROUND_STANDS_S:.0f} s without a change; "
                f"see {run.stage.log_of('companion_node')}"
            )
        step, steps = int(status.get("step", "0")), int(status.get("steps", "0"))
        loss = f", loss {status['loss']}" if status.get("loss") else ""
        run.show.update(step / max(steps, 1), f"{stage} {step} of {steps}{loss}")
        _pause(run)
    return status


def _watch(run: Run, title: str) -> None:
    """Let the camera show everything once to the student that is live."""
    if not run.observer.swaps:
        return
    run.show.step(title)
    swap = run.observer.swaps[-1]
    seconds = SETTLE_S + measured_seconds(run.scene.turn_s) + _LAST_PAIRS_S
    while (watched := time.monotonic() - swap.monotonic_s) < seconds:
        score = run.board.of(swap.version)
        remark = f"{score.frames} frames, RMSE {number_text(score.rmse)} m"
        run.show.update(watched / seconds, remark)
        _pause(run)
    score = run.board.of(swap.version)
    run.show.done(
        f"student {swap.version}: RMSE {number_text(score.rmse)} m over {score.frames} frames "
        f"(best constant {number_text(score.constant_rmse)} m)"
    )


def _until(
    run: Run, condition: Callable[[], bool], timeout_s: float, complaint: Callable[[], str]
) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TiekdError(f"{complaint()} (waited {timeout_s:.0f} s)")
        _pause(run)


def _pause(run: Run) -> None:
    run.stage.check()
    time.sleep(0.2)
