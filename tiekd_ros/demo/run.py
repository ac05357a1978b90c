"""`tiekd demo`: from nothing to depth that gets better while it streams."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from tiekd_ros.core import Closing
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.launch_options import CAMERA, COMPANION, DEPTH, free_port
from tiekd_ros.core.state import StateFolder
from tiekd_ros.core.supervisor import Child, Program, node_programs, stop_children
from tiekd_ros.demo.results import (
    LEAST_FRAMES,
    DemoResult,
    RoundResult,
    number_text,
    print_result,
    scored,
    write_sheet,
)
from tiekd_ros.demo.scene import DemoScene, folder_scene, synthetic_scene
from tiekd_ros.demo.score import (
    SETTLE_S,
    Scoreboard,
    ScoredFrame,
    lost_by_swaps,
    measured_seconds,
    measured_turn,
)
from tiekd_ros.diagnosis import keys
from tiekd_ros.nodes.probe.observer import StreamObserver
from tiekd_ros.rounds.round_log import RoundKind
from tiekd_ros.rounds.triggers import CALLED
from tiekd_ros.student.registry import StudentRegistry

if TYPE_CHECKING:
    from tiekd_ros.nodes.probe.observer import DepthPair

NAMESPACE = "tiekd"
IMAGE_TOPIC = "/camera/image_raw"
LEAST_TRAIN, LEAST_HELD_OUT = 8, 2  # labelled frames that a round needs
_MIN_KNOWN_SHARE = 0.001  # recorded depth may be that of a LiDAR
_PIXELS = 38_000  # half of the default: a demo's students have to learn within two minutes


class DemoPrograms(Closing):
    """The running programs: started on entry, stopped on exit.

    Args:
        scene: the camera and the teacher.
        state: state folder of the nodes.
        iterations: training steps of a round at most.
        seconds: training time of a round at most.
    """

    def __init__(self, scene: DemoScene, state: Path, iterations: int, seconds: float) -> None:
        self._state = state
        self._logs = state / "logs"
        self._port = free_port()
        url = f"127.0.0.1:{self._port}"
        turn = scene.turn_s
        self._options = {
            "namespace": NAMESPACE,
            "image_topic": IMAGE_TOPIC,
            "teacher": url,
            "state_dir": str(state),
            "camera": str(scene.camera["source"]),
        }
        self._parameters: dict[str, dict[str, object]] = {
            CAMERA: scene.camera,
            DEPTH: {"threads": 1},
            COMPANION: {
                "frames.min_interval_s": min(0.5, turn / 60),
                "frames.block_s": min(20.0, max(0.5, turn / 15 if turn > 30 else turn / 5)),
                "distill.min_frames": LEAST_TRAIN,
                "distill.min_held_out": LEAST_HELD_OUT,
                "train.iterations": iterations,
                "train.seconds": seconds,
                "train.threads": 2,
                "student.pixels": _PIXELS,
                "labels.retry_s": 0.5,
                "checks.min_known_share": _MIN_KNOWN_SHARE,
                "teacher.timeout_s": 5.0,
            },
        }
        command = [sys.executable, "-m", "tiekd_ros.cli", "teacher", "serve"]
        command += ["--port", str(self._port), *scene.teacher]
        self._teacher = Program("teacher", command, self.log_of("teacher"))
        self._children: list[Child] = []

    def __enter__(self) -> DemoPrograms:
        self._logs.mkdir(parents=True, exist_ok=True)
        try:
            self._children.append(Child(self._teacher))
            self._wait_for_teacher()
            programs = node_programs(self._options, self._parameters, self._logs)
            self._children += [Child(program) for program in programs]
        except BaseException:
            stop_children(self._children)
            raise
        return self

    def close(self) -> None:
        """Stop all programs, the nodes first: a companion reports a teacher that has gone."""
        stop_children(self._children[1:])
        stop_children(self._children[:1])

    def check(self) -> None:
        """Raise TiekdError where a program has ended that should not have."""
        for child in self._children:
            if child.ended:
                log = child.program.log
                tail = "" if log is None else _last_lines(log)
                raise TiekdError(f"{child.program.name} {child.ended} (log: {log})\n{tail}")

    def log_of(self, name: str) -> Path:
        """Return the log file of a program."""
        return self._logs / f"{name}.log"

    def _wait_for_teacher(self) -> None:
        """Wait until the teacher accepts connections.

        No gRPC client: Ctrl-C in the middle of making one leaves noise behind.
        """
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            self.check()
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1.0).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise TiekdError(
                        f"the teacher accepts no connection after {_START_TIMEOUT_S:.0f} s; "
                        f"see {self.log_of('teacher')}"
                    ) from None
            time.sleep(0.2)


def _last_lines(path: Path) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-5:])
    except OSError:
        return ""


class Scorer:
    """Compares pairs with the truth, a few a second; called from the observer's thread."""

    def __init__(self, scene: DemoScene, board: Scoreboard, students: StudentRegistry) -> None:
        self._scene = scene
        self._board = board
        self._students = students
        self._measured_s = measured_seconds(scene.turn_s)
        self._last = 0.0

    def __call__(self, pair: DepthPair) -> None:
        """Score a pair, unless the last one was only just scored."""
        now = time.monotonic()
        turn = measured_turn(pair.since_swap_s, self._measured_s)
        if turn is None or now - self._last < self._scene.score_every_s:
            return
        self._last = now
        truth = self._scene.truth(pair.image, pair.stamp_ns)
        if truth is not None and pair.version in self._students.versions():
            bins = self._students.card(pair.version).bins
            frame = ScoredFrame(pair.stamp_ns, pair.image, pair.depth, truth)
            self._board.add(pair.version, frame, bins.min_depth_m, bins.max_depth_m, turn)


