"""How long a round takes: from the call of /tiekd/distill to depth of the new student.

A real companion_node and depth_node run on a state folder with 64 labelled training frames of
the synthetic world, 640x480, and some held out. A client sends images, calls the service and
waits for the first depth image: there is no student before, so what comes is the new one's.
Each round starts from the same folder and does 200 iterations with the package's defaults.

The table of steps splits one step of training in this process, in turn with the same step done
plainly: the loss of straightforward_loss.py, an optimiser that goes parameter by parameter. What
a worker's memory settings spare is not in it.

Seconds are this machine's; the ratios are what to compare. --quick shortens the table of steps
only: the rounds are whole ones (2 to 3 minutes on 2 cores).

A round that is refused, or breaks, is counted as well: medians are of what there is.
"""

from __future__ import annotations

import itertools
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from math import nan
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diagnostic_msgs.msg import DiagnosticStatus
from harness import BROKE, Goal, Report, Row, Spread, parser, progress, run, spread
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
from straightforward_loss import straightforward_loss
from torch import Tensor, nn

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.state import StateFolder
from tiekd_ros.core.supervisor import Child
from tiekd_ros.method.first_student import first_input_size
from tiekd_ros.method.losses import LossParts, LossSettings, Objective, make_objective
from tiekd_ros.method.metrics import masked_mean
from tiekd_ros.method.samples import Sample, augment, cell_depth, fit_sample
from tiekd_ros.method.stepping import make_optimizer
from tiekd_ros.method.target import DepthTarget
from tiekd_ros.nodes.common import conversions, qos
from tiekd_ros.rounds.limits import default_threads
from tiekd_ros.rounds.plan import RoundPlan
from tiekd_ros.student.architecture import InputSize, StudentOutput
from tiekd_ros.student.base_student import start_from_base
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.preprocessing import normalise
from tiekd_ros.student.runtimes.torch_runtime import to_channels_last
from tiekd_ros.worlds import IndoorWorld, WorldSettings

STRAIGHTFORWARD, OURS = "plain", "as it is"
_PARTS = ("data", "forward", "loss", "backward", "optimiser")
_WARM_UP = 2
_PLAN = RoundPlan()
_BINS = DepthBins()
_SECOND = 1_000_000_000
ITERATIONS = 200
STAGES = ("start", "loading", "training", "judging", "storing", "swap")
"""start: until the worker is at work; storing: with promotion; swap: until the first depth."""

_BROKEN = "broke"
_TRAIN_FRAMES = 64
_IMAGES_HZ = 10.0
_START_S, _ROUND_S, _LIVE_S = 60.0, 1200.0, 60.0


def time_steps(repeats: int) -> dict[str, dict[str, Spread]]:
    """Return milliseconds of a step's parts and of the whole by the way it is done.

    The two ways take turns, so that the machine's noise hits both alike. Both start from the base
    student and see the same frames, with batch norms of the batch and as many threads as a first
    round has.
    """
    torch.set_num_threads(default_threads(inference=False))
    samples = _samples()
    arms = {
        STRAIGHTFORWARD: _Arm(samples, plain=True),
        OURS: _Arm(samples),
    }
    times: dict[str, list[list[float]]] = {name: [] for name in arms}
    with progress() as bar:
        task = bar.add_task("steps", total=(_WARM_UP + repeats) * len(arms))
        for turn in range(_WARM_UP + repeats):
            for name, arm in arms.items():
                found = arm.step()
                if turn >= _WARM_UP:
                    times[name].append([*found, sum(found)])
                bar.advance(task)
    return {
        name: dict(zip((*_PARTS, "step"), map(spread, zip(*own, strict=True)), strict=True))
        for name, own in times.items()
    }


