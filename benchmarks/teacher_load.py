"""How many robots one teacher server carries, and what becomes of their frames.

    python benchmarks/teacher_load.py --quick           about 3 minutes on 2 cores
    python benchmarks/teacher_load.py                   about 8 minutes
    python benchmarks/teacher_load.py --soak 30         watches the server's memory for 30 minutes
    python benchmarks/teacher_load.py --network large --device cuda --robots 8 64

One server process, and processes in which robots run: each robot the companion's own labeller and
client over real gRPC, with a frame log in memory that always has frames waiting. Every label
carries a mark of the frame it was made of, so that the account at the end knows of each frame
whether its own label came, none, two, or another frame's.

Two teachers. `tiny`: a Depth Anything network with random weights at 168x126, a checkpoint that
the huggingface backend loads; it computes on one core, and shares the machine with the robots.
`waiting`: sleeps 20 ms a batch and 5 ms an image, as a server does whose network runs on a GPU.
Throughput is judged twice, against the same model in a loop in the server's process: one image
after the other, right before and after, as a server without batches would do at best; and, right
after, in batches of the size that the server reached, which no server can beat.

Overhead: a teacher that answers at once, one robot, one frame after the other.
Recovery: the server is killed under load and started again on its port; from its return to each
robot's next label, beside the longest wait that the robot had given itself.

Columns: images/s of all robots; bare = the model alone in a loop; fill = images a batch; batched =
the model alone in batches of that size; p50 and p99 from first asking for a label to having it,
retries and queue included; worst/mean = labels of the slowest robot over those of the mean;
rejected = frames given up since their label was refused; again = images that the server labelled
more than once.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from measuring import Goal, arguments, console, finish, number, print_table
from teacher_load_models import NETWORKS, WAITING, write_network
from teacher_load_overhead import Overhead, run_overhead
from teacher_load_processes import Server
from teacher_load_runs import FLAT, Load, Recovery, Soak, run_load, run_recovery, run_soak

from tiekd_ros.core.errors import TiekdError

_ROBOTS = (1, 8, 32, 64)
_IN_FLIGHT = 2  # a companion's default
_WAITING = f"{WAITING}:20,5"
_SOAK_ROBOTS = 8
_MANY = 8  # robots from which on the server is expected to be busy all the time

_PROCESSES = 4  # one Python process is too slow for the threads of 64 robots
_LEAST_THROUGHPUT, _MOST_OVERHEAD_MS, _LEAST_SHARE = 0.9, 10.0, 0.5
_FIRST_LABEL_S = 0.5  # after its wait a robot still connects, asks, and gets its label


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; 1 where something did not run."""
    options = _parser().parse_args(arguments)
    try:
        return _soak(options) if options.soak else _load(options)
    except (TiekdError, RuntimeError, ImportError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--robots", type=int, nargs="+", default=_ROBOTS, metavar="N", help=f"how many {_ROBOTS}"
    )
    parser.add_argument(
        "--robot-processes", type=int, default=_PROCESSES, metavar="N",
        help=f"over how many the robots are spread [{_PROCESSES}]",
    )  # fmt: skip
    parser.add_argument("--network", choices=NETWORKS, default="tiny", help="of the teacher [tiny]")
    parser.add_argument("--device", default="cpu", help="of the network: cpu, cuda or cuda:N [cpu]")
    parser.add_argument("--threads", type=int, default=1, help="of the network on a CPU [1]")
    parser.add_argument("--max-batch", type=int, default=8, help="of the server [8]")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="only watch the memory")
    return parser


