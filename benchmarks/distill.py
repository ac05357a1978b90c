"""How long a round takes: from the call of /tiekd/distill to depth of the new student.

A real companion_node and depth_node run on a state folder with 64 labelled training frames of
the synthetic world, 640x480, and some held out. A client sends images, calls the service and
waits for the first depth image: there is no student before, so what comes is the new one's.
Each arm starts from the same folder and does 200 iterations:

  as it is       the package's defaults
  decoder first  train.decoder_first: the backbone rests for the first half at most, and less
                 where that does not pay. Quicker, but look at its scores: so it is not the default

The table of steps splits one step of training in this process, in turn with the same step done
plainly: each layer as it is written down, the loss of straightforward_loss.py, an optimiser
that goes parameter by parameter. What a worker's memory settings spare is not in it.

Seconds are this machine's; the ratios are what to compare. --quick shortens the table of steps
only: the rounds are whole ones (2 to 3 minutes on 2 cores).

A round that is refused, or breaks, is a row as well: medians are of what there is.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from math import nan
from pathlib import Path
from typing import NamedTuple

from diagnostic_msgs.msg import DiagnosticStatus
from distill_steps import STRAIGHTFORWARD, time_steps
from harness import BROKE, Goal, Report, Row, Spread, parser, run, spread
from node_bench import Watcher
from node_stage import (
    HEIGHT,
    NAMESPACE,
    WIDTH,
    check_running,
    fill_frame_log,
    nodes,
    own_domain,
)
from sensor_msgs.msg import Image

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.state import StateFolder
from tiekd_ros.core.supervisor import Child
from tiekd_ros.nodes.common import conversions, qos
from tiekd_ros.worlds import IndoorWorld, WorldSettings

ITERATIONS = 200
STAGES = ("start", "loading", "training", "judging", "storing", "swap")
"""start: until the worker is at work; storing: with promotion; swap: until the first depth."""

ARMS: dict[str, dict[str, object]] = {
    "as it is": {},
    "decoder first": {"train.decoder_first": 0.5},
}
_BROKEN = "broke"
_TRAIN_FRAMES = 64
_IMAGES_HZ = 10.0
_SECOND = 1_000_000_000
_START_S, _ROUND_S, _LIVE_S = 60.0, 1200.0, 60.0


class RoundTimes(NamedTuple):
    """One round: seconds by stage and in all, milliseconds of a step, held-out scores.

    What did not come about is NaN: a round that is refused gives no student that goes live.
    """

    verdict: str  # promoted, refused, failed, or what went wrong
    stages: dict[str, float] = dict.fromkeys(STAGES, nan)
    trigger_to_live: float = nan
    step_ms: float = nan
    abs_rel: float = nan
    rmse: float = nan


def main(argv: list[str] | None = None) -> int:
    made = parser(__doc__ or "")
    made.add_argument("--rounds", type=int, default=0, help="of each arm [1 if quick, else 3]")
    options = made.parse_args(argv)
    report = Report("distill", options)
    steps = time_steps(repeats=5 if options.quick else 25)
    with tempfile.TemporaryDirectory(prefix="tiekd_distill_", ignore_cleanup_errors=True) as root:
        folder = Path(root)
        held_out = prepare(folder / "labelled")
        times = time_arms(folder, options.rounds or (1 if options.quick else 3))
    title = "One training step, ms (10th-90th percentile); faster: times, than plain"
    report.table("steps_ms", title, step_rows(steps), data=steps)
    title = f"Trigger to live, s: {_TRAIN_FRAMES} + {held_out} held out labelled frames, "
    title += f"{ITERATIONS} iterations"
    report.table("rounds_s", title, round_rows(times), data=times)
    report.tables["iterations"] = ITERATIONS
    report.goals.append(live_goal(steps, times["as it is"]))
    code = report.finish()
    broke = any(r.verdict.startswith(_BROKEN) for rows in times.values() for r in rows)
    return BROKE if broke else code


def prepare(root: Path) -> int:
    """Log labelled frames, one a second of a camera's walk; return how many are held out."""
    stamps = [second * _SECOND for second in range(1, 10 * _TRAIN_FRAMES)]
    return fill_frame_log(
        StateFolder(root).create(),
        IndoorWorld(WorldSettings()),
        stamps,
        (WIDTH, HEIGHT),
        block_s=12.0,
        train_frames=_TRAIN_FRAMES,
    )


def time_arms(folder: Path, rounds: int) -> dict[str, list[RoundTimes]]:
    """Run the arms in turn, so that the machine's noise hits all alike."""
    times: dict[str, list[RoundTimes]] = {name: [] for name in ARMS}
    for number in range(rounds):
        for name, parameters in ARMS.items():
            print(f"round {number + 1} of {rounds}: {name} ...", file=sys.stderr, flush=True)
            state = folder / f"{name}_{number}".replace(" ", "_")
            shutil.copytree(folder / "labelled", state)
            try:
                with own_domain():
                    times[name].append(time_round(state, parameters))
            except TiekdError as error:
                times[name].append(RoundTimes(f"{_BROKEN}: {error}"))
            print(times[name][-1].verdict, file=sys.stderr, flush=True)
            shutil.rmtree(state)
    return times


