"""`tiekd demo`: from nothing to depth that gets better while it streams."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.state import StateFolder
from tiekd_ros.demo.results import DemoResult, print_result, scored, write_sheet
from tiekd_ros.demo.scene import folder_scene, synthetic_scene
from tiekd_ros.demo.score import Scoreboard, lost_by_swaps
from tiekd_ros.demo.steps import (
    IMAGE_TOPIC,
    NAMESPACE,
    DemoPrograms,
    DemoRun,
    Scorer,
    StepDisplay,
    perform,
)
from tiekd_ros.diagnosis import keys
from tiekd_ros.nodes.probe.observer import StreamObserver
from tiekd_ros.student.registry import StudentRegistry

_MARKER = ".made-by-tiekd-demo"


@dataclass(frozen=True)
class DemoOptions:
    """The scene, and how long to train."""

    frames: Path | None = None
    output: Path = Path("demo_output")
    headless: bool = False
    seed: int = 0
    iterations: int = 240
    train_seconds: float = 180.0
    first_frames: int = 60


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
    scorer = Scorer(scene, board, StudentRegistry(StateFolder(state).students))
    with (
        StepDisplay(console, options.headless) as display,
        DemoPrograms(scene, state, options.iterations, options.train_seconds) as programs,
        StreamObserver(NAMESPACE, IMAGE_TOPIC, scorer) as observer,
    ):
        run = DemoRun(options.first_frames, scene, programs, display, board, observer)
        perform(run)
        result = _observed(run, state)
    result = replace(scored(result, board), seconds=round(time.monotonic() - start, 1))
    sheet = write_sheet(output / "contact_sheet.png", result, board)
    (output / "demo.json").write_text(json.dumps(result.as_dict(), indent=2) + "\n")
    print_result(console, result, output, sheet)
    return result


def _fresh_state(state: Path) -> Path:
    """Return an empty state folder; an earlier demo's is removed, any other is refused."""
    marker = state / _MARKER
    if state.exists() and not marker.exists():
        raise TiekdError(f"{state} is not a demo's state folder; give another --output")
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True)
    marker.touch()
    return state


def _observed(run: DemoRun, state: Path) -> DemoResult:
    """Return the observer's counts of the stream, or the depth node's where they are higher."""
    observer = run.observer
    counted = observer.diagnostics("depth_node")
    images, depths = list(observer.image_stamps), list(observer.depth_stamps)
    lost = lost_by_swaps(
        images, depths, [(swap.asked_ns, swap.at_ns) for swap in observer.swaps[1:]]
    )
    return DemoResult(
        scene=run.scene.title,
        rounds=run.rounds,
        frames_published=max(len(depths), int(counted.get(keys.DEPTH_PUBLISHED, "0"))),
        dropped_by_swap=max(lost, int(counted.get(keys.IMAGES_DROPPED_BY_SWAP, "0"))),
        student=observer.swaps[-1].version if observer.swaps else None,
        state=str(state),
    )