_START_TIMEOUT_S = 60.0
_NO_NEWS_S = 15.0
_ROUND_STANDS_S = 120.0  # loading and judging say nothing meanwhile, but take far less
_LIVE_TIMEOUT_S = 30.0
_BUSY_TIMEOUT_S = 180.0  # for a calibration or a canary evaluation on busy cores
_LAST_PAIRS_S = 1.0  # from a student's last image to its score
_LINE_EVERY_S = 15.0


class StepDisplay(Closing):
    """The steps of the demo on the console, each with its progress and a remark.

    Args:
        console: where to write.
        headless: plain lines for a log, instead of a bar that moves.
    """

    def __init__(self, console: Console, headless: bool) -> None:
        self._console = console
        self._headless = headless
        self._start = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}", justify="left"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[remark]}"),
            TimeElapsedColumn(),
            console=console,
            disable=headless,
        )
        self._task: TaskID | None = None
        self._printed = 0.0
        self._step = ""

    def __enter__(self) -> StepDisplay:
        self._progress.start()
        return self

    def close(self) -> None:
        """Leave the last state on the console."""
        self._progress.stop()

    def step(self, title: str) -> None:
        """Begin a step."""
        if self._headless:
            self._step, self._printed = title, time.monotonic()
            self._line(title)
            return
        if self._task is not None:
            self._progress.update(self._task, completed=1.0)
        self._task = self._progress.add_task(title, total=1.0, remark="")

    def update(self, share: float, remark: str) -> None:
        """Show the step's progress, 0..1, with a remark."""
        if self._task is not None:
            self._progress.update(self._task, completed=min(share, 1.0), remark=remark)
        elif time.monotonic() - self._printed >= _LINE_EVERY_S:
            self._printed = time.monotonic()
            self._line(f"  {self._step}: {remark}")

    def done(self, remark: str) -> None:
        """End the step with its result."""
        if self._task is not None:
            self._progress.update(self._task, completed=1.0, remark=remark)
        else:
            self._line(f"  {remark}")

    def _line(self, text: str) -> None:
        seconds = time.monotonic() - self._start
        self._console.print(f"{seconds:5.0f} s  {text}", highlight=False, soft_wrap=True)


