"""How long depth takes from the camera to its subscriber, whatever else goes on.

    python benchmarks/node.py --quick            less than 5 minutes on 2 cores
    python benchmarks/node.py                    6 minutes
    python benchmarks/node.py --runtime torch

A camera process plays 640x480 images, depth_node runs as on a robot, and this process receives
the depth as a user's program would. Delays go from the image's stamp, taken just
before it is sent, to its depth received: two ways between processes, and the node.

Idle: nothing else goes on. In turns with it, an echo node that answers each image with a depth
image at once (what the transport takes), and the runtime without ROS in a process of its own:
one image right after the other, and at the camera's rate, when it finds its caches cold. Two
sizes of the network's input: the default, and that of the image.
Swapping: the live student is exchanged again and again, as fast as the node takes it.
Training: companion_node runs too, first idle, then with a distillation round, then idle again,
once the node has settled on the student that came of it. Judged by the better of the two idle
stretches.

It uses a ROS domain of its own, and Fast DDS's LARGE_DATA transports unless you set others.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from harness import Goal, Report, Row, Spread, number, parser, progress, run, spread
from node_bench import RATES_HZ, Bench, Latency, bench, playing
from node_stage import ECHO, HEIGHT, WIDTH

from tiekd_ros.core.devices import RUNTIMES
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.registry import StudentRegistry

_DEFAULT = InputSize.near(HEIGHT, WIDTH, 71680)  # what a first student gets
_LARGE = InputSize(HEIGHT, WIDTH)
_LABELLED = 64
_LEAST_MS, _SHARE = 2.0, 0.15  # the node's allowance over the bare network, whichever is larger
_WHILE_TRAINING, _WHILE_TRAINING_CUDA = 1.25, 1.2  # p95 over that of the idle node
_VERDICTS = ("promoted", "refused")
_DIAGNOSED_S = 5.5  # how far back latency in the diagnostics reaches, and a little more
_SETTLED_S = 8.0  # after a round: promotion, loading and probing are over, the worker is gone


class Idle(NamedTuple):
    """Delays in milliseconds, measured in turns."""

    runtime: str
    node: Latency
    node_delay: Spread  # stamp to depth received
    echo_delay: Spread  # the same of the echo: the transport alone
    inside: float  # image arrived in the node's callback to depth published: median
    bare: Spread  # the runtime without ROS, one image right after the other
    bare_paced: Spread  # the same at the camera's rate
    stages: dict[str, float]  # of the node, medians


class Training(NamedTuple):
    """The stream during a distillation round, and without one just before and after."""

    runtime: str  # of the node while training went on
    before: Latency
    training: Latency
    after: Latency
    steps: int
    wanted_steps: int
    seconds: float  # from the call to the verdict
    paused_s: float
    verdict: str


class Swapping(NamedTuple):
    """The stream while students are exchanged, and without, at the same rate."""

    rate_hz: float
    idle: Latency
    swapping: Latency
    swaps: int
    seconds: float


def main(argv: list[str] | None = None) -> int:
    made = parser(__doc__ or "")
    made.add_argument("--runtime", choices=RUNTIMES, default="auto", help="of the node [auto]")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    made.add_argument("--swaps", type=int, default=100, help="exchanges of students [100]")
    made.add_argument("--steps", type=int, help="training steps of the round [200; quick: 30]")
    options = made.parse_args(argv)
    report = Report("node", options)
    quick = options.quick
    steps = options.steps or (30 if quick else 200)
    kind = options.device, options.runtime
    idle = {}
    with bench(_DEFAULT, *kind) as running:
        idle[_name(_DEFAULT)] = run_idle(running, 2 if quick else 6)
        swapping = run_swaps(running, options.swaps, 5.0 if quick else 20.0)
    with bench(_LARGE, *kind) as running:
        idle[_name(_LARGE)] = run_idle(running, 2 if quick else 4)
    with bench(_DEFAULT, *kind, labelled=_LABELLED, steps=steps) as running:
        seconds = 8.0 if quick else 20.0
        training = run_training(running, steps, seconds, timeout_s=120.0 if quick else 400.0)
    _print(report, idle, swapping, training)
    report.tables = {"idle": idle, "swapping": swapping, "training": training}
    report.goals += [overhead_goal(size, found) for size, found in idle.items()]
    report.goals += [*swap_goals(swapping), *training_goals(training)]
    return report.finish()


def _name(size: InputSize) -> str:
    return f"{size.height}x{size.width}"


def run_idle(running: Bench, rounds: int) -> Idle:
    """Measure node, echo and bare network in turns."""
    watcher, rate = running.watcher, running.rate_hz
    shown: list[int] = []
    echoed: list[int] = []
    inside: list[float] = []
    fast: list[float] = []
    paced: list[float] = []
    with progress() as bar:
        for _ in bar.track(range(rounds), description="idle"):
            shown += running.play(_DIAGNOSED_S)[3:]  # the first few find everything cold
            values = watcher.values
            inside.append(float(values["latency p50 [ms]"]))
            echoed += running.play(2.0, ECHO)[3:]
            fast += running.bare.call("time_images", 60, 0.0)[5:]
            paced += running.bare.call("time_images", round(3 * rate), rate)[3:]
    return Idle(
        values["runtime"],
        watcher.latency(shown),
        spread(watcher.delays(shown)),
        spread(watcher.delays(echoed, ECHO)),
        float(np.median(inside)),
        spread(fast),
        spread(paced),
        {k[5:-5]: float(v) for k, v in values.items() if k.startswith("time ")},
    )


def run_training(running: Bench, steps: int, seconds: float, timeout_s: float) -> Training:
    """Measure the stream during a round of so many steps, and `seconds` of it before and after."""
    watcher = running.watcher
    before = running.play(seconds)[3:]
    with progress() as bar, playing(running.camera, running.rate_hz) as during:
        task = bar.add_task("training", total=steps)
        started = time.monotonic()
        watcher.distill()
        while watcher.round.get("stage") != "done" and time.monotonic() - started < timeout_s:
            bar.update(task, completed=watcher.steps_done)
            time.sleep(0.2)
        took = time.monotonic() - started
        runtime = watcher.values["runtime"]
    status = watcher.round
    done = watcher.steps_done
    if status.get("version"):  # the status may lag behind
        card = StudentRegistry(running.made.state.students).card(status["version"])
        done = int(card.training["steps"])
    # Until the node runs what came of it, and what this took has died away.
    if status.get("state") == "promoted":
        with suppress(TiekdError):  # in vain: then the stretch before the round is what is left
            watcher.await_student(status["version"])
    running.play(_SETTLED_S)
    after = running.play(seconds)[3:]
    return Training(
        runtime,
        watcher.latency(before),
        watcher.latency(during[3:]),
        watcher.latency(after),
        done,
        steps,
        took,
        float(status.get("paused_seconds", 0.0)),
        status.get("state", "") if status.get("stage") == "done" else "not over in time",
    )


def run_swaps(running: Bench, swaps: int, seconds: float) -> Swapping:
    """Exchange two students as fast as the node takes them, at the highest rate that it takes.

    Before that, `seconds` of stream without.
    """
    watcher = running.watcher
    rate = next((rate for rate in RATES_HZ if running.fits(rate)), RATES_HZ[-1])
    with playing(running.camera, rate) as before:
        time.sleep(seconds)
    with progress() as bar, playing(running.camera, rate) as during:
        time.sleep(0.5)
        started = time.monotonic()
        for count in bar.track(range(swaps), description="swapping"):
            watcher.announce(running.made.versions[(count + 1) % 2])
        took = time.monotonic() - started
    return Swapping(rate, watcher.latency(before[3:]), watcher.latency(during[3:]), swaps, took)


def _print(report: Report, idle: dict[str, Idle], swapping: Swapping, training: Training) -> None:
    rows: list[Row] = [
        {
            "network's input": name,
            "node": i.node_delay,
            "echo": i.echo_delay,
            "bare": i.bare,
            "bare, paced": i.bare_paced,
            "inside the node": i.inside,
            "drops": f"{i.node.dropped} of {i.node.shown}",
        }
        for name, i in idle.items()
    ]
    report.table("idle", "Image stamp to depth received, ms, and the network without ROS", rows)
    rows = [{"network's input": n, **i.stages, "runtime": i.runtime} for n, i in idle.items()]
    report.table("stages", "Inside the node, medians, ms", rows)
    modes = {
        "idle, before training": training.before,
        f"training, {training.steps} of {training.wanted_steps} steps": training.training,
        "idle, after training": training.after,
        f"idle at {swapping.rate_hz:g} Hz": swapping.idle,
        f"swapping, {swapping.swaps} in {swapping.seconds:.0f} s": swapping.swapping,
    }
    title = f"Stamp to depth received, ms, network's input {_name(_DEFAULT)}"
    rows = [{"mode": mode, **latency._asdict()} for mode, latency in modes.items()]
    report.table("modes", title, rows)


def overhead_goal(size: str, found: Idle) -> Goal:
    bare = found.bare.median
    over = found.node_delay.median - bare
    note = (
        f"of which the transport alone takes {found.echo_delay.median:.1f} ms; image arrived to "
        f"depth published: {found.inside - bare:.1f} ms over the bare network, "
        f"{found.inside - found.bare_paced.median:.1f} ms over the bare network at this rate"
    )
    name = f"node over bare network, {WIDTH}x{HEIGHT} images, input {size}"
    goal = Goal.at_most(name, over, max(_LEAST_MS, _SHARE * bare), "ms", note)
    return goal._replace(measured=f"{goal.measured} ({over / bare:.0%} of {bare:.1f} ms)")


def swap_goals(found: Swapping) -> list[Goal]:
    frame_ms = 1e3 / found.rate_hz
    name = f"{found.swaps} swaps at {found.rate_hz:g} Hz"
    idle, swapping = found.idle, found.swapping
    return [
        Goal(
            f"{name}: images without depth",
            "0",
            f"{swapping.dropped} of {swapping.shown}",
            swapping.dropped == 0,
            f"{idle.dropped} of {idle.shown} without swaps",
        ),
        Goal(
            f"{name}: longest gap between depth images",
            f"<= idle + {frame_ms:.0f} ms",
            f"{swapping.longest_gap:.0f} ms",
            swapping.longest_gap - idle.longest_gap <= frame_ms,
            f"idle: {idle.longest_gap:.0f} ms",
        ),
    ]


def training_goals(found: Training) -> list[Goal]:
    most = _WHILE_TRAINING_CUDA if "cuda" in found.runtime else _WHILE_TRAINING
    idle = min(found.before.p95, found.after.p95)
    latency = Goal.at_most(
        "p95 while training", found.training.p95 / idle, most, "x idle",
        f"{number(found.training.p95)} ms; idle, the lower of before "
        f"({number(found.before.p95)} ms) and after ({number(found.after.p95)} ms); "
        f"{found.training.dropped} of {found.training.shown} images without depth while training",
    )  # fmt: skip
    ends = Goal(
        "the training beside it ends",
        f"{found.wanted_steps} steps and a verdict",
        f"{found.steps} in {found.seconds:.0f} s, {found.verdict}",
        found.steps >= found.wanted_steps and found.verdict in _VERDICTS,
        f"paused {found.paused_s:.0f} s",
    )
    return [latency, ends]


if __name__ == "__main__":
    run(main)