def time_round(state: Path, parameters: dict[str, object]) -> RoundTimes:
    """Start the nodes on a state folder without a student, call distill, wait for depth.

    Raises:
        TiekdError: a node ends, no round starts, or something does not come in time.
    """
    companion = {
        "state_dir": state,
        "teacher.url": '""',
        "train.iterations": ITERATIONS,
        "train.device": "cpu",
        **parameters,
    }
    depth = {"state_dir": state, "device": "cpu"}
    wanted = ("companion_node", companion), ("depth_node", depth)
    with nodes(*wanted, logs=state) as started, _Client(started) as client:
        return client.run_round()


class _Client(Watcher):
    """A watcher that sends images and notes when each stage of a round began."""

    def __init__(self, nodes: Sequence[Child]) -> None:
        self._children = nodes
        self._at: dict[str, float] = {}  # seconds since the epoch by what began
        super().__init__()
        self._images = self._node.create_publisher(Image, "image", qos.RELIABLE)
        self._picture = IndoorWorld(WorldSettings()).render(0, WIDTH, HEIGHT).image
        self._node.create_timer(1 / _IMAGES_HZ, self._send_image)

    def run_round(self) -> RoundTimes:
        """Call distill and follow the round until there is depth, or it is refused."""
        self._await(lambda: self._images.get_subscription_count() >= 2, _START_S, "both nodes")
        self._at["start"] = time.time()
        self.distill()
        self._await(lambda: self.round.get("stage") == "done", _ROUND_S, "the verdict")
        status = self.round
        verdict = status["state"]
        if verdict == "promoted":
            self._await(lambda: bool(self.received[NAMESPACE]), _LIVE_S, "the new student's depth")
            self._at["live"] = 1e-9 * min(self.received[NAMESPACE].values())
        elif status.get("reason"):
            verdict += f": {status['reason']}"
        ends = [*STAGES[1:], "live"]
        stages = {s: self._between(s, e) for s, e in zip(STAGES, ends, strict=True)}
        step_ms = 1e3 * float(status.get("train_seconds", nan)) / ITERATIONS
        scores = [float(status.get(f"after.{name}", nan)) for name in ("abs_rel", "rmse")]
        return RoundTimes(verdict, stages, self._between("start", "live"), step_ms, *scores)

    def _between(self, start: str, end: str) -> float:
        return self._at.get(end, nan) - self._at.get(start, nan)

    def _on_status(self, message: DiagnosticStatus) -> None:
        super()._on_status(message)
        stage, step = self.round.get("stage", ""), self.round.get("step", "")
        if stage == "judging" and step == self.round.get("steps") != "0":
            stage = "storing"
        if stage not in ("", "starting"):
            self._at.setdefault({"done": "swap"}.get(stage, stage), time.time())

    def _send_image(self) -> None:
        header = Image().header
        header.stamp = self._node.get_clock().now().to_msg()
        self._images.publish(conversions.rgb_to_image(self._picture, header))

    def _await(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        def holds() -> bool:
            check_running(self._children)
            return condition()

        self.wait_until(holds, what, timeout_s)


def step_rows(steps: dict[str, dict[str, Spread]]) -> list[Row]:
    plain = steps[STRAIGHTFORWARD]["step"].median
    return [
        {"step": name, **parts, "faster": plain / parts["step"].median}
        for name, parts in steps.items()
    ]


def round_rows(times: dict[str, list[RoundTimes]]) -> list[Row]:
    """Return the medians of each arm's rounds."""
    return [
        {
            "arm": name,
            **{stage: spread([r.stages[stage] for r in rounds]).median for stage in STAGES},
            "trigger to live": spread([r.trigger_to_live for r in rounds]),
            "ms/iteration": spread([r.step_ms for r in rounds]).median,
            "held-out AbsRel": f"{spread([r.abs_rel for r in rounds]).median:.4f}",
            "RMSE [m]": f"{spread([r.rmse for r in rounds]).median:.4f}",
            "rounds": _verdicts(rounds),
        }
        for name, rounds in times.items()
    ]


def _verdicts(rounds: Sequence[RoundTimes]) -> str:
    counts = Counter(r.verdict.partition(":")[0] for r in rounds)
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items())


def live_goal(steps: dict[str, dict[str, Spread]], rounds: Sequence[RoundTimes]) -> Goal:
    live = spread([r.trigger_to_live for r in rounds])
    faster = steps[STRAIGHTFORWARD]["step"].median / steps["as it is"]["step"].median
    return Goal(
        f"trigger to live, 64 frames, {ITERATIONS} iterations",
        "as low as possible",
        f"{live.median:.0f} s" if live.n else "-",
        None,
        f"{_verdicts(rounds)}; a step is {faster:.1f} x faster than the same done plainly",
    )


if __name__ == "__main__":
    run(main)