@dataclass
class DemoRun:
    """The state that the steps of one demo share."""

    first_frames: int
    scene: DemoScene
    programs: DemoPrograms
    display: StepDisplay
    board: Scoreboard
    observer: StreamObserver
    rounds: list[RoundResult] = field(default_factory=list)
    """Those that were called."""
    last_number: int = 0
    """Of them, as the companion counts: with those that began by themselves."""


def perform(run: DemoRun) -> None:
    """Play the demo.

    Raises:
        TiekdError: a program ended, or something that has to come does not.
    """
    run.display.step(f"starting: {run.scene.title}")
    _await_all(run)
    run.display.done("camera, depth node, companion and teacher are up")
    _log_frames(run, min(run.first_frames, max(12, round(0.6 * run.scene.frames))))
    _round(run, 1)
    _log_frames(run, run.scene.frames)
    _measure(run, "measuring the published depth")
    _round(run, 2)
    _measure(run, "measuring again")


def missing_programs(observer: StreamObserver) -> list[str]:
    """Return the programs of which no message has come."""
    came = {
        "camera_node": bool(observer.image_stamps),
        "depth_node": bool(observer.diagnostics("depth_node")),
        "companion_node": bool(observer.diagnostics("companion_node")),
    }
    return [name for name, has_come in came.items() if not has_come]


def _await_all(run: DemoRun) -> None:
    def reason() -> str:
        missing = missing_programs(run.observer)
        logs = ", ".join(str(run.programs.log_of(name)) for name in missing)
        return f"no message came from {' and '.join(missing)}; see {logs}"

    _until(run, lambda: not missing_programs(run.observer), _START_TIMEOUT_S, reason)


def _log_frames(run: DemoRun, wanted: int) -> None:
    """Wait for enough labelled frames, or until no new ones come."""
    run.display.step("logging and labelling frames")
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
        run.display.update(have / wanted, f"{have} of {wanted} labelled")
        _pause(run)
    run.display.done(f"{best} frames labelled")


def _labelled(observer: StreamObserver) -> tuple[int, int]:
    values = observer.diagnostics("companion_node")
    return int(values.get(keys.LABELLED_TRAIN, "0")), int(values.get(keys.LABELLED_HELD_OUT, "0"))


def _round(run: DemoRun, number: int) -> None:
    """Call /tiekd/distill as a client would and follow the round to its end."""
    run.display.step(f"round {number}: distilling")
    called = _call_distill(run)
    status = _follow_round(run, number)
    run.last_number = int(status["round"])
    if status["state"] == "failed":
        raise TiekdError(f"round {number} failed: {status['reason']}")
    accepted = status["state"] == "promoted"
    live = None
    if accepted:
        version, first_depth = status["version"], run.observer.first_depth_s
        log = run.programs.log_of("depth_node")
        _until(
            run,
            lambda: version in first_depth,
            _LIVE_TIMEOUT_S,
            lambda: f"no depth comes from student {version}; see {log}",
        )
        live = round(first_depth[version] - called, 2)
    run.rounds.append(RoundResult.from_status(status, live))
    run.display.done(("accepted: " if accepted else "refused: ") + status["reason"])


def _call_distill(run: DemoRun) -> float:
    """Call until a round starts; return when it was called.

    What runs then, a calibration of the base student or a canary evaluation, takes seconds.
    """
    deadline = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        called = time.monotonic()
        started, message = run.observer.call_distill()
        if started:
            return called
        if not message.startswith("busy") or called > deadline:
            raise TiekdError(f"the distill service refused: {message}")
        run.display.update(0.0, message)
        _pause(run)