def _load(options: argparse.Namespace) -> int:
    overhead = run_overhead(100 if options.quick else 400)
    _print_overhead(overhead)
    with tempfile.TemporaryDirectory() as folder:
        write_network(Path(folder), options.network)
        network = _stretches(f"huggingface:{folder}", options, options.robots)
    _print_loads(f"{options.network} network on {options.device}", network)
    waiting = _stretches(_WAITING, options, [n for n in options.robots if n >= _MANY])
    _print_loads(f"{_WAITING} ms, no core busy", waiting)
    recovery = run_recovery(
        _WAITING,
        _SOAK_ROBOTS,
        down_s=4.0 if options.quick else 10.0,
        in_flight=_IN_FLIGHT,
        processes=options.robot_processes,
    )
    _print_recovery(recovery)
    tables = {
        "overhead": overhead,
        "network": network,
        "waiting": waiting,
        "recovery": recovery,
    }
    loads = {options.network: network, WAITING: waiting}
    goals = [_overhead_goal(overhead)]
    for name, rows in loads.items():
        goals += [
            _throughput_goal(f"{name}: throughput over the bare model in a loop", rows, "bare"),
            _throughput_goal(
                f"{name}: throughput over the bare model in as large batches", rows, "bare_batched"
            ),
            _account_goal(name, rows),
            _share_goal(name, rows),
        ]
    finish("teacher_load", options, tables, [*goals, _recovery_goal(recovery)])
    return 0


def _stretches(model: str, options: argparse.Namespace, robots: Sequence[int]) -> list[Load]:
    found = []
    with Server(
        model, device=options.device, threads=options.threads, max_batch=options.max_batch
    ) as server:
        for count in robots:
            # Long enough for a few labels of each robot, and a few of their round trips.
            seconds = 4.0 + count / 5.0 if options.quick else 20.0 + count / 2.0
            bare_s = 2.0 if options.quick else 6.0
            found.append(
                run_load(
                    server,
                    count,
                    seconds=seconds,
                    bare_s=bare_s,
                    in_flight=_IN_FLIGHT,
                    processes=options.robot_processes,
                )
            )
    return found


def _soak(options: argparse.Namespace) -> int:
    with Server(f"{WAITING}:5,2", max_batch=options.max_batch) as server:
        found = run_soak(
            server,
            _SOAK_ROBOTS,
            minutes=options.soak,
            in_flight=_IN_FLIGHT,
            processes=options.robot_processes,
        )
    rows = [(found.labels, found.settled_mib, f"{found.lowest:.3f}", f"{found.highest:.3f}",
             found.outside, f"{found.drift:+.2%}", found.lost, found.twice,
             found.rejected)]  # fmt: skip
    columns = ("labels", "MiB after warm-up", "lowest", "highest",
               "samples outside", "drift", "lost", "twice", "rejected")  # fmt: skip
    print_table(f"The server's memory over {found.minutes:g} minutes", columns, rows)
    finish("teacher_soak", options, {"soak": found}, [_soak_goal(found)])
    return 0


def _print_overhead(found: Overhead) -> None:
    rows = [("round trip", found.round_trip), *found.parts.items()]
    size = f"{found.sent_kb:.0f} kB there, {found.received_kb:.0f} kB back"
    print_table(f"One frame of 640x480, ms, without a network; {size}", ("what", "ms"), rows)


def _print_loads(name: str, loads: Sequence[Load]) -> None:
    columns = ("robots", "images/s", "bare", "ratio", "fill", "batched", "ratio", "p50 ms",
               "p99 ms", "worst/mean", "frames", "lost, twice, wrong, rejected", "again",
               "retried", "CPU ms server / robots", "MiB")  # fmt: skip
    rows = [
        (load.robots, own.rate, load.bare, own.rate / load.bare, load.mean_batch,
         load.bare_batched or float("nan"), own.rate / (load.bare_batched or float("nan")),
         own.p50_ms, own.p99_ms, own.worst_share, own.frames,
         f"{own.lost}, {own.twice}, {own.foreign}, {own.rejected}", load.again, own.failed,
         f"{load.server_cpu_ms:.1f} / {own.robots_cpu_ms:.1f}",
         load.rss_mib)
        for load in loads
        for own in [load.labels]
    ]  # fmt: skip
    print_table(f"Robots on one server, {name}", columns, rows)
    for load in loads:
        if load.labels.last_error:
            console().print(f"{load.robots} robots, last error: {load.labels.last_error}")


def _print_recovery(found: Recovery) -> None:
    columns = ("robot", "s to its next label", "longest wait it had given itself, s")
    rows = [
        (robot, after, period)
        for robot, (after, period) in enumerate(zip(found.after_s, found.periods_s, strict=True))
    ]
    print_table(f"Server killed, and back {found.down_s:.1f} s later", columns, rows)


