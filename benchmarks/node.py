"""How long depth takes from the camera to whoever wants it, whatever else goes on.

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

import argparse
import sys

from measuring import Goal, arguments, finish, print_table
from node_modes import Idle, Swapping, Training, bench, run_idle, run_swaps, run_training
from node_stage import HEIGHT, WIDTH
from node_stream import Latency

from tiekd_ros.core.devices import RUNTIMES
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.student import InputSize

_DEFAULT = InputSize.near(HEIGHT, WIDTH, 71680)  # what a first student gets
_LARGE = InputSize(HEIGHT, WIDTH)
_LABELLED = 64
_LEAST_MS, _SHARE = 2.0, 0.15  # the node's allowance over the bare network, whichever is larger
_WHILE_TRAINING, _WHILE_TRAINING_CUDA = 1.25, 1.2  # p95 over that of the idle node
_VERDICTS = ("accepted", "refused")


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; 1 where something did not run."""
    options = _parser().parse_args(arguments)
    try:
        idle, swapping, training = _measure(options)
    except TiekdError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    _print(idle, swapping, training)
    tables = {"idle": idle, "swapping": swapping, "training": training}
    goals = [*(_overhead(size, found) for size, found in idle.items())]
    finish("node", options, tables, [*goals, *_swaps(swapping), *_training(training)])
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = arguments(__doc__ or "")
    parser.add_argument("--runtime", choices=RUNTIMES, default="auto", help="of the node [auto]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    parser.add_argument("--swaps", type=int, help="exchanges of students [100]")
    parser.add_argument("--steps", type=int, help="training steps of the round [200; quick: 30]")
    return parser


def _measure(options: argparse.Namespace) -> tuple[dict[str, Idle], Swapping, Training]:
    quick = options.quick
    steps = options.steps or (30 if quick else 200)
    kind = options.device, options.runtime
    idle = {}
    with bench(_DEFAULT, *kind) as running:
        idle[_name(_DEFAULT)] = run_idle(running, 2 if quick else 6)
        swapping = run_swaps(running, options.swaps or 100, 5.0 if quick else 20.0)
    with bench(_LARGE, *kind) as running:
        idle[_name(_LARGE)] = run_idle(running, 2 if quick else 4)
    with bench(_DEFAULT, *kind, labelled=_LABELLED, steps=steps) as running:
        seconds = 8.0 if quick else 20.0
        training = run_training(running, steps, seconds, timeout_s=120.0 if quick else 400.0)
    return idle, swapping, training


def _name(size: InputSize) -> str:
    return f"{size.height}x{size.width}"


def _print(idle: dict[str, Idle], swapping: Swapping, training: Training) -> None:
    columns = ("network's input", "node", "echo", "bare", "bare, paced", "inside the node", "drops")
    rows = [
        (name, i.node_delay, i.echo_delay, i.bare, i.bare_paced, i.inside,
         f"{i.node.dropped} of {i.node.shown}")
        for name, i in idle.items()
    ]  # fmt: skip
    print_table("Image stamp to depth received, ms, and the network without ROS", columns, rows)
    stages = next(iter(idle.values())).stages
    rows = [(name, *i.stages.values(), i.runtime) for name, i in idle.items()]
    print_table("Inside the node, medians, ms", ("network's input", *stages, "runtime"), rows)
    modes = (
        ("idle, before training", training.before),
        (f"training, {training.steps} of {training.wanted_steps} steps", training.training),
        ("idle, after training", training.after),
        (f"idle at {swapping.rate_hz:g} Hz", swapping.idle),
        (f"swapping, {swapping.swaps} in {swapping.seconds:.0f} s", swapping.swapping),
    )
    columns = ("mode", "p50", "p95", "p99", "longest gap", "images", "drops")
    rows = [(name, *_row(latency)) for name, latency in modes]
    print_table(f"Stamp to depth received, ms, network's input {_name(_DEFAULT)}", columns, rows)


def _row(found: Latency) -> tuple[object, ...]:
    return found.p50, found.p95, found.p99, found.longest_gap, found.shown, found.dropped


def _overhead(size: str, found: Idle) -> Goal:
    bare = found.bare.median
    over = found.node_delay.median - bare
    note = (
        f"of which the transport alone takes {found.echo_delay.median:.1f} ms; image arrived to "
        f"depth published: {found.inside - bare:.1f} ms over the bare network, "
        f"{found.inside - found.bare_paced.median:.1f} ms over the bare network at this rate"
    )
    return Goal(
        f"node over bare network, {WIDTH}x{HEIGHT} images, input {size}",
        f"<= {max(_LEAST_MS, _SHARE * bare):.1f} ms",
        f"{over:.1f} ms ({over / bare:.0%} of {bare:.1f} ms)",
        over <= max(_LEAST_MS, _SHARE * bare),
        note,
    )


def _swaps(found: Swapping) -> list[Goal]:
    frame_ms = 1e3 / found.rate_hz
    grown = found.swapping.longest_gap - found.idle.longest_gap
    name = f"{found.swaps} swaps at {found.rate_hz:g} Hz"
    return [
        Goal(
            f"{name}: images without depth",
            "0",
            f"{found.swapping.dropped} of {found.swapping.shown}",
            found.swapping.dropped == 0,
            f"{found.idle.dropped} of {found.idle.shown} without swaps",
        ),
        Goal(
            f"{name}: longest gap between depth images",
            f"<= idle + {frame_ms:.0f} ms",
            f"{found.swapping.longest_gap:.0f} ms",
            grown <= frame_ms,
            f"idle: {found.idle.longest_gap:.0f} ms",
        ),
    ]


def _training(found: Training) -> list[Goal]:
    most = _WHILE_TRAINING_CUDA if "cuda" in found.runtime else _WHILE_TRAINING
    idle = min(found.before.p95, found.after.p95)
    ratio = found.training.p95 / idle
    return [
        Goal(
            "p95 while training",
            f"<= {most:g} x idle",
            f"{ratio:.2f} x ({found.training.p95:.1f} / {idle:.1f} ms)",
            ratio <= most,
            f"idle: the lower of before ({found.before.p95:.1f} ms) and after "
            f"({found.after.p95:.1f} ms); {found.training.dropped} of {found.training.shown} "
            "images without depth while training",
        ),
        Goal(
            "the training beside it ends",
            f"{found.wanted_steps} steps and a verdict",
            f"{found.steps} in {found.seconds:.0f} s, {found.verdict}",
            found.steps >= found.wanted_steps and found.verdict in _VERDICTS,
            f"rested {found.rested_s:.0f} s",
        ),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