def _follow_round(run: DemoRun, number: int) -> dict[str, str]:
    """Follow the round that was called to its end; return its last status."""
    status: dict[str, str] = {}
    changed = time.monotonic()

    def is_over() -> bool:
        called = status.get("trigger") == CALLED
        return called and int(status["round"]) > run.last_number and status["stage"] == "done"

    while not is_over():
        before, status = status, run.observer.status
        if status != before:
            changed = time.monotonic()
        stage = status.get("stage", "starting")
        if time.monotonic() - changed > _ROUND_STANDS_S:
            raise TiekdError(
                f"round {number} has been {stage} for {_ROUND_STANDS_S:.0f} s without a change; "
                f"see {run.programs.log_of('companion_node')}"
            )
        step, steps = int(status.get("step", "0")), int(status.get("steps", "0"))
        loss = f", loss {status['loss']}" if status.get("loss") else ""
        progress = f" {step} of {steps}" if steps else ""
        run.display.update(step / max(steps, 1), f"{stage}{progress}{loss}")
        _pause(run)
    return status


def _measure(run: DemoRun, title: str) -> None:
    """Let the camera show everything once to the student that is live."""
    if not run.observer.swaps:
        return
    run.display.step(title)
    swap = run.observer.swaps[-1]
    seconds = SETTLE_S + measured_seconds(run.scene.turn_s) + _LAST_PAIRS_S
    while (watched := time.monotonic() - swap.monotonic_s) < seconds:
        score = run.board.of(swap.version)
        remark = f"{score.frames} frames, RMSE {number_text(score.rmse)} m"
        run.display.update(watched / seconds, remark)
        _pause(run)
    score = run.board.of(swap.version)
    run.display.done(
        f"student {swap.version}: RMSE {number_text(score.rmse)} m over {score.frames} frames "
        f"(best constant {number_text(score.constant_rmse)} m)"
    )


def _until(
    run: DemoRun, condition: Callable[[], bool], timeout_s: float, reason: Callable[[], str]
) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TiekdError(f"{reason()} (waited {timeout_s:.0f} s)")
        _pause(run)


def _pause(run: DemoRun) -> None:
    run.programs.check()
    time.sleep(0.2)


_MARKER = ".made-by-tiekd-demo"


@dataclass(frozen=True)
class DemoOptions:
    """The scene, and how long to train."""

    frames: Path | None = None
    output: Path = Path("demo_output")
    headless: bool = False
    seed: int = 0
    iterations: int = 240
    train_seconds: float = 600.0
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
        result = _observed(run, state, start)
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


def _observed(run: DemoRun, state: Path, start_s: float) -> DemoResult:
    """Return the observer's counts of the stream, or the depth node's where they are higher.

    Args:
        run: the demo, at its end.
        state: its state folder.
        start_s: monotonic time of its start.
    """
    observer = run.observer
    began_s = observer.depth_began_s
    counted = observer.diagnostics("depth_node")
    images, depths = list(observer.image_stamps), list(observer.depth_stamps)
    lost = lost_by_swaps(
        images, depths, [(swap.asked_ns, swap.at_ns) for swap in observer.swaps[1:]]
    )
    return DemoResult(
        scene=run.scene.title,
        first_depth_seconds=None if began_s is None else round(began_s - start_s, 1),
        rounds=[*_calibrated(run), *run.rounds],
        frames_published=max(len(depths), int(counted.get(keys.DEPTH_PUBLISHED, "0"))),
        dropped_by_swap=max(lost, int(counted.get(keys.IMAGES_DROPPED_BY_SWAP, "0"))),
        student=observer.swaps[-1].version if observer.swaps else None,
        state=str(state),
    )


def _calibrated(run: DemoRun) -> list[RoundResult]:
    """Return the calibrated base student, where one went live and its depth was measured."""
    ended = [RoundResult.from_status(s, None) for s in run.observer.ended_rounds.values()]
    live = [e for e in ended if e.kind == RoundKind.CALIBRATION and e.accepted]
    return [e for e in live if run.board.of(e.version).frames >= LEAST_FRAMES]
