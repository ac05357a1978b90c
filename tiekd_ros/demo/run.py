"""`tiekd demo`: from nothing to depth that gets better while it streams."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from tiekd_ros.demo.results import DemoResult, RoundResult, print_result, write_sheet
from tiekd_ros.demo.scene import Scene, folder_scene, synthetic_scene
from tiekd_ros.demo.score import Scoreboard, View
from tiekd_ros.demo.show import Show
from tiekd_ros.demo.stage import IMAGE_TOPIC, NAMESPACE, Stage
from tiekd_ros.errors import TiekdError
from tiekd_ros.nodes.observer import Pair, StreamObserver
from tiekd_ros.state import StateFolder
from tiekd_ros.student import StudentRegistry

_START_TIMEOUT_S = 60.0
_NO_NEWS_S = 15.0
_LEAST_WATCH_S = 25.0
_MARKER = ".made-by-tiekd-demo"


@dataclass(frozen=True)
class DemoOptions:
    """What to play and how long to train."""

    frames: Path | None = None
    output: Path = Path("demo_output")
    headless: bool = False
    seed: int = 0
    iterations: int = 240
    train_seconds: float = 180.0
    first_frames: int = 60


@dataclass
class _Run:
    """What the steps of one demo share."""

    options: DemoOptions
    scene: Scene
    stage: Stage
    show: Show
    board: Scoreboard
    observer: StreamObserver
    rounds: list[RoundResult] = field(default_factory=list)


def run_demo(options: DemoOptions, console: Console) -> DemoResult:
    """Run the demo and write its picture and `demo.json`.

    Raises:
        TiekdError: a program ended, nothing arrives, or the input folder is not usable.
    """
    start = time.monotonic()
    output = options.output.absolute()
    state = _fresh_state(output / "state")
    scene = folder_scene(options.frames) if options.frames else synthetic_scene(options.seed)
    board = Scoreboard()
    scorer = _Scorer(scene, board, StudentRegistry(StateFolder(state).students))
    with (
        Show(console, options.headless) as show,
        Stage(scene, state, options.iterations, options.train_seconds) as stage,
        StreamObserver(NAMESPACE, IMAGE_TOPIC, scorer) as observer,
    ):
        run = _Run(options, scene, stage, show, board, observer)
        _perform(run)
        swaps = observer.swaps[1:]
        result = DemoResult(
            scene=scene.title,
            rounds=run.rounds,
            frames_published=observer.depth_count,
            dropped_by_swap=sum(observer.lost_around(swap) for swap in swaps),
            student=observer.swaps[-1].version if observer.swaps else None,
            state=str(state),
        )
    result = replace(_scored(result, board), seconds=round(time.monotonic() - start, 1))
    sheet = write_sheet(output / "contact_sheet.png", result, board)
    (output / "demo.json").write_text(json.dumps(result.as_dict(), indent=2) + "\n")
    print_result(console, result, output, sheet)
    return result


def _fresh_state(state: Path) -> Path:
    """Return an empty state folder; an earlier demo's is removed, anybody else's is not."""
    marker = state / _MARKER
    if state.exists() and not marker.exists():
        raise TiekdError(f"{state} is not a demo's state folder; give another --output")
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True)
    marker.touch()
    return state


class _Scorer:
    """Compares pairs with the truth, a few a second."""

    def __init__(self, scene: Scene, board: Scoreboard, students: StudentRegistry) -> None:
        self._scene = scene
        self._board = board
        self._students = students
        self._last = 0.0

    def __call__(self, pair: Pair) -> None:
        now = time.monotonic()
        if now - self._last < self._scene.score_every_s:
            return
        self._last = now
        truth = self._scene.truth(pair.image, pair.stamp_ns)
        if truth is not None and pair.version in self._students.versions():
            bins = self._students.card(pair.version).bins
            view = View(pair.stamp_ns, pair.image, pair.depth, truth)
            self._board.add(pair.version, view, bins.min_depth_m, bins.max_depth_m)


def _perform(run: _Run) -> None:
    show, options, scene = run.show, run.options, run.scene
    show.step(f"starting: {scene.title}")
    _until(run, lambda: bool(run.observer.diagnostics("companion_node")), _START_TIMEOUT_S)
    show.done("camera, depth node, companion and teacher are up")
    first = min(options.first_frames, max(12, round(0.6 * scene.frames)))
    _log_frames(run, first)
    _round(run, 1)
    _log_frames(run, scene.frames)
    _watch(run, "measuring the published depth")
    _round(run, 2)
    _watch(run, "measuring again")


def _log_frames(run: _Run, wanted: int) -> None:
    """Wait for enough labelled frames, or until no new ones come."""
    run.show.step("logging and labelling frames")
    best, since = -1, time.monotonic()
    while True:
        have = _labelled(run.observer)
        if have > best:
            best, since = have, time.monotonic()
        if have >= wanted or (best > 0 and time.monotonic() - since > _NO_NEWS_S):
            break
        if best <= 0 and time.monotonic() - since > _START_TIMEOUT_S:
            why = run.observer.message("companion_node")
            raise TiekdError(f"no frame was labelled in {_START_TIMEOUT_S:.0f} s: {why}")
        run.show.update(have / wanted, f"{have} of {wanted} labelled")
        _pause(run)
    run.show.done(f"{best} frames labelled")


def _labelled(observer: StreamObserver) -> int:
    values = observer.diagnostics("companion_node")
    names = ("labelled for training", "labelled held out")
    return sum(int(values.get(name, "0")) for name in names)


def _round(run: _Run, number: int) -> None:
    """Call /tiekd/distill as a client would and follow the round to its end."""
    run.show.step(f"round {number}: distilling")
    called = time.monotonic()
    started, message = run.observer.call_distill()
    if not started:
        raise TiekdError(f"the distill service refused: {message}")
    status: dict[str, str] = {}
    while status.get("stage") != "done" or int(status.get("round", "0")) < number:
        status = run.observer.status
        step, steps = int(status.get("step", "0")), int(status.get("steps", "0"))
        loss = f", loss {status['loss']}" if status.get("loss") else ""
        stage = status.get("stage", "starting")
        run.show.update(step / max(steps, 1), f"{stage} {step} of {steps}{loss}")
        _pause(run)
    if status["state"] == "failed":
        raise TiekdError(f"round {number} failed: {status['reason']}")
    accepted = status["state"] == "accepted"
    live = None
    if accepted:
        version = status["version"]
        _until(run, lambda: version in run.observer.first_depth_s, 30.0)
        live = round(run.observer.first_depth_s[version] - called, 2)
    run.rounds.append(RoundResult.from_status(status, live))
    run.show.done(("accepted: " if accepted else "refused: ") + status["reason"])


def _watch(run: _Run, title: str) -> None:
    """Let the camera show everything once to the student that is live."""
    if not run.observer.swaps:
        return
    run.show.step(title)
    swap = run.observer.swaps[-1]
    seconds = max(run.scene.turn_s + 2.0, _LEAST_WATCH_S)
    while (watched := time.monotonic() - swap.monotonic_s) < seconds:
        score = run.board.of(swap.version)
        run.show.update(watched / seconds, f"{score.frames} frames, RMSE {score.rmse:.3f} m")
        _pause(run)
    score = run.board.of(swap.version)
    run.show.done(
        f"student {swap.version}: RMSE {score.rmse:.3f} m over {score.frames} frames "
        f"(best constant {score.constant_rmse:.3f} m)"
    )


def _until(run: _Run, condition: Any, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TiekdError(
                f"nothing came from the nodes in {timeout_s:.0f} s; look at the logs in "
                f"{run.options.output}"
            )
        _pause(run)


def _pause(run: _Run) -> None:
    run.stage.check()
    time.sleep(0.2)


def _scored(result: DemoResult, board: Scoreboard) -> DemoResult:
    """Add what was measured on the stream; a refused round shows the student that stayed."""
    rounds, live = [], None
    for entry in result.rounds:
        live = entry.version if entry.accepted else live
        score = board.of(live) if live else None
        if score is not None:
            entry = replace(entry, rmse=score.rmse, abs_rel=score.abs_rel)
        rounds.append(entry)
    last = board.of(live) if live else None
    if last is None:
        return replace(result, rounds=rounds)
    return replace(
        result,
        rounds=rounds,
        rmse=last.rmse,
        abs_rel=last.abs_rel,
        constant_rmse=last.constant_rmse,
        frames_measured=last.frames,
    )