def _overhead_goal(found: Overhead) -> Goal:
    parts = ", ".join(f"{name} {part.median:.1f}" for name, part in found.parts.items())
    return Goal(
        "gRPC and decoding, a frame of 640x480",
        f"<= {_MOST_OVERHEAD_MS:g} ms",
        f"{found.round_trip.median:.1f} ms",
        found.round_trip.median <= _MOST_OVERHEAD_MS,
        f"from the robot's request to its checked label; {parts}",
    )


def _throughput_goal(goal: str, loads: Sequence[Load], over: str) -> Goal:
    wanted = f">= {_LEAST_THROUGHPUT:g} x"
    busy = [load for load in loads if load.robots >= _MANY and getattr(load, over)]
    if not busy:
        return Goal(goal, wanted, "-", None)
    ratios = {load.robots: load.labels.rate / getattr(load, over) for load in busy}
    worst = min(ratios.values())
    each = ", ".join(f"{robots} robots: {ratio:.2f} x" for robots, ratio in ratios.items())
    return Goal(goal, wanted, f"{worst:.2f} x", worst >= _LEAST_THROUGHPUT, each)


def _account_goal(name: str, loads: Sequence[Load]) -> Goal:
    lost, twice, foreign, rejected = (sum(col) for col in zip(*_accounts(loads), strict=True))
    frames = sum(load.labels.frames for load in loads)
    return Goal(
        f"{name}: frames without their own label, with two, with another's, rejected",
        "0, 0, 0, 0",
        f"{lost}, {twice}, {foreign}, {rejected} of {frames}",
        lost == twice == foreign == rejected == 0,
        f"labelled again after a retry: {sum(load.again for load in loads)}",
    )


def _accounts(loads: Sequence[Load]) -> list[tuple[int, int, int, int]]:
    labels = [load.labels for load in loads]
    found = [(own.lost, own.twice, own.foreign, own.rejected) for own in labels]
    return found or [(0, 0, 0, 0)]


def _share_goal(name: str, loads: Sequence[Load]) -> Goal:
    goal, wanted = f"{name}: the worst robot's share", f">= {_LEAST_SHARE:g} x the mean"
    if not loads:
        return Goal(goal, wanted, "-", None)
    most = max(loads, key=lambda load: load.robots)
    share = most.labels.worst_share
    return Goal(goal, wanted, f"{share:.2f} x", share >= _LEAST_SHARE, f"of {most.robots} robots")


def _recovery_goal(found: Recovery) -> Goal:
    beyond = [a - p for a, p in zip(found.after_s, found.periods_s, strict=True)]
    account = (found.lost, found.twice, found.foreign, found.rejected)
    named = zip(account, ("lost", "twice", "wrong", "rejected"), strict=True)
    lost = f"{', '.join(f'{count} {name}' for count, name in named)} of {found.frames}"
    return Goal(
        "next label after the server's return",
        f"within the robot's wait + {_FIRST_LABEL_S:g} s",
        f"median {number(float(np.median(found.after_s)))} s, worst {number(max(found.after_s))} s",
        max(beyond) <= _FIRST_LABEL_S and not any(account),
        f"{found.robots} robots, waits up to {number(max(found.periods_s))} s; {lost}",
    )


def _soak_goal(found: Soak) -> Goal:
    return Goal(
        f"memory over {found.minutes:g} minutes, after the warm-up",
        f"medians of 10 s within {FLAT:.0%} of the median, no frame lost, twice or rejected",
        f"{found.widest:.1%}, drift {found.drift:+.1%}",
        found.widest <= FLAT and found.lost == found.twice == found.rejected == 0,
        f"{found.settled_mib:.0f} MiB, single samples {found.lowest:.3f} to {found.highest:.3f}, "
        f"{found.outside} beyond; {found.labels} labels, {found.lost} lost, {found.twice} twice, "
        f"{found.rejected} rejected",
    )


if __name__ == "__main__":
    raise SystemExit(main())
