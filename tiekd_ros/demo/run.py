"""`tiekd demo`: from nothing to depth that gets better while it streams."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.state import StateFolder
from tiekd_ros.demo.results import DemoResult, Scoreboard, print_result, scored, write_sheet
from tiekd_ros.demo.scene import folder_scene, synthetic_scene
from tiekd_ros.demo.stage import IMAGE_TOPIC, NAMESPACE, Show, Stage
from tiekd_ros.demo.steps import Run, Scorer, perform
from tiekd_ros.nodes.probe.observer import StreamObserver
from tiekd_ros.student import StudentRegistry

BEFORE_S = 1.0
"""So long before it is asked for, a swap may have begun to disturb the stream: the companion
promotes the new student then."""

AFTER_S = 3.0
"""So long after the depth node announced it, a swap may still disturb the stream."""

UNFINISHED_S = 0.5
"""The depth of the run's newest images may be on its way."""


def lost_by_swaps(
    images: Collection[int], depths: Collection[int], swaps: Iterable[tuple[int, int]]
) -> int:
    """Return how many of the camera's images around swaps got no depth.

    Whatever lost them counts, as nobody can tell a swap's share from that of other load. What
    came before the first depth does not: there was no student.

    Args:
        images: stamps in ns of all that the camera published.
        depths: stamps in ns of all depth images.
        swaps: for each student that replaced another, when the depth node was asked for it and
            when it announced it, in ns of the same clock.
    """
    if not images:
        return 0
    newest = max(images) - _ns(UNFINISHED_S)
    begin = min(depths, default=min(images))
    lost: set[int] = set()
    for asked, announced in swaps:
        low = max(asked - _ns(BEFORE_S), begin)
        high = min(announced + _ns(AFTER_S), newest)
        lost.update(stamp for stamp in images if low <= stamp <= high)
    return len(lost.difference(depths))


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


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
        Show(console, options.headless) as show,
        Stage(scene, state, options.iterations, options.train_seconds) as stage,
        StreamObserver(NAMESPACE, IMAGE_TOPIC, scorer) as observer,
    ):
        run = Run(options.first_frames, scene, stage, show, board, observer)
        perform(run)
        result = _observed(run, state)
    result = replace(scored(result, board), seconds=round(time.monotonic() - start, 1))
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


def _observed(run: Run, state: Path) -> DemoResult:
    """Return what the observer saw of the stream; where the depth node knows more, it counts."""
    observer = run.observer
    counted = observer.diagnostics("depth_node")
    images, depths = list(observer.image_stamps), list(observer.depth_stamps)
    lost = lost_by_swaps(
        images, depths, [(swap.asked_ns, swap.at_ns) for swap in observer.swaps[1:]]
    )
    return DemoResult(
        scene=run.scene.title,
        rounds=run.rounds,
        frames_published=max(len(depths), int(counted.get("depth published", "0"))),
        dropped_by_swap=max(lost, int(counted.get("dropped by swap", "0"))),
        student=observer.swaps[-1].version if observer.swaps else None,
        state=str(state),
    )