class _Arm:
    """One way to do a step."""

    def __init__(self, samples: list[Sample], *, plain: bool = False) -> None:
        self._samples = samples
        height, width = samples[0].depth.shape
        self._network = start_from_base(_BINS, InputSize(height, width), None)
        to_channels_last(self._network)
        rate, decay = _PLAN.train.fine_tune_rate, _PLAN.train.weight_decay
        self._optimizer = make_optimizer(self._network, rate, decay)
        self._loss: Objective = make_objective(_BINS, LossSettings())
        if plain:
            parameters = self._network.parameters()
            self._optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
            self._loss = _plain_loss
        self._network.train()
        self._rng = np.random.default_rng(0)

    def step(self) -> list[float]:
        """Do a step; return milliseconds of its parts."""
        at = [time.perf_counter()]
        images, depth = self._draw()
        at.append(time.perf_counter())
        raw = self._network(images)
        at.append(time.perf_counter())
        loss = self._loss(self._network.output(raw), depth).total
        at.append(time.perf_counter())
        loss.backward()
        at.append(time.perf_counter())
        nn.utils.clip_grad_norm_(self._network.parameters(), _PLAN.train.clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        at.append(time.perf_counter())
        return [1e3 * (end - start) for start, end in itertools.pairwise(at)]

    def _draw(self) -> tuple[Tensor, Tensor]:
        drawn = [augment(sample, _PLAN.augment, self._rng) for sample in self._samples]
        images = torch.from_numpy(np.stack([s.image for s in drawn]))
        depth = torch.from_numpy(np.stack([s.depth for s in drawn]))
        return normalise(images), depth[:, None]


def _plain_loss(output: StudentOutput, depth: Tensor) -> LossParts:
    """Compare a student's DPM, and its finer depth, with depth (B, 1, H, W) as formulas read."""
    assert output.logits is not None  # the base has a DPM
    assert output.fine_depth is not None  # and upsamples its depth
    settings = LossSettings()
    cell = depth.shape[2] // output.logits.shape[2]
    parts = straightforward_loss(_BINS, settings)(output.logits, cell_depth(depth, cell))
    valid = DepthTarget(_BINS, settings.target_width).valid(depth)
    known = torch.where(valid, depth, torch.ones_like(depth))
    edges = masked_mean((output.fine_depth / known).log().abs(), valid)
    return parts._replace(total=parts.total + settings.edge_weight * edges)


def _samples() -> list[Sample]:
    """Return a batch of views of the synthetic world at a first student's input size."""
    world = IndoorWorld(WorldSettings())
    size = first_input_size(HEIGHT, WIDTH, _PLAN.student)
    camera = IndoorWorld.default_intrinsics(WIDTH, HEIGHT)
    seconds = range(_PLAN.train.batch_size)
    views = [world.render(n * _SECOND, WIDTH, HEIGHT, camera) for n in seconds]
    return [fit_sample(view.image, view.depth, camera, size) for view in views]


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
    made.add_argument("--rounds", type=int, default=0, help="how many [1 if quick, else 3]")
    options = made.parse_args(argv)
    report = Report("distill", options)
    steps = time_steps(repeats=5 if options.quick else 25)
    with tempfile.TemporaryDirectory(prefix="tiekd_distill_", ignore_cleanup_errors=True) as root:
        folder = Path(root)
        held_out = prepare(folder / "labelled")
        times = time_rounds(folder, options.rounds or (1 if options.quick else 3))
    title = "One training step, ms (10th-90th percentile); faster: times, than plain"
    report.table("steps_ms", title, step_rows(steps), data=steps)
    title = f"Trigger to live, s: {_TRAIN_FRAMES} + {held_out} held out labelled frames, "
    title += f"{ITERATIONS} iterations"
    report.table("rounds_s", title, round_rows(times), data=times)
    report.tables["iterations"] = ITERATIONS
    report.goals.append(live_goal(steps, times))
    code = report.finish()
    broke = any(r.verdict.startswith(_BROKEN) for r in times)
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


def time_rounds(folder: Path, rounds: int) -> list[RoundTimes]:
    """Run rounds one after another, each on a copy of the labelled frames."""
    times = []
    for number in range(1, rounds + 1):
        print(f"round {number} of {rounds} ...", file=sys.stderr, flush=True)
        state = folder / f"round_{number}"
        shutil.copytree(folder / "labelled", state)
        try:
            with own_domain():
                times.append(time_round(state))
        except TiekdError as error:
            times.append(RoundTimes(f"{_BROKEN}: {error}"))
        print(times[-1].verdict, file=sys.stderr, flush=True)
        shutil.rmtree(state)
    return times


def time_round(state: Path) -> RoundTimes:
    """Start the nodes on a state folder without a student, call distill, wait for depth.

    Raises:
        TiekdError: a node ends, no round starts, or something does not come in time.
    """
    companion = {
        "state_dir": state,
        "teacher.url": '""',
        "train.iterations": ITERATIONS,
        "train.device": "cpu",
        "distill.first_labels": 0,  # what is timed is a first round that trains
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


def round_rows(rounds: Sequence[RoundTimes]) -> list[Row]:
    """Return the medians of the rounds, one row."""
    return [
        {
            **{stage: spread([r.stages[stage] for r in rounds]).median for stage in STAGES},
            "trigger to live": spread([r.trigger_to_live for r in rounds]),
            "ms/iteration": spread([r.step_ms for r in rounds]).median,
            "held-out AbsRel": f"{spread([r.abs_rel for r in rounds]).median:.4f}",
            "RMSE [m]": f"{spread([r.rmse for r in rounds]).median:.4f}",
            "rounds": _verdicts(rounds),
        }
    ]


def _verdicts(rounds: Sequence[RoundTimes]) -> str:
    counts = Counter(r.verdict.partition(":")[0] for r in rounds)
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items())


def live_goal(steps: dict[str, dict[str, Spread]], rounds: Sequence[RoundTimes]) -> Goal:
    live = spread([r.trigger_to_live for r in rounds])
    faster = steps[STRAIGHTFORWARD]["step"].median / steps[OURS]["step"].median
    return Goal(
        f"trigger to live, 64 frames, {ITERATIONS} iterations",
        "as low as possible",
        f"{live.median:.0f} s" if live.n else "-",
        None,
        f"{_verdicts(rounds)}; a step is {faster:.1f} x faster than the same done plainly",
    )


if __name__ == "__main__":
    run(main)
